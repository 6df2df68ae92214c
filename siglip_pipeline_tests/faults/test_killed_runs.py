"""`kill -9` of the process that runs, at any moment: nothing is lost, nor there or done twice."""

import random

import pytest

from siglip_pipeline_tests.faults.conftest import Make, Reference

SHORT, LONG = 3, 25


def moments(kills: int, reference: Reference, seed: int) -> list[float]:
    """One moment from each slice of a run, so that few kills reach both assets too."""
    draw = random.Random(seed)
    share = reference.seconds / kills
    drawn = [share * (n + draw.random()) for n in range(kills)]
    print(f"SIGLIP_FAULT_SEED={seed}: kills after {[f'{moment:.2f}' for moment in drawn]} s")
    return drawn


@pytest.mark.slow
def test_runs_killed_one_after_the_other_are_made_good_by_the_last(
    make_pipeline: Make, reference: Reference, seed: int
) -> None:
    pace = 1.0
    for _ in range(4):
        pipeline = make_pipeline()
        struck, done = [], []
        for moment in moments(SHORT, reference, seed):
            struck.append(pipeline.kill_after(pace * moment))
            done.append(pipeline.done())
        if any(struck):
            break
        pace /= 2  # the machine is less busy than it was for the reference
    assert any(struck), "every kill came too late to strike anything"
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
    struck, pace = 0, 1.0
    for drawn in moments(LONG, reference, seed):
        moment = drawn * pace
        pipeline = make_pipeline()
        if pipeline.kill_after(moment):
            struck += 1
        else:  # the machine is less busy than it was for the reference
            pace = moment / reference.seconds
        done = pipeline.done()
        pipeline.finish()
        assert pipeline.stored() == reference.stored, f"killed after {moment:.3f} s"
        assert done.items() <= pipeline.done().items(), f"done again, killed after {moment:.3f} s"
    assert struck > LONG // 2, "most of the kills came too late to strike anything"
