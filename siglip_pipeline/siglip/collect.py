"""Collect the vectors of batches into videos, in the order of the input."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import EmbeddingBatch, FloatArray
from siglip_pipeline.siglip.messages import Begin, End, Failed, Frame, Vectors


@dataclass(slots=True)
class _Video:
    """A video that was not returned yet."""

    name: str
    frames_total: int | None = None
    batches: list[tuple[list[Frame], FloatArray]] = field(default_factory=list)
    received: int = 0
    reason: str | None = None

    @property
    def complete(self) -> bool:
        return self.reason is not None or self.received == self.frames_total

    def result(self, dim: int) -> EmbeddingBatch | VideoError:
        if self.reason is not None:
            return VideoError(self.name, self.reason)
        frames = [frame for batch, _ in self.batches for frame in batch]
        # With several devices batches are finished in any order.
        order = np.argsort([frame.position for frame in frames], kind="stable")
        vectors_ND = np.concatenate(
            [v for _, v in self.batches] or [np.empty((0, dim), np.float32)]
        )
        return EmbeddingBatch(
            video=self.name,
            frame_index_N=np.array([frames[i].frame_index for i in order], np.int64),
            time_seconds_N=np.array([frames[i].time_seconds for i in order], np.float64),
            embeddings_ND=vectors_ND[order],
        )


class Collector:
    """Take the messages of a run's threads, and return complete videos.

    Args:
        dim: dimensions of a vector, for videos without frames.
    """

    def __init__(self, *, dim: int) -> None:
        self._dim = dim
        self._open: dict[int, _Video] = {}
        self._following = 0

    @property
    def empty(self) -> bool:
        """Return whether every video that began was returned."""
        return not self._open

    def take(self, entry: Begin | End | Failed | Vectors) -> None:
        """Take a message about a video; ignore messages about videos that were returned."""
        if isinstance(entry, Begin):
            self._open[entry.video] = _Video(entry.name)
        elif isinstance(entry, Vectors):
            self._take_vectors(entry)
        elif entry.video in self._open:
            video = self._open[entry.video]
            if isinstance(entry, End):
                video.frames_total = entry.frames
            else:
                video.reason = video.reason or entry.reason
                video.batches.clear()

    def _take_vectors(self, entry: Vectors) -> None:
        rows_of: dict[int, list[int]] = {}
        for row, frame in enumerate(entry.frames):
            rows_of.setdefault(frame.video, []).append(row)
        for number, rows in rows_of.items():
            video = self._open.get(number)
            if video is not None and video.reason is None:
                video.batches.append(([entry.frames[i] for i in rows], entry.vectors_ND[rows]))
                video.received += len(rows)

    def complete(self) -> Iterator[EmbeddingBatch | VideoError]:
        """Yield the next videos in order, as long as they are complete or have failed."""
        while (video := self._open.get(self._following)) is not None and video.complete:
            del self._open[self._following]
            self._following += 1
            yield video.result(self._dim)
