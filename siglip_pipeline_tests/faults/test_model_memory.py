"""A device that runs out of memory in the middle of a run."""

import numpy as np
import pytest

from siglip_pipeline_tests.faults.conftest import Make, Reference
from siglip_pipeline_tests.faults.harness import Stored

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

HOOKS = "siglip_pipeline_tests.faults.hooks"


def vector(stored: Stored, key: tuple[str, int]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.array(stored.vectors[key][1].strip("[]").split(","), np.float64)


def test_batches_that_do_not_fit_are_halved_and_nothing_is_missing(
    make_pipeline: Make, reference: Reference
) -> None:
    pipeline = make_pipeline(batch_size=16)
    pipeline.hook = f"{HOOKS}:little_device_memory"
    pipeline.finish()
    stored = pipeline.stored()
    assert stored.frames == reference.stored.frames
    assert stored.states == reference.stored.states
    assert stored.vectors.keys() == reference.stored.vectors.keys()
    for key in stored.vectors:
        # Other batches round otherwise: the same vectors to half precision.
        assert vector(stored, key) @ vector(reference.stored, key) > 0.9995


def test_a_device_without_room_for_one_frame_is_named_and_then_replaced(
    make_pipeline: Make, reference: Reference
) -> None:
    pipeline = make_pipeline()
    pipeline.hook = f"{HOOKS}:no_device_memory"
    assert pipeline.run() == 2, pipeline.said[-4000:]
    said = " ".join(pipeline.said.split())
    assert "one frame does not fit in the memory of cpu" in said
    assert "SIGLIP_DEVICE" in said
    stored = pipeline.stored()
    assert stored.frames == reference.stored.frames
    assert not stored.vectors
    pipeline.hook = ""
    pipeline.finish()
    assert pipeline.stored() == reference.stored
