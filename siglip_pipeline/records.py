"""One frozen record per hop of a video through the pipeline.

Shape legend, used in array names everywhere in this package:
    N  items (frames, queries)     D  embedding dimensions
    H  image height in pixels      W  image width in pixels      C  colour channels (RGB)
Times are seconds from the start of the stream; ranges are half-open ``[start, end)``.
``video`` is always the path below UPLOADS with POSIX separators.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float32]
    IntArray = NDArray[np.int64]
    SecondsArray = NDArray[np.float64]
    RgbArray = NDArray[np.uint8]
else:  # importing numpy takes a tenth of a second, which `status` does without
    FloatArray = IntArray = SecondsArray = RgbArray = Any


class Stage(StrEnum):
    """A stage of the pipeline, in its order: the name of its asset in Dagster."""

    FRAMES = "video_frames"
    VECTORS = "frame_embeddings"
    INDEX = "similarity_index"
    SIMILARITY = "video_similarity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file below UPLOADS as a listing shows it: nothing has been read from it."""

    path: str
    """Path below UPLOADS, POSIX separators; the identity of the video."""
    size_bytes: int
    modified_at: float | None = None
    """Seconds since the epoch (UTC), when the storage knows."""
    changed_at: float | None = None
    """When the file or its attributes last changed (ctime), of a local file; no program sets it."""
    inode: int | None = None
    """Which file of its file system it is, of a local file: another one under its name shows."""
    etag: str | None = None
    """The object store's entity tag, when there is one."""

    @property
    def fingerprint(self) -> str:
        """Return a text that changes when the listing says that the file may have changed."""
        return self.fingerprints[-1]

    @property
    def fingerprints(self) -> tuple[str, str, str]:
        """Return the fingerprint as versions made it: first without ctime, then without inode."""
        modified_us = "" if self.modified_at is None else _microseconds(self.modified_at)
        short = f"{self.size_bytes}-{self.etag or modified_us}"
        timed = short if self.changed_at is None else f"{short}-{_microseconds(self.changed_at)}"
        return short, timed, timed if self.inode is None else f"{timed}-{self.inode}"

    def has_fingerprint(self, known: str | None) -> bool:
        """Return whether a fingerprint is of this file, as this or an earlier version made it."""
        return known in self.fingerprints


def _microseconds(seconds: float) -> str:
    return str(round(seconds * 1e6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A file below UPLOADS that cannot be registered, and why."""

    path: str
    """As it was listed; it need not be valid Unicode."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What the container says about a video, found without decoding a frame."""

    video: str
    container: str
    """FFmpeg's demuxer name, e.g. ``mov,mp4,m4a,3gp,3g2,mj2``."""
    codec: str
    width: int
    """Pixels as displayed: after rotation and sample aspect ratio."""
    height: int
    rotation_degrees: int
    """Clockwise rotation that a player applies: 0, 90, 180 or 270."""
    time_base: Fraction
    start_pts: int
    duration_seconds: float
    """From the first frame's PTS to the end of the last one."""
    frame_count: int
    """Video packets in the container, counted, not read from a header."""
    frame_rate: float | None
    """Average frames a second; None where it cannot be told (one frame)."""
    size_bytes: int
    media_time_seconds: float = 0.0
    """What a player's clock shows at the first frame: where it lies from the file's own zero, which
    is the start of its earliest track."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBatch:
    """Some stored frames of one video, in time order. Images are still JPEG bytes."""

    video: str
    frame_index_N: IntArray
    """Position of the frame in the video's presentation order, from 0."""
    pts_N: IntArray
    time_seconds_N: SecondsArray
    jpegs: tuple[bytes, ...]

    def __post_init__(self) -> None:
        n = len(self.jpegs)
        for name in ("frame_index_N", "pts_N", "time_seconds_N"):
            array = getattr(self, name)
            if array.shape != (n,):
                raise ValueError(f"{name} has shape {array.shape}, expected ({n},)")

    def __len__(self) -> int:
        return len(self.jpegs)

    def __repr__(self) -> str:
        return f"FrameBatch(video={self.video!r}, frames={len(self)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingBatch:
    """Unit vectors of all sampled frames of one video, in time order."""

    video: str
    frame_index_N: IntArray
    time_seconds_N: SecondsArray
    embeddings_ND: FloatArray

    def __post_init__(self) -> None:
        if self.embeddings_ND.ndim != 2:
            raise ValueError(f"embeddings_ND has shape {self.embeddings_ND.shape}, expected [N, D]")
        n = self.embeddings_ND.shape[0]
        for name in ("frame_index_N", "time_seconds_N"):
            array = getattr(self, name)
            if array.shape != (n,):
                raise ValueError(f"{name} has shape {array.shape}, expected ({n},)")

    def __len__(self) -> int:
        return int(self.embeddings_ND.shape[0])

    def __repr__(self) -> str:
        return f"EmbeddingBatch(video={self.video!r}, embeddings_ND={self.embeddings_ND.shape})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The properties of a model that decide whether two vectors are comparable."""

    name: str
    """Hub id or local folder, as the user wrote it."""
    revision: str | None
    """Resolved commit of a hub model; None for a local folder."""
    key: str
    """Short stable id: equal keys mean comparable vectors."""
    dim: int
    logit_scale: float
    """Natural logarithm of the scale, as stored in the checkpoint."""
    logit_bias: float
    preprocess: dict[str, Any] = field(default_factory=dict)
    """Size, resampling filter, mean, std and text settings, as used; JSON-serialisable."""
