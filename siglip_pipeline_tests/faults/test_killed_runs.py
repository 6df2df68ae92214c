"""`kill -9` of the process that runs, at any moment: nothing is lost, nor there or done twice."""

import random

import pytest

from siglip_pipeline_tests.faults.conftest import Make, Reference
from siglip_pipeline_tests.faults.harness import Pipeline

SHORT, LONG = 3, 25


class Kills:
    """Kills in each slice of a run, so that few of them reach both assets too."""

    def __init__(self, number: int, reference: Reference, seed: int) -> None:
        draw = random.Random(seed)
        self.shares = [(slice_ + draw.random()) / number for slice_ in range(number)]
        self._run_seconds = reference.seconds
        drawn = [f"{share * self._run_seconds:.2f}" for share in self.shares]
        print(f"SIGLIP_FAULT_SEED={seed}: kills after {drawn} s")

    def strike(self, pipeline: Pipeline, share: float) -> bool:
        """Kill a run after this share of its time; False when it was done before."""
        moment = share * self._run_seconds
        if pipeline.kill_after(moment):
            return True
        # The machine is less busy than it was for the reference: runs take no longer than this.
        self._run_seconds = moment
        return False


@pytest.mark.slow
def test_runs_killed_one_after_the_other_are_made_good_by_the_last(
    make_pipeline: Make, reference: Reference, seed: int
) -> None:
    kills = Kills(SHORT, reference, seed)
    for _ in range(4):
        pipeline = make_pipeline()
        struck, done = 0, []
        for share in kills.shares:
            is_struck = kills.strike(pipeline, share)
            struck += is_struck
            done.append(pipeline.done())
            if not is_struck:
                break
        if struck:
            break
    assert struck, "every kill came too late to strike anything"
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
    kills, struck = Kills(LONG, reference, seed), 0
    for share in kills.shares:
        pipeline = make_pipeline()
        struck += kills.strike(pipeline, share)
        done = pipeline.done()
        pipeline.finish()
        when = f"killed after {share:.3f} of its time"
        assert pipeline.stored() == reference.stored, when
        assert done.items() <= pipeline.done().items(), f"done again, {when}"
    assert struck > LONG // 2, "most of the kills came too late to strike anything"
