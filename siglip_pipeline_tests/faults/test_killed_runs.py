"""`kill -9` of the process that runs, at any moment: nothing is lost, nor there or done twice."""

import random

import pytest

from siglip_pipeline_tests.faults.conftest import Make, Pipeline, Reference

SHORT, LONG = 3, 25


def moments(kills: int, reference: Reference, seed: int) -> list[float]:
    """One moment from each slice of a run, so that few kills reach both assets too."""
    draw = random.Random(seed)
    share = reference.seconds / kills
    drawn = [share * (n + draw.random()) for n in range(kills)]
    print(f"SIGLIP_FAULT_SEED={seed}: kills after {[f'{moment:.2f}' for moment in drawn]} s")
    return drawn


class Pace:
    """Kills whole runs; each that ended before its kill makes the later kills come earlier."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._share = 1.0

    def moment(self, drawn: float) -> float:
        """When to kill: the machine may be less busy than it was for the reference."""
        return self._share * drawn

    def strikes(self, pipeline: Pipeline, drawn: float) -> bool:
        """Run a pipeline from the start, kill it, and return whether it still ran."""
        moment = self.moment(drawn)
        struck = pipeline.kill_after(moment)
        if not struck:
            self._share = moment / self._reference.seconds
        return struck


@pytest.mark.slow
def test_runs_killed_one_after_the_other_are_made_good_by_the_last(
    make_pipeline: Make, reference: Reference, seed: int
) -> None:
    pace = Pace(reference)
    first, *others = moments(SHORT, reference, seed)
    pipeline = make_pipeline()
    while not pace.strikes(pipeline, first):
        pipeline = make_pipeline()
    done = [pipeline.done()]
    for drawn in others:
        pipeline.kill_after(pace.moment(drawn))
        done.append(pipeline.done())
    assert any(done), "every kill came too early to leave anything"
    pipeline.finish()
    assert pipeline.stored() == reference.stored
    for earlier in done:
        assert earlier.items() <= pipeline.done().items(), "it was done again"


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_killed_run_is_made_good_by_the_next(
    make_pipeline: Make, reference: Reference, seed: int
) -> None:
    struck, pace = 0, Pace(reference)
    for drawn in moments(LONG, reference, seed):
        pipeline = make_pipeline()
        struck += pace.strikes(pipeline, drawn)
        done = pipeline.done()
        pipeline.finish()
        assert pipeline.stored() == reference.stored, f"killed at {drawn:.3f} s of the reference"
        assert done.items() <= pipeline.done().items(), f"done again, killed at {drawn:.3f} s"
    assert struck > LONG // 2, "most of the kills came too late to strike anything"
