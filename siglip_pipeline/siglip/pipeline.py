"""One embedding run: its threads and queues.

::

    feeder thread -> decoding threads -> assembler thread -> model workers -> caller
    reads frames     JPEG to uint8       fills batches       one per device   whole videos,
                                         across videos       or core          in order

Every stage works ahead of the next, up to a limit of frames in flight, so that the model never
waits and memory does not grow with the length of a video. Only vectors are kept until a video is
complete. An error of a video (its frames cannot be read, a JPEG is damaged, a vector is not finite)
becomes that video's :class:`VideoError`; an error of the device, or of the caller's own iterator of
videos, is raised.
"""

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import torch

from siglip_pipeline.errors import SiglipPipelineError, VideoError
from siglip_pipeline.records import EmbeddingBatch, FrameBatch
from siglip_pipeline.siglip.collect import Collector
from siglip_pipeline.siglip.device import device_name
from siglip_pipeline.siglip.engine_report import EngineReport, Meter
from siglip_pipeline.siglip.messages import (
    AllRead,
    Begin,
    Chunk,
    Crash,
    End,
    Failed,
    Frame,
    Job,
    Vectors,
)
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.preprocess import Prepared, assemble, prepare
from siglip_pipeline.siglip.runner import BatchOutcome, BatchSize
from siglip_pipeline.siglip.threads import Stopped, Threads
from siglip_pipeline.siglip.workers import plan_workers, work

_log = logging.getLogger(__name__)

_DECODED_AT_ONCE = 8
"""Frames per task of a decoding thread: few enough to spread, enough to amortise the overhead."""

_READY_BATCHES = 2
"""Complete batches that are queued for each model worker."""

