"""Run batches through the vision tower; tune the batch size, and recover from lack of memory."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from siglip_pipeline.errors import EmbeddingError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.siglip.device import give_back_memory, is_out_of_memory
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.preprocess import ImageBatch

_START = {"cpu": 4, "mps": 8, "cuda": 32}
_LIMIT = {"cpu": 64, "mps": 128, "cuda": 1024}
# The first batch of a size includes allocations and kernel selection; the fastest one counts.
_TRIALS = 3
_WORTH_DOUBLING = 1.03
"""The larger size is kept if its throughput is at least this many times that of the smaller."""


class BatchSize:
    """The number of frames of the next batch.

    ``auto`` is tuned on the batches of the run: the size doubles while throughput grows by at least
    3%, and settles on the best. Lack of memory halves it permanently. Shared by the threads of an
    engine.
    """

    def __init__(self, *, fixed: int | None = None, kind: str = "cpu", start: int | None = None):
        self._lock = threading.Lock()
        self._settled = fixed is not None or start is not None
        self._current = fixed or start or _START[kind]
        self._limit = fixed or _LIMIT[kind]
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


@dataclass(frozen=True, slots=True)
class Launched:
    """A batch that was started on the device and may still be running."""

    batch: ImageBatch
    vectors_ND: torch.Tensor
    patches: int
    padding: int
    seconds: float | None
    """None if the device runs asynchronously; then ``events`` give the time."""
    events: "tuple[torch.cuda.Event, torch.cuda.Event, torch.cuda.Event] | None" = None
    """Computation began; computation ended; the vectors are on the host."""


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def launch(model: SiglipModel, batch: ImageBatch, copied: ImageBatch | None = None) -> Launched:
    """Start a batch; on a GPU return before the result is available.

    Args:
        model: a model whose vision tower is loaded.
        batch: the batch on the host.
        copied: the same batch, if it was copied to the device beforehand.
    """
    if model.torch_device.type == "cuda":
        began, ended = _timed_event(), _timed_event()
        arrived = _timed_event()
        began.record()
        inputs = model.inputs(copied or batch.to(model.torch_device))
        on_device = model.encode_images(inputs)
        ended.record()
        host = torch.empty(on_device.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(on_device, non_blocking=True)
        arrived.record()
        events = (began, ended, arrived)
        return Launched(batch, host, inputs.patches, inputs.padding, None, events)
    begin = time.perf_counter()
    inputs = model.inputs(copied or batch.to(model.torch_device))
    vectors = model.encode_images(inputs).cpu()
    seconds = time.perf_counter() - begin
    return Launched(batch, vectors, inputs.patches, inputs.padding, seconds)


def finish(launched: Launched, sizes: BatchSize) -> BatchOutcome:
    """Wait for a launched batch; return its result, and pass its time to ``sizes``."""
    seconds = launched.seconds
    if seconds is None:
        assert launched.events is not None
        began, ended, arrived = launched.events
        arrived.synchronize()
        seconds = began.elapsed_time(ended) / 1000
    sizes.measured(len(launched.batch), seconds)
    vectors_ND = launched.vectors_ND.numpy()
    if launched.events is not None:
        vectors_ND = (
            vectors_ND.copy()
        )  # page-locked memory must not be held until a long video is complete
    return BatchOutcome(vectors_ND, seconds, launched.patches, launched.padding)


def run_batch(model: SiglipModel, batch: ImageBatch, sizes: BatchSize) -> BatchOutcome:
    """Embed one batch, in halves if it does not fit in the memory of the device.

    Raises:
        EmbeddingError: a single picture does not fit.
    """
    try:
        return finish(launch(model, batch), sizes)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise EmbeddingError(
                f"one frame does not fit in the memory of {model.device}: choose a smaller model "
                "than " + repr(model.spec.name) + ", or another SIGLIP_DEVICE"
            ) from error
    # Outside the except block: the traceback would keep the failed attempt's tensors alive.
    return run_halves(model, batch, sizes)


def run_halves(model: SiglipModel, batch: ImageBatch, sizes: BatchSize) -> BatchOutcome:
    """Embed a batch that ran out of memory, in two halves."""
    sizes.out_of_memory(len(batch))
    give_back_memory()
    first, second = (run_batch(model, half, sizes) for half in batch.split())
    return BatchOutcome(
        np.concatenate([first.vectors_ND, second.vectors_ND]),
        first.busy_seconds + second.busy_seconds,
        first.patches + second.patches,
        first.padding + second.padding,
    )
