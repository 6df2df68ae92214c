"""Measure an embedding run, during the run and afterwards. Imports no torch."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from siglip_pipeline.text.in_words import counted, duration_in_words

_MOST_POINTS = 240


class ThroughputPoint(NamedTuple):
    """Throughput over one interval of a run."""

    seconds: float
    """End of the interval, since the start of the run."""
    frames_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a run."""

    frames: int
    frames_total: int | None
    """None if unknown."""
    videos: int
    """Returned videos, including failed ones."""
    frames_per_second: float
    seconds_left: float | None
    """Estimate; None without ``frames_total`` or before the first frame."""

    def __str__(self) -> str:
        frames = counted(self.frames if self.frames_total is None else self.frames_total, "frame")
        of_total = "" if self.frames_total is None else f"{self.frames:,} of "
        left = (
            ""
            if self.seconds_left is None
            else f", about {duration_in_words(self.seconds_left)} left"
        )
        return (
            f"{of_total}{frames} embedded, {counted(self.videos, 'video')} done, "
            f"{self.frames_per_second:,.1f} frames/s{left}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """Figures of one :meth:`EmbeddingEngine.embed` run, so far or final."""

    frames: int
    """Frames that went through the model."""
    videos: int
    """Videos that were embedded."""
    failed_videos: int
    seconds: float
    """Wall time from the first call to now, or to the end."""
    frames_per_second: float
    model_busy_share: float
    """Share of the wall time in which the model computed, averaged over model workers."""
    padding_share: float
    """Share of the model's input patches that are padding (NaFlex only)."""
    batch_fill_share: float
    """Mean number of frames per batch, divided by the batch size."""
    batch_size: int
    """The final size, or the current one during the run."""
    out_of_memory_count: int
    device: str
    """``cuda:N``, ``mps`` or ``cpu``."""
    device_name: str
    """The name of the GPU or processor."""
    model_workers: int
    """Threads that ran the model: one on a GPU, or about one per CPU core."""
    dtype: str
    peak_memory_bytes: int
    """Peak of the GPU, or else of this process."""
    decoder: str
    """What decoded the JPEGs: so many threads or processes, or nvImageCodec."""
    forward: str
    """How the model ran: ``eager``, ``graph`` or ``compiled``."""
    notes: tuple[str, ...]
    """Why a faster decoder or forward pass was not used, where one was wanted."""
    throughput: tuple[ThroughputPoint, ...]
    """At most 240 points over the whole run."""


class Meter:
    """Count during a run. Thread-safe; ``clock`` returns seconds."""

    def __init__(
        self,
        *,
        workers: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._workers = workers
        self._start = clock()
        self._end: float | None = None
        self.frames = 0
        self.videos = 0
        self.failed_videos = 0
        self._busy_seconds = 0.0
        self._patches = 0
        self._padding = 0
        self._capacity = 0
        self._interval_seconds = 1.0
        self._intervals: list[int] = []

    def batch(
        self, *, frames: int, capacity: int, busy_seconds: float, patches: int, padding: int
    ) -> None:
        """Count a batch; ``capacity`` is the batch size at that time."""
        with self._lock:
            self.frames += frames
            self._capacity += capacity
            self._busy_seconds += busy_seconds
            self._patches += patches
            self._padding += padding
            self._count_in_interval(frames)

    def video(self, *, failed: bool) -> None:
        """Count a returned video."""
        with self._lock:
            self.videos += not failed
            self.failed_videos += failed

    def stop(self) -> None:
        """Stop the clock at the end of the run."""
        with self._lock:
            self._end = self._end if self._end is not None else self._clock()

    def _elapsed(self) -> float:
        return (self._clock() if self._end is None else self._end) - self._start

    def _count_in_interval(self, frames: int) -> None:
        interval = int(self._elapsed() / self._interval_seconds)
        while interval >= _MOST_POINTS:  # a long run: half as many intervals, each twice as long
            padded = [*self._intervals, 0]
            self._intervals = [sum(padded[i : i + 2]) for i in range(0, len(self._intervals), 2)]
            self._interval_seconds *= 2
            interval //= 2
        self._intervals += [0] * (interval + 1 - len(self._intervals))
        self._intervals[interval] += frames

    def progress(self, frames_total: int | None) -> Progress:
        """Return the progress of the run."""
        with self._lock:
            elapsed = self._elapsed()
            rate = self.frames / elapsed if elapsed > 0 else 0.0
            left = None
            if frames_total is not None and self.frames:
                left = max(0, frames_total - self.frames) / rate
            return Progress(
                frames=self.frames,
                frames_total=frames_total,
                videos=self.videos + self.failed_videos,
                frames_per_second=rate,
                seconds_left=left,
            )

    def report(
        self,
        *,
        batch_size: int,
        out_of_memory_count: int,
        device: str,
        device_name: str,
        dtype: str,
        peak_memory_bytes: int,
        decoder: str,
        forward: str,
        notes: tuple[str, ...],
    ) -> EngineReport:
        """Return the figures so far."""
        with self._lock:
            elapsed = self._elapsed()
            whole = elapsed * self._workers
            points = []
            for i, frames in enumerate(self._intervals):
                begin = i * self._interval_seconds
                end = min(begin + self._interval_seconds, elapsed)
                if end > begin:
                    points.append(ThroughputPoint(end, frames / (end - begin)))
            return EngineReport(
                frames=self.frames,
                videos=self.videos,
                failed_videos=self.failed_videos,
                seconds=elapsed,
                frames_per_second=self.frames / elapsed if elapsed > 0 else 0.0,
                model_busy_share=min(1.0, self._busy_seconds / whole) if whole > 0 else 0.0,
                padding_share=self._padding / max(1, self._patches + self._padding),
                batch_fill_share=self.frames / max(1, self._capacity),
                batch_size=batch_size,
                out_of_memory_count=out_of_memory_count,
                device=device,
                device_name=device_name,
                model_workers=self._workers,
                dtype=dtype,
                peak_memory_bytes=peak_memory_bytes,
                decoder=decoder,
                forward=forward,
                notes=notes,
                throughput=tuple(points),
            )
