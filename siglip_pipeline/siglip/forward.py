"""How a batch goes through the vision tower: kernel by kernel, or as one captured CUDA graph.

N pictures, D dimensions.
"""

import functools
import logging
import threading
from collections.abc import Callable
from typing import Protocol

import torch

from siglip_pipeline.errors import with_causes
from siglip_pipeline.siglip.device import is_out_of_memory
from siglip_pipeline.siglip.preprocess import ModelInputs

_log = logging.getLogger(__name__)

_CAPTURING = threading.Lock()
"""Torch allows one capture at a time in a process."""
_TOLERANCE = 0.01
"""Largest difference between a number of a unit vector by graph and by kernels."""


class Encodes(Protocol):
    """A model, as a forward pass needs it."""

    def encode_images(self, inputs: ModelInputs) -> torch.Tensor:
        """Return unit vectors, float32 [N, D]."""


class Forward(Protocol):
    """A way through the vision tower."""

    @property
    def name(self) -> str:
        """Return what is in use: ``eager`` or ``graph``."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return why what was wanted is not in use."""

    def __call__(
        self, model: Encodes, inputs: ModelInputs, *, capacity: int | None
    ) -> torch.Tensor:
        """Return unit vectors, float32 [N, D], on the device.

        Args:
            capacity: the number of frames of a full batch, which may be captured; None for a batch
                of which no other of its size is expected.
        """

    def forget(self, *, above: int) -> None:
        """Free what is kept for batches of more than ``above`` frames."""


class EagerForward:
    """Launch kernel by kernel."""

    name = "eager"
    notes: tuple[str, ...] = ()

    def __call__(
        self, model: Encodes, inputs: ModelInputs, *, capacity: int | None
    ) -> torch.Tensor:
        """Return unit vectors."""
        return model.encode_images(inputs)

    def forget(self, *, above: int) -> None:
        """Do nothing, as nothing is kept."""


Replay = Callable[[], torch.Tensor]
Record = Callable[[Callable[[], torch.Tensor], torch.device], Replay]
"""Captures the kernels that a function launches on a device; returns what runs them again on the
same memory."""


class GraphForward:
    """Replay one captured graph per batch size; a smaller batch is padded.

    A launch of the interpreter waits for the GIL; a graph is a single launch. It is captured when
    the first full batch comes. Partial batches without a graph of their size, and NaFlex batches,
    whose shapes vary, run eagerly. So does everything after a capture has failed, or has given a
    graph that does not compute what the kernels compute.
    """

    def __init__(self, record: Record | None = None) -> None:
        self._record = record or _record_cuda
        self._graphs: dict[int, tuple[torch.Tensor, Replay]] = {}
        self._failure: str | None = None

    @property
    def name(self) -> str:
        """Return ``graph`` once one was captured, else ``eager``."""
        return "graph" if self._graphs else "eager"

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the error of the capture that failed."""
        return () if self._failure is None else (self._failure,)

    def __call__(
        self, model: Encodes, inputs: ModelInputs, *, capacity: int | None
    ) -> torch.Tensor:
        """Return unit vectors; they are valid until the next call."""
        pixels = inputs.arguments["pixel_values"]
        if capacity is None or len(inputs.arguments) > 1 or self._failure is not None:
            return model.encode_images(inputs)
        if capacity not in self._graphs and len(pixels) == capacity:
            self._capture(model, inputs)
        if capacity not in self._graphs or len(pixels) > capacity:
            return model.encode_images(inputs)
        static, replay = self._graphs[capacity]
        with torch.inference_mode():
            static[: len(pixels)].copy_(pixels)
            return replay()[: len(pixels)]

    def forget(self, *, above: int) -> None:
        """Free the graphs of larger batches, with the memory that they compute in."""
        self._graphs = {size: graph for size, graph in self._graphs.items() if size <= above}

    def _capture(self, model: Encodes, inputs: ModelInputs) -> None:
        try:
            with torch.inference_mode():
                pixels = inputs.arguments["pixel_values"]
                wanted_ND = model.encode_images(inputs)
                # Other pixels than those of the check, in the same layout: channels-last pictures
                # are embedded 1.4 times as fast.
                static = -pixels
                own = ModelInputs({"pixel_values": static}, inputs.patches, inputs.padding)
                with _CAPTURING:
                    replay = self._record(lambda: model.encode_images(own), static.device)
                static.copy_(pixels)
                _check(replay, wanted_ND)
        # A graph is an acceleration: without one, the batch is computed all the same.
        except Exception as error:
            # Ending a capture fails after lack of memory.
            if any(map(is_out_of_memory, with_causes(error))):
                raise torch.OutOfMemoryError(str(error)) from error
            self._failure = f"no CUDA graph ({type(error).__name__}: {error}): batches run eagerly"
            _log.warning("%s", self._failure)
            return
        self._graphs[len(static)] = static, replay


def _check(replay: Replay, wanted_ND: torch.Tensor) -> None:
    """Raise if a replay does not compute: torch only warns of a graph without kernels."""
    replay().zero_()  # else the output of the capture could pass for that of the replay
    if not torch.allclose(replay(), wanted_ND, rtol=0, atol=_TOLERANCE, equal_nan=True):
        raise ValueError("its vectors differ from those of the kernels")


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a card's captures; torch's own is of the card that came first."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _record_cuda(run: Callable[[], torch.Tensor], device: torch.device) -> Replay:
    """Capture the kernels that ``run`` launches on a card."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        warming = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        warming.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warming):  # allocations and kernel selection are not captured
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(warming)
        stream = _capture_stream(device)
        # Other threads may allocate page-locked memory meanwhile, which "global" would not allow.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay
