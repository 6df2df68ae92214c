"""The order of work on a device: at once on a CPU, on two streams of a CUDA card.

The worker's loop is the same for both: prepare the next batch on the side, hand it over to the
model, and read the vectors of the batch before.
"""

import contextlib
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from siglip_pipeline.records import FloatArray


class Mark(Protocol):
    """A moment in the work of a device."""

    def synchronize(self) -> None:
        """Wait until the device is there."""

    def seconds_since(self, earlier: "Mark") -> float:
        """Return the time between two marks, which the device has passed."""


class Streams(Protocol):
    """How a worker orders the work of its device."""

    ahead: bool
    """Whether a batch still runs when it is launched, so that the next can be prepared."""

    def device(self) -> AbstractContextManager[object]:
        """Make this the current device of the thread."""

    def side(self) -> AbstractContextManager[object]:
        """Run the block beside the model."""

    def hand_over(self, tensors: Iterable[torch.Tensor]) -> None:
        """Let the model wait for what was done on the side, and keep ``tensors`` until it is."""

    def mark(self) -> Mark:
        """Mark the end of all work that the model has."""

    def to_host(self, vectors_ND: torch.Tensor) -> torch.Tensor:
        """Copy vectors to the host; they are there when a later mark is passed."""

    def kept(self, vectors_ND: torch.Tensor) -> FloatArray:
        """Return vectors that are there, in memory that may be held for long."""


@dataclass(frozen=True)
class HostMark:
    """A moment of a device that works at once."""

    at: float

    def synchronize(self) -> None:
        """Return: the work is done."""

    def seconds_since(self, earlier: Mark) -> float:
        """Return the time between two marks."""
        assert isinstance(earlier, HostMark)
        return self.at - earlier.at


class HostStreams:
    """A device whose results are awaited: a CPU, or MPS."""

    ahead = False

    def device(self) -> AbstractContextManager[object]:
        """Do nothing."""
        return contextlib.nullcontext()

    def side(self) -> AbstractContextManager[object]:
        """Do nothing."""
        return contextlib.nullcontext()

    def hand_over(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do nothing."""

    def mark(self) -> Mark:
        """Return the time."""
        return HostMark(time.perf_counter())

    def to_host(self, vectors_ND: torch.Tensor) -> torch.Tensor:
        """Wait for the vectors."""
        return vectors_ND.cpu()

    def kept(self, vectors_ND: torch.Tensor) -> FloatArray:
        """Return the vectors."""
        array: FloatArray = vectors_ND.numpy()
        return array


class _CudaMark:
    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def synchronize(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _CudaMark)
        milliseconds: float = earlier._event.elapsed_time(self._event)
        return milliseconds / 1000


class CudaStreams:
    """A card: decoding, copies and resizing on a stream beside that of the model."""

    ahead = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def device(self) -> AbstractContextManager[object]:
        """Make this the current card."""
        return torch.cuda.device(self._device)

    def side(self) -> AbstractContextManager[object]:
        """Make the side stream current."""
        return torch.cuda.stream(self._side)

    def hand_over(self, tensors: Iterable[torch.Tensor]) -> None:
        """Let the model's stream wait for the side stream."""
        model = torch.cuda.current_stream()
        model.wait_stream(self._side)
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(model)

    def mark(self) -> Mark:
        """Record an event on the model's stream."""
        return _CudaMark()

    def to_host(self, vectors_ND: torch.Tensor) -> torch.Tensor:
        """Start a copy to page-locked memory."""
        host = torch.empty(vectors_ND.shape, dtype=torch.float32, pin_memory=True)
        return host.copy_(vectors_ND, non_blocking=True)

    def kept(self, vectors_ND: torch.Tensor) -> FloatArray:
        """Return a copy, as page-locked memory is scarce."""
        array: FloatArray = vectors_ND.numpy().copy()
        return array


def streams_of(device: torch.device) -> Streams:
    """Return the streams of a device."""
    return CudaStreams(device) if device.type == "cuda" else HostStreams()
