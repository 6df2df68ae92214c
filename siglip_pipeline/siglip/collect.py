"""Collect the vectors of batches into videos, in the order of the input."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import EmbeddingBatch, FloatArray
from siglip_pipeline.siglip.messages import Begin, End, Failed, Span, Vectors


@dataclass(slots=True)
class _Video:
    """A video that was not returned yet."""

    name: str
    frames_total: int | None = None
    spans: list[tuple[Span, FloatArray]] = field(default_factory=list)
    received: int = 0
    reason: str | None = None

    @property
    def complete(self) -> bool:
        return self.reason is not None or self.received == self.frames_total

    def result(self, dim: int) -> EmbeddingBatch | VideoError:
        if self.reason is not None:
            return VideoError(self.name, self.reason)
        # With several devices batches are finished in any order.
        spans = sorted(self.spans, key=lambda entry: entry[0].position)
        return EmbeddingBatch(
            video=self.name,
            frame_index_N=_joined([span.frame_index_N for span, _ in spans], np.int64),
            time_seconds_N=_joined([span.time_seconds_N for span, _ in spans], np.float64),
            embeddings_ND=np.concatenate(
                [vectors_ND for _, vectors_ND in spans] or [np.empty((0, dim), np.float32)]
            ),
        )


def _joined(arrays: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays])


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
                video.spans.clear()

    def _take_vectors(self, entry: Vectors) -> None:
        begin = 0
        for span in entry.spans:
            rows_ND = entry.vectors_ND[begin : begin + len(span)]
            begin += len(span)
            video = self._open.get(span.video)
            if video is not None and video.reason is None:
                # A copy where other videos share the batch: it must not be held for a long one.
                video.spans.append((span, rows_ND if len(entry.spans) == 1 else rows_ND.copy()))
                video.received += len(span)

    def complete(self) -> Iterator[EmbeddingBatch | VideoError]:
        """Yield the next videos in order, as long as they are complete or have failed."""
        while (video := self._open.get(self._following)) is not None and video.complete:
            del self._open[self._following]
            self._following += 1
            yield video.result(self._dim)