Videos = Iterable[tuple[str, Iterable[FrameBatch]]]


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class PipelineRun:
    """One call of :meth:`EmbeddingEngine.embed`: its threads, queues and counts."""

    def __init__(
        self, models: Sequence[SiglipModel], sizes: BatchSize, *, decode_threads: int
    ) -> None:
        self._torch_threads = torch.get_num_threads()
        self._workers = plan_workers(models, self._torch_threads)
        self.meter = Meter(devices=len(models), workers=len(self._workers))
        self._models = models
        self._sizes = sizes
        self._recipe = models[0].recipe
        self._device_resizes = models[0].torch_device.type == "cuda"
        self._decode_threads = decode_threads
        self._failed: set[int] = set()
        self._fed: queue.Queue[Any] = queue.Queue(1024)
        self._ready: queue.Queue[Job | None] = queue.Queue(_READY_BATCHES * len(self._workers))
        self._outbox: queue.Queue[Any] = queue.Queue(1024)
        self._in_flight = 0
        self._budget = threading.Condition()
        self._process = psutil.Process()
        self._peak_rss = 0
        self._threads = Threads(lambda error: self._put(self._outbox, Crash(error)))
        self._put, self._get = self._threads.put, self._threads.get
        self._pool: ThreadPoolExecutor | None = None

    # -- threads ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def started(self, videos: Videos) -> Iterator[None]:
        """Run the threads inside this block; end them when it is left."""
        for model in self._models:
            if model.torch_device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(model.torch_device)
        # One torch thread per picture: splitting so little work makes decoding threads wait.
        self._pool = ThreadPoolExecutor(
            self._decode_threads,
            thread_name_prefix="siglip-decode",
            initializer=torch.set_num_threads,
            initargs=(1,),
        )
        self._threads.spawn("siglip-feed", self._feed, videos)
        self._threads.spawn("siglip-assemble", self._assemble)
        for number, worker in enumerate(self._workers):
            self._threads.spawn(
                f"siglip-{worker.model.device}-{number}",
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
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._threads.join()
            self._pool.shutdown(wait=True)
            self.meter.stop()
            # torch.set_num_threads in the decoding threads also sets the number for new threads.
            torch.set_num_threads(self._torch_threads)

    # -- reading and decoding --------------------------------------------------------------------

    def _feed(self, videos: Videos) -> None:
        for number, (name, batches) in enumerate(videos):
            self._put(self._fed, Begin(number, name))
            count = 0
            try:
                for batch in batches:
                    if number in self._failed:
                        break
                    for frames, jpegs in _chunks(number, count, batch):
                        self._submit(frames, jpegs)
                    count += len(batch)
            except Stopped:
                raise
            # The caller's iterator may raise anything; its error is that of this video.
            except Exception as error:
                if not isinstance(error, SiglipPipelineError):
                    _log.warning("reading the frames of %s failed", name, exc_info=True)
                self._put(self._fed, Failed(number, _reason(error)))
            self._put(self._fed, End(number, count))
        self._put(self._fed, AllRead())

    def _submit(self, frames: list[Frame], jpegs: Sequence[bytes]) -> None:
        assert self._pool is not None
        with self._budget:
            while self._in_flight + len(frames) > self._most_in_flight():
                self._threads.wait(self._budget)
            self._in_flight += len(frames)
        self._put(self._fed, Chunk(frames, self._pool.submit(self._decode, jpegs)))

    def _most_in_flight(self) -> int:
        # Batches being computed, waiting, being filled and being handed to the caller.
        batches = len(self._workers) * (_READY_BATCHES + 2) + 1
        return batches * self._sizes.current + self._decode_threads * _DECODED_AT_ONCE

    def _release(self, frames: int) -> None:
        with self._budget:
            self._in_flight -= frames
            self._budget.notify()

    def _decode(self, jpegs: Sequence[bytes]) -> list[Prepared | ValueError]:
        results: list[Prepared | ValueError] = []
        for jpeg in jpegs:
            try:
                results.append(prepare(jpeg, self._recipe, device_resizes=self._device_resizes))
            except ValueError as error:
                results.append(error)
        return results

    # -- batches ---------------------------------------------------------------------------------

    def _assemble(self) -> None:
        waiting: list[tuple[Frame, Prepared]] = []
        while True:
            entry = self._get(self._fed)
            if isinstance(entry, Chunk):
                waiting += self._decoded(entry)
                while len(waiting) >= (size := self._sizes.current):
                    self._ship(waiting[:size], size)
                    waiting = waiting[size:]
                continue
            if isinstance(entry, AllRead):
                if waiting:
                    self._ship(waiting, self._sizes.current)
                for _ in self._workers:
                    self._put(self._ready, None)
            if isinstance(entry, Failed):
                self._failed.add(entry.video)
            self._put(self._outbox, entry)

    def _decoded(self, chunk: Chunk) -> list[tuple[Frame, Prepared]]:
        good = []
        for frame, picture in zip(chunk.frames, chunk.decoded.result(), strict=True):
            if frame.video in self._failed:
                continue
            if isinstance(picture, Prepared):
                good.append((frame, picture))
            else:
                self._fail(frame, f"its stored JPEG is {picture}; extract the frames again")
        self._release(len(chunk.frames) - len(good))
        return good

    def _fail(self, frame: Frame, what: str) -> None:
        self._failed.add(frame.video)
        reason = f"frame {frame.frame_index} at {frame.time_seconds:.3f} s: {what}"
        self._put(self._outbox, Failed(frame.video, reason))

    def _ship(self, pictures: list[tuple[Frame, Prepared]], capacity: int) -> None:
        batch = assemble([picture for _, picture in pictures], pinned=self._device_resizes)
        self._put(self._ready, Job([frame for frame, _ in pictures], batch, capacity))

    # -- the model -------------------------------------------------------------------------------

    def _next_job(self, *, wait: bool) -> Job | None:
        job: Job | None = self._get(self._ready) if wait else self._ready.get_nowait()
        return job

    def _deliver(self, job: Job, outcome: BatchOutcome, model: SiglipModel) -> None:
        self.meter.batch(
            frames=len(job.frames),
            capacity=max(job.capacity, len(job.frames)),
            busy_seconds=outcome.busy_seconds,
            patches=outcome.patches,
            padding=outcome.padding,
        )
        self._peak_rss = max(self._peak_rss, self._process.memory_info().rss)
        for i in np.flatnonzero(~np.isfinite(outcome.vectors_ND).all(axis=1)):
            remedy = "" if model.dtype == "float32" else "; set SIGLIP_DTYPE=float32"
            self._fail(job.frames[i], f"its vector is not finite in {model.dtype}{remedy}")
        self._put(self._outbox, Vectors(job.frames, outcome.vectors_ND))

    # -- results ---------------------------------------------------------------------------------

    def results(self) -> Iterator[EmbeddingBatch | VideoError | None]:
        """Yield videos in order, as they become complete.

        Yields None periodically so that callers can report progress.

        Raises:
            Exception: the error that ended a thread.
        """
        collector = Collector(dim=self._models[0].spec.dim)
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
                self._release(len(entry.frames))
            collector.take(entry)
            for result in collector.complete():
                self.meter.video(failed=isinstance(result, VideoError))
                yield result
            yield None

    def report(self) -> EngineReport:
        """Return the figures so far."""
        cuda = [m.torch_device for m in self._models if m.torch_device.type == "cuda"]
        peak = sum(torch.cuda.max_memory_allocated(d) for d in cuda) if cuda else self._peak_rss
        return self.meter.report(
            batch_size=self._sizes.current,
            out_of_memory_count=self._sizes.out_of_memory_count,
            device=", ".join(m.device for m in self._models),
            device_name=", ".join(device_name(m.device) for m in self._models),
            dtype=self._models[0].dtype,
            peak_memory_bytes=peak,
        )


def _chunks(
    video: int, position: int, batch: FrameBatch
) -> Iterator[tuple[list[Frame], Sequence[bytes]]]:
    """Split a batch into tasks for the decoding threads."""
    for begin in range(0, len(batch), _DECODED_AT_ONCE):
        end = min(begin + _DECODED_AT_ONCE, len(batch))
        frames = [
            Frame(video, position + i, int(batch.frame_index_N[i]), float(batch.time_seconds_N[i]))
            for i in range(begin, end)
        ]
        yield frames, batch.jpegs[begin:end]


def _reason(error: Exception) -> str:
    if isinstance(error, VideoError):
        return error.reason
    if isinstance(error, SiglipPipelineError):
        return str(error)
    return f"its stored frames cannot be read ({type(error).__name__}: {error})"
