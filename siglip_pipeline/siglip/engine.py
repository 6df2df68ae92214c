"""Embed the frames of many videos at the full speed of the device."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from siglip_pipeline.cpu import available_cores
from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import EmbeddingBatch
from siglip_pipeline.siglip.batch_probe import probed_batch_size
from siglip_pipeline.siglip.compiled import CompiledForward, Compiler
from siglip_pipeline.siglip.engine_report import EngineReport, Progress
from siglip_pipeline.siglip.forward import EagerForward, GraphForward
from siglip_pipeline.siglip.jpeg_choice import choose_decoder
from siglip_pipeline.siglip.jpeg_decoders import PictureDecoder
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.pipeline import PipelineRun, Videos
from siglip_pipeline.siglip.runner import BatchSize, cpu_batch_limit

__all__ = ["EmbeddingEngine", "EngineReport", "Progress", "Videos"]


class EmbeddingEngine:
    """Embed the stored frames of videos.

    Args:
        model: a loaded model.
        batch_size: frames per forward pass, or ``auto``: probed on a GPU before the first run, else
            tuned during the run, and kept with the model. It is halved when memory runs out.
        batch_sizes: a JSON file that keeps what was probed for other processes; None for none.
        decode_threads: 0 for one per CPU core.
        decoder: makes the decoder of a run; None chooses the fastest that works here.
        compiler: compiles the vision tower on a CPU during a run; None for never.
        compile_from_seconds: compile when the run is expected to go on for so long; 0 for always.
        on_progress: called from the thread that iterates, at most every ``progress_seconds``, and
            once at the end.
        progress_seconds: the minimum time between two calls of ``on_progress``.
    """

    def __init__(
        self,
        model: SiglipModel,
        *,
        batch_size: int | Literal["auto"] = "auto",
        batch_sizes: Path | None = None,
        decode_threads: int = 0,
        decoder: Callable[[], PictureDecoder] | None = None,
        compiler: Compiler | None = None,
        compile_from_seconds: float = 0.0,
        on_progress: Callable[[Progress], None] | None = None,
        progress_seconds: float = 10.0,
    ) -> None:
        self._model = model
        if batch_size != "auto" and batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be 'auto' or at least 1")
        self._batch_size = batch_size
        self._batch_sizes = batch_sizes
        recipe, device = model.recipe, model.torch_device
        self._decoder = decoder or (
            lambda: choose_decoder(recipe, device, decode_threads or available_cores())
        )
        if isinstance(model.forward, EagerForward):  # else kept from an engine before
            if device.type == "cuda":
                model.forward = GraphForward()
            elif compiler is not None and device.type == "cpu":
                model.forward = CompiledForward(model.vision, compiler)
        self._compile_from_seconds = compile_from_seconds
        self._on_progress = on_progress
        self._progress_seconds = progress_seconds
        self._run: PipelineRun | None = None

    @property
    def report(self) -> EngineReport:
        """Return the figures of the current or last :meth:`embed`.

        Raises:
            RuntimeError: nothing was embedded yet.
        """
        if self._run is None:
            raise RuntimeError("nothing was embedded yet: iterate over embed() first")
        return self._run.report()

    def embed(
        self, videos: Videos, *, frames_total: int | None = None
    ) -> Iterator[EmbeddingBatch | VideoError]:
        """Embed videos; yield one result per video, in their order, as soon as it is complete.

        Batches span videos. Closing the iterator early stops all threads.

        Args:
            videos: pairs of a video's name and its stored frames, in time order. A thread of the
                engine consumes both iterators.
            frames_total: the number of frames, if known, to estimate the remaining time.

        Yields:
            The vectors of the video, or the error.

        Raises:
            EmbeddingError: a single frame does not fit in the memory of the device.
            Exception: whatever ``videos`` itself raises.
        """
        model = self._model
        if self._batch_size != "auto":
            sizes = BatchSize(fixed=self._batch_size)
        else:
            if model.torch_device.type == "cuda" and model.settled_batch_size is None:
                model.settled_batch_size = probed_batch_size(model, kept=self._batch_sizes)
            kind = model.torch_device.type
            most = cpu_batch_limit(model.recipe, model.spec.dim) if kind == "cpu" else None
            sizes = BatchSize(kind=kind, start=model.settled_batch_size, most=most)
        run = PipelineRun(model, sizes, self._decoder())
        self._run = run
        last_progress = time.monotonic()
        self._compile(run, sizes, frames_total)
        with run.started(videos):
            for result in run.results():
                if result is not None:
                    yield result
                self._compile(run, sizes, frames_total)
                if self._on_progress and time.monotonic() - last_progress >= self._progress_seconds:
                    last_progress = time.monotonic()
                    self._on_progress(run.meter.progress(frames_total))
        if sizes.settled:
            model.settled_batch_size = sizes.current
        if self._on_progress:
            self._on_progress(run.meter.progress(frames_total))

    def _compile(self, run: PipelineRun, sizes: BatchSize, frames_total: int | None) -> None:
        """Let the model be compiled if enough of the run is left, once the batch size is known."""
        forward = self._model.forward
        if not isinstance(forward, CompiledForward) or not sizes.settled:
            return
        if self._compile_from_seconds:
            left = run.meter.progress(frames_total).seconds_left
            if left is None or left < self._compile_from_seconds:
                return
        forward.compile_for(sizes.current)
