"""One embedding run: its threads and queues.

::

    feeder thread ----------------> model workers -> caller
    reads frames, fills batches     one per device   whole videos,
    across videos; a decoder        or core          in order
    begins with each

Every stage works ahead of the next, up to a limit of frames in flight, so that the model never
waits and memory does not grow with the length of a video. Only vectors are kept until a video is
complete. An error of a video (its frames cannot be read, a JPEG is damaged, a vector is not finite)
becomes that video's :class:`VideoError`; an error of the device, or of the caller's own iterator of
videos, is raised.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import torch

from siglip_pipeline.errors import SiglipPipelineError, VideoError
from siglip_pipeline.records import EmbeddingBatch, FrameBatch
from siglip_pipeline.siglip.collect import Collector
from siglip_pipeline.siglip.device import device_name
from siglip_pipeline.siglip.engine_report import EngineReport, Meter
from siglip_pipeline.siglip.jpeg_decoders import Decoded, PictureDecoder
from siglip_pipeline.siglip.messages import (
    AllRead,
    Begin,
    Crash,
    End,
    Failed,
    Job,
    Span,
    Vectors,
)
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.runner import BatchOutcome, BatchSize
from siglip_pipeline.siglip.threads import Stopped, Threads
from siglip_pipeline.siglip.workers import plan_workers, work

_log = logging.getLogger(__name__)

_READY_BATCHES = 2
"""Complete batches that are queued for each model worker."""

Videos = Iterable[tuple[str, Iterable[FrameBatch]]]


class PipelineRun:
    """One call of :meth:`EmbeddingEngine.embed`: its threads, queues and counts."""

    def __init__(self, model: SiglipModel, sizes: BatchSize, decoder: PictureDecoder) -> None:
        self._torch_threads = torch.get_num_threads()
        self._workers = plan_workers(model, self._torch_threads)
        self.meter = Meter(workers=len(self._workers))
        self._model = model
        self._sizes = sizes
        self._decoder = decoder
        self._failed: set[int] = set()
        self._ready: queue.Queue[Job | None] = queue.Queue(_READY_BATCHES * len(self._workers))
        self._outbox: queue.Queue[Any] = queue.Queue(1024)
        self._in_flight = 0
        self._budget = threading.Condition()
        self._process = psutil.Process()
        self._peak_rss = 0
        self._threads = Threads(lambda error: self._put(self._outbox, Crash(error)))
        self._put, self._get = self._threads.put, self._threads.get

    # -- threads ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def started(self, videos: Videos) -> Iterator[None]:
        """Run the threads inside this block; end them when it is left."""
        if (device := self._model.torch_device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._threads.spawn("siglip-feed", self._feed, videos)
        for number, worker in enumerate(self._workers):
            self._threads.spawn(
                f"siglip-{self._model.device}-{number}",
                work,
                worker,
                self._sizes,
                self._next_job,
                self._deliver,
            )
        try:
            yield
        finally:
            self._threads.stop()
            self._decoder.close()  # wakes workers that wait for pictures
            self._threads.join()
            self.meter.stop()
            # torch.set_num_threads in the decoding threads also sets the number for new threads.
            torch.set_num_threads(self._torch_threads)

    # -- reading and decoding --------------------------------------------------------------------

    def _feed(self, videos: Videos) -> None:
        filling = _Filling()
        for number, (name, batches) in enumerate(videos):
            self._put(self._outbox, Begin(number, name))
            count = 0
            for batch in self._read(number, name, batches):
                if number in self._failed:
                    break
                self._fill(filling, number, count, batch)
                count += len(batch)
            self._put(self._outbox, End(number, count))
        if filling.jpegs:
            self._ship(filling)
        for _ in self._workers:
            self._put(self._ready, None)
        self._put(self._outbox, AllRead())

    def _read(self, video: int, name: str, batches: Iterable[FrameBatch]) -> Iterator[FrameBatch]:
        """Yield what the caller's iterator gives; its error is that of this video alone."""
        try:
            yield from batches
        # It may raise anything. What is done with a batch raises elsewhere: that ends the run.
        except Exception as error:
            if self._threads.stopping:  # what it reads from may be closed
                raise Stopped from error
            if not isinstance(error, SiglipPipelineError):
                _log.warning("reading the frames of %s failed", name, exc_info=True)
            self._put(self._outbox, Failed(video, _reason(error)))

    def _fill(self, filling: "_Filling", video: int, position: int, batch: FrameBatch) -> None:
        """Add frames of a video; ship each batch that is full."""
        begin = 0
        while begin < len(batch):
            end = min(len(batch), begin + max(1, self._sizes.current - len(filling.jpegs)))
            filling.spans.append(
                Span(
                    video,
                    position + begin,
                    batch.frame_index_N[begin:end],
                    batch.time_seconds_N[begin:end],
                )
            )
            filling.jpegs += batch.jpegs[begin:end]
            begin = end
            if len(filling.jpegs) >= self._sizes.current:
                self._ship(filling)

    def _ship(self, filling: "_Filling") -> None:
        """Begin to decode a batch, and queue it for the model."""
        with self._budget:
            # A batch that was filled before the size shrank may exceed the limit on its own.
            while self._in_flight and self._in_flight + len(filling.jpegs) > self._most_in_flight():
                self._threads.wait(self._budget)
            self._in_flight += len(filling.jpegs)
        decoding = self._decoder.begin(filling.jpegs)
        self._put(self._ready, Job(tuple(filling.spans), decoding, self._sizes.current))
        filling.spans, filling.jpegs = [], []

    def _most_in_flight(self) -> int:
        # Batches being computed, waiting, being filled and being handed to the caller.
        batches = len(self._workers) * (_READY_BATCHES + 2) + 1
        return batches * self._sizes.current

    def _release(self, frames: int) -> None:
        with self._budget:
            self._in_flight -= frames
            self._budget.notify()

    def _fail(self, spans: Sequence[Span], row: int, what: str) -> None:
        """Fail the video of a row of a batch."""
        for span in spans:
            if row < len(span):
                break
            row -= len(span)
        self._failed.add(span.video)
        frame = f"frame {span.frame_index_N[row]} at {span.time_seconds_N[row]:.3f} s"
        self._put(self._outbox, Failed(span.video, f"{frame}: {what}"))

    # -- the model -------------------------------------------------------------------------------

    def _next_job(self, *, wait: bool) -> Job | None:
        job: Job | None = self._get(self._ready) if wait else self._ready.get_nowait()
        return job

    def _deliver(
        self, job: Job, decoded: Decoded, outcome: BatchOutcome, model: SiglipModel
    ) -> None:
        self.meter.batch(
            frames=len(decoded.rows),
            capacity=max(job.capacity, len(job)),
            busy_seconds=outcome.busy_seconds,
            patches=outcome.patches,
            padding=outcome.padding,
        )
        self._peak_rss = max(self._peak_rss, self._process.memory_info().rss)
        for row, error in decoded.errors.items():
            self._fail(job.spans, row, f"its stored JPEG is {error}; extract the frames again")
        for i in np.flatnonzero(~np.isfinite(outcome.vectors_ND).all(axis=1)):
            remedy = "" if model.dtype == "float32" else "; set SIGLIP_DTYPE=float32"
            what = f"its vector is not finite in {model.dtype}{remedy}"
            self._fail(job.spans, decoded.rows[i], what)
        vectors_ND = outcome.vectors_ND
        if decoded.errors:  # rows of videos that have failed
            vectors_ND = np.zeros((len(job), vectors_ND.shape[1]), np.float32)
            vectors_ND[decoded.rows] = outcome.vectors_ND
        self._put(self._outbox, Vectors(job.spans, vectors_ND))

    # -- results ---------------------------------------------------------------------------------

    def results(self) -> Iterator[EmbeddingBatch | VideoError | None]:
        """Yield videos in order, as they become complete.

        Yields None periodically so that callers can report progress.

        Raises:
            Exception: the error that ended a thread.
        """
        collector = Collector(dim=self._model.spec.dim)
        all_read = False
        while not (all_read and collector.empty):
            try:
                entry = self._outbox.get(timeout=0.5)
            except queue.Empty:
                yield None
                continue
            if isinstance(entry, Crash):
                raise entry.error
            if isinstance(entry, AllRead):
                all_read = True
                continue
            if isinstance(entry, Vectors):
                self._release(len(entry.vectors_ND))
            collector.take(entry)
            for result in collector.complete():
                self.meter.video(failed=isinstance(result, VideoError))
                yield result
            yield None

    def report(self) -> EngineReport:
        """Return the figures so far."""
        model = self._model
        on_card = model.torch_device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(model.torch_device) if on_card else self._peak_rss
        return self.meter.report(
            batch_size=self._sizes.current,
            out_of_memory_count=self._sizes.out_of_memory_count,
            device=model.device,
            device_name=device_name(model.device),
            dtype=model.dtype,
            peak_memory_bytes=peak,
            decoder=self._decoder.name,
            forward=model.forward.name,
            notes=(*self._decoder.notes, *model.forward.notes),
        )


@dataclass(slots=True)
class _Filling:
    """The batch that is being filled."""

    spans: list[Span] = field(default_factory=list)
    jpegs: list[bytes] = field(default_factory=list)


def _reason(error: Exception) -> str:
    if isinstance(error, VideoError):
        return error.reason
    if isinstance(error, SiglipPipelineError):
        return str(error)
    return f"its stored frames cannot be read ({type(error).__name__}: {error})"
