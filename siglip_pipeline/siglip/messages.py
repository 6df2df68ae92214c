"""The messages between the threads of an embedding run. N frames, D dimensions."""

from dataclasses import dataclass

from siglip_pipeline.records import FloatArray, IntArray, SecondsArray
from siglip_pipeline.siglip.jpeg_decoders import Decoding


@dataclass(frozen=True, slots=True)
class Span:
    """Frames of one video that follow each other, in one batch."""

    video: int
    position: int
    """Position of the first among the video's frames, from 0."""
    frame_index_N: IntArray
    time_seconds_N: SecondsArray

    def __len__(self) -> int:
        return len(self.frame_index_N)


@dataclass(frozen=True, slots=True)
class Begin:
    """The feeder opens a video."""

    video: int
    name: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A video cannot be embedded, with the reason."""

    video: int
    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """The feeder has read all frames of a video."""

    video: int
    frames: int


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of a batch, one row per frame of its spans."""

    spans: tuple[Span, ...]
    vectors_ND: FloatArray


@dataclass(frozen=True, slots=True)
class Job:
    """A batch for the model."""

    spans: tuple[Span, ...]
    decoding: Decoding
    capacity: int
    """The batch size at that time."""

    def __len__(self) -> int:
        return sum(len(span) for span in self.spans)


@dataclass(frozen=True, slots=True)
class Crash:
    """An error that is not of one video; raised to the caller."""

    error: BaseException


class AllRead:
    """The caller's videos are exhausted."""
