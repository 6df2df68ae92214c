"""What a decoding child is asked to do, and what it answers. No av here: parents import it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from siglip_pipeline.records import VideoInfo
from siglip_pipeline.uploads import UploadStore
from siglip_pipeline.video.sampling import Sampling

if TYPE_CHECKING:  # children start faster without pydantic
    from siglip_pipeline.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """How frames are decoded and stored; the defaults are those of the settings."""

    longest_side: int = 768
    """Stored frames are shrunk to this, in pixels."""
    jpeg_quality: int = 90
    stall_seconds: float = 60.0
    """A child that makes no progress for so long is ended."""
    memory_mib: int = 4096
    """A child that takes more memory is ended."""
    min_decodable_share: float = 0.5
    deduplicate: bool = False
    """Store near-identical consecutive frames once."""
    threads: int = 0
    """Decoder threads per video; 0 shares the cores out among the videos decoded at once."""

    @classmethod
    def from_settings(cls, settings: "Settings") -> "DecodeOptions":
        """The options that the environment asks for."""
        return cls(
            longest_side=settings.frame_longest_side,
            jpeg_quality=settings.jpeg_quality,
            stall_seconds=settings.decode_stall_seconds,
            memory_mib=settings.decode_memory_mib,
            min_decodable_share=settings.min_decodable_share,
            deduplicate=settings.deduplicate_frames,
        )


def frame_recipe(sampling: Sampling, options: DecodeOptions) -> str:
    """All that decides which frames of a video are stored and how, e.g. ``fps:1 768px q90``.

    Frames of the same source and recipe are the same; it is stored with them.
    """
    deduplicated = " deduplicated" if options.deduplicate else ""
    return f"{sampling} {options.longest_side}px q{options.jpeg_quality}{deduplicated}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractJob:
    """One video for a child to decode."""

    video: str
    path: Path | None
    """The local file; None for a remote one."""
    uploads: UploadStore | None
    """Where to open a remote one."""
    draft: Path
    """Where the child writes the frame file."""
    sampling: Sampling
    options: DecodeOptions
    source_fingerprint: str

    @property
    def recipe(self) -> str:
        """See :func:`frame_recipe`."""
        return frame_recipe(self.sampling, self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReport:
    """What came out of one video."""

    info: VideoInfo
    sampling: str
    """The :func:`frame_recipe`."""
    planned_frames: int
    """Frames that the sampling chose."""
    frames: int
    """Frames stored: fewer than planned where the file is damaged."""
    packets: int
    """Packets that should be there, by the container's own index."""
    damaged_packets: int
    """Packets that are missing or did not decode."""
    damaged_share: float
    """Share of the video that is lost, 0 to 1."""
    source_sha256: str
    source_fingerprint: str
    """``Upload.fingerprint`` at the time of reading."""
    decode_cpu_seconds: float
    """CPU time of the child for this video, everything included."""
    wall_seconds: float
    peak_memory_bytes: int
    """The child's resident memory at its largest, up to the end of this video."""

    @property
    def video_seconds_per_second(self) -> float:
        """Seconds of video per second of work."""
        return self.info.duration_seconds / max(self.wall_seconds, 1e-9)
