"""What an embedding run did, while it runs and afterwards. No torch here."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

_MOST_POINTS = 240


class ThroughputPoint(NamedTuple):
    """Throughput over one stretch of a run."""

    seconds: float
    """End of the stretch, from the start of the run."""
    frames_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is."""

    frames: int
    frames_total: int | None
    """None where the caller did not say."""
    videos: int
    """Videos handed back, failed ones included."""
    frames_per_second: float
    seconds_left: float | None
    """Estimate; None without ``frames_total`` or before the first frame."""

    def __str__(self) -> str:
        of_total = "" if self.frames_total is None else f" of {self.frames_total:,}"
        left = "" if self.seconds_left is None else f", about {_duration(self.seconds_left)} left"
        return (
            f"{self.frames:,}{of_total} frames embedded, {self.videos:,} videos done, "
            f"{self.frames_per_second:,.1f} frames/s{left}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """Figures of one :meth:`EmbeddingEngine.embed` run, so far or final."""

    frames: int
    """Frames that went through the model."""
    videos: int
    """Videos handed back whole."""
    failed_videos: int
    seconds: float
    """Wall time from the first call to now, or to the end."""
    frames_per_second: float
    model_busy_share: float
    """Share of the wall time in which the model computed, averaged over model workers."""
    padding_share: float
    """Share of the patches fed to the model that held no picture (NaFlex only)."""
    batch_fill_share: float
    """Mean frames per batch, over the batch size it could have had."""
    batch_size: int
    """The size that was settled on, or reached so far."""
    out_of_memory_count: int
    device: str
    """``cuda:N``, ``mps`` or ``cpu``; several are separated by commas."""
    device_name: str
    """The card or processor in words."""
    devices: int
    model_workers: int
    """Threads that ran the model: one per GPU, on a CPU one per core or so."""
    dtype: str
    peak_memory_bytes: int
    """Of the device on cuda, summed over devices; else of this process."""
    throughput: tuple[ThroughputPoint, ...]
    """At most 240 points over the whole run."""


class Meter:
    """Counts while a run goes on. Thread-safe; ``clock`` gives the seconds."""

    def __init__(
        self,
        *,
        devices: int = 1,
        workers: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._devices = devices
        self._workers = workers or devices
        self._start = clock()
        self._end: float | None = None
        self.frames = 0
        self.videos = 0
        self.failed_videos = 0
        self._busy_seconds = 0.0
        self._patches = 0
        self._padding = 0
        self._capacity = 0
        self._stretch_seconds = 1.0
        self._stretches: list[int] = []

    def batch(
        self, *, frames: int, capacity: int, busy_seconds: float, patches: int, padding: int
    ) -> None:
        """Count a batch that ran; ``capacity`` is the batch size it was built for."""
        with self._lock:
            self.frames += frames
            self._capacity += capacity
            self._busy_seconds += busy_seconds
            self._patches += patches
            self._padding += padding
            self._count_in_stretch(frames)

    def video(self, *, failed: bool) -> None:
        """Count a video that is handed back."""
        with self._lock:
            self.videos += not failed
            self.failed_videos += failed

    def stop(self) -> None:
        """Freeze the clock: the run is over."""
        with self._lock:
            self._end = self._end if self._end is not None else self._clock()

    def _elapsed(self) -> float:
        return (self._clock() if self._end is None else self._end) - self._start

    def _count_in_stretch(self, frames: int) -> None:
        stretch = int(self._elapsed() / self._stretch_seconds)
        while stretch >= _MOST_POINTS:  # a long run: half as many points, twice as long each
            padded = [*self._stretches, 0]
            self._stretches = [sum(padded[i : i + 2]) for i in range(0, len(self._stretches), 2)]
            self._stretch_seconds *= 2
            stretch //= 2
        self._stretches += [0] * (stretch + 1 - len(self._stretches))
        self._stretches[stretch] += frames

    def progress(self, frames_total: int | None) -> Progress:
        """How far the run is."""
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
    ) -> EngineReport:
        """The figures so far."""
        with self._lock:
            elapsed = self._elapsed()
            whole = elapsed * self._workers
            points = []
            for i, frames in enumerate(self._stretches):
                begin = i * self._stretch_seconds
                end = min(begin + self._stretch_seconds, elapsed)
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
                devices=self._devices,
                model_workers=self._workers,
                dtype=dtype,
                peak_memory_bytes=peak_memory_bytes,
                throughput=tuple(points),
            )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
