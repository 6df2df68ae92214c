"""Run batches through the vision tower; tune the batch size, and recover from lack of memory."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from siglip_pipeline.errors import EmbeddingError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.siglip.device import give_back_memory, is_out_of_memory
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.preprocess import ImageBatch
from siglip_pipeline.siglip.recipe import Recipe

_START = {"cpu": 4, "mps": 8, "cuda": 32}
_LIMIT = {"cpu": 64, "mps": 128, "cuda": 1024}
# The first batch of a size includes allocations and kernel selection; the fastest one counts.
_TRIALS = 3
_WORTH_DOUBLING = 1.03
"""The larger size is kept if its throughput is at least this many times that of the smaller."""
_MOST_NUMBERS = 2**21
"""Numbers that one layer hands to the next for a batch on a CPU. A larger batch is no faster there,
and each of these numbers takes some 40 to 60 bytes of memory in every worker (decision 0117)."""


def cpu_batch_limit(recipe: Recipe, dim: int) -> int:
    """Return the largest batch worth trying on a CPU: 10 frames for a base model of 256 patches."""
    return max(1, _MOST_NUMBERS // (recipe.most_patches * dim))


class BatchSize:
    """The number of frames of the next batch.

    ``auto`` is tuned on the batches of the run: the size doubles while throughput grows by at least
    3%, and settles on the best. Lack of memory halves it permanently. Shared by the threads of an
    engine.

    Args:
        fixed: the size, where it is not tuned.
        kind: of the device.
        start: the size on which an earlier run settled.
        most: the largest size to try.
    """

    def __init__(
        self,
        *,
        fixed: int | None = None,
        kind: str = "cpu",
        start: int | None = None,
        most: int | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._settled = fixed is not None or start is not None
        self._limit = fixed or min(most or _LIMIT[kind], _LIMIT[kind])
        self._current = fixed or start or min(_START[kind], self._limit)
        self._seconds_per_frame: dict[int, list[float]] = defaultdict(list)
        self.out_of_memory_count = 0

    @property
    def current(self) -> int:
        """Return the number of frames of the next batch."""
        return self._current

    @property
    def settled(self) -> bool:
        """Return whether tuning has ended."""
        return self._settled

    def measured(self, frames: int, seconds: float) -> None:
        """Use the time of a batch for tuning."""
        with self._lock:
            if self._settled or frames != self._current:
                return
            trials = self._seconds_per_frame[frames]
            trials.append(seconds / frames)
            if len(trials) < _TRIALS:
                return
            smaller = self._seconds_per_frame.get(frames // 2)
            if smaller and min(smaller) < min(trials) * _WORTH_DOUBLING:
                self._current, self._settled = frames // 2, True
            elif frames * 2 > self._limit:
                self._settled = True
            else:
                self._current = frames * 2

    def out_of_memory(self, frames: int) -> None:
        """Reduce the size because ``frames`` do not fit in memory."""
        with self._lock:
            self.out_of_memory_count += 1
            self._limit = min(self._limit, max(1, frames // 2))
            self._current = min(self._current, self._limit)
            self._settled = True


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """The result of a batch."""

    vectors_ND: FloatArray
    """One row per picture; a row may be NaN."""
    busy_seconds: float
    """Time in which the device computed."""
    patches: int
    padding: int


def run_batch(
    model: SiglipModel, batch: ImageBatch, sizes: BatchSize, *, capacity: int | None = None
) -> BatchOutcome:
    """Embed one batch and wait for it; in halves if it does not fit in the memory of the device.

    Args:
        capacity: as of :class:`.forward.Forward`.

    Raises:
        EmbeddingError: a single picture does not fit.
    """
    try:
        began = time.perf_counter()
        inputs = model.inputs(batch.to(model.torch_device))
        vectors_ND = model.forward(model, inputs, capacity=capacity).cpu().numpy()
        seconds = time.perf_counter() - began
        sizes.measured(len(batch), seconds)
        return BatchOutcome(vectors_ND, seconds, inputs.patches, inputs.padding)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = error.with_traceback(None)  # which would keep the attempt's tensors alive
    return run_halves(model, batch, sizes, reason)


def run_halves(
    model: SiglipModel, batch: ImageBatch, sizes: BatchSize, reason: Exception
) -> BatchOutcome:
    """Embed a batch that ran out of memory, in two halves.

    Raises:
        EmbeddingError: it is a single picture.
    """
    if len(batch) == 1:
        raise EmbeddingError(
            f"one frame does not fit in the memory of {model.device}: choose a smaller model "
            "than " + repr(model.spec.name) + ", or another SIGLIP_DEVICE"
        ) from reason
    shrink(model, len(batch), sizes)
    first, second = (
        run_batch(model, half, sizes, capacity=sizes.current) for half in batch.split()
    )
    return BatchOutcome(
        np.concatenate([first.vectors_ND, second.vectors_ND]),
        first.busy_seconds + second.busy_seconds,
        first.patches + second.patches,
        first.padding + second.padding,
    )


def shrink(model: SiglipModel, frames: int, sizes: BatchSize) -> None:
    """Make batches smaller after ``frames`` did not fit, and free what was kept for larger ones."""
    sizes.out_of_memory(frames)
    model.forward.forget(above=sizes.current)
    give_back_memory()
