"""The messages between the threads of an embedding run."""

from concurrent.futures import Future
from dataclasses import dataclass

from siglip_pipeline.records import FloatArray
from siglip_pipeline.siglip.preprocess import ImageBatch, Prepared


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame between decoding and its vector."""

    video: int
    position: int
    """Position among the video's frames, from 0."""
    frame_index: int
    time_seconds: float


@dataclass(frozen=True, slots=True)
class Begin:
    """The feeder opens a video."""

    video: int
    name: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Frames that are being decoded."""

    frames: list[Frame]
    decoded: "Future[list[Prepared | ValueError]]"


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
    """The vectors of a batch, one row per frame."""

    frames: list[Frame]
    vectors_ND: FloatArray


@dataclass(frozen=True, slots=True)
class Job:
    """A batch for the model."""

    frames: list[Frame]
    batch: ImageBatch
    capacity: int
    """The batch size at that time."""


@dataclass(frozen=True, slots=True)
class Crash:
    """An error that is not of one video; raised to the caller."""

    error: BaseException


class AllRead:
    """The caller's videos are exhausted."""
