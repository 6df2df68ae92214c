"""What a decoding child is asked to do, and what it answers. No av here: parents import it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import VideoInfo
from siglip_pipeline.video.sampling import Sampling

if TYPE_CHECKING:  # children start faster without pydantic
    from siglip_pipeline.settings import Settings

HASH_BASE_SECONDS: Final = 10.0
"""What hashing may take, however small the upload."""

Progress = Callable[[int], None]
"""Called with the number of packets, frames or bytes so far, as often as there are any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """How frames are decoded and stored; the defaults are those of the settings."""

    longest_side: int = 768
    """Stored frames are shrunk to this, in pixels."""
    jpeg_quality: int = 90
    stall_seconds: float = 60.0
    """A child that makes no progress for so long is ended."""
    total_seconds: float = 6 * 3600.0
    """A child that takes longer for one video is ended."""
    memory_mib: int = 4096
    """A child that takes more memory is ended."""
    max_upload_gib: float = 256.0
    """A larger upload is refused, unread."""
    hash_seconds_per_gib: float = 60.0
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
            total_seconds=settings.decode_total_seconds,
            memory_mib=settings.decode_memory_mib,
            max_upload_gib=settings.max_upload_gib,
            hash_seconds_per_gib=settings.hash_seconds_per_gib,
            min_decodable_share=settings.min_decodable_share,
            deduplicate=settings.deduplicate_frames,
        )

    def hash_seconds(self, size_bytes: int) -> float:
        """How long hashing so many bytes may take."""
        return HASH_BASE_SECONDS + self.hash_seconds_per_gib * size_bytes / 2**30


def frame_recipe(sampling: Sampling, options: DecodeOptions) -> str:
    """All that decides which frames of a video are stored and how, e.g. ``fps:1 768px q90``.

    Frames of the same source and recipe are the same; it is stored with them.
    """
    deduplicated = " deduplicated" if options.deduplicate else ""
    return f"{sampling} {options.longest_side}px q{options.jpeg_quality}{deduplicated}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a child may take for one job."""

    stall_seconds: float = 60.0
    """Without a word from it for so long, it is ended."""
    total_seconds: float
    memory_mib: int = 4096
    threads: int = 1
    file_bytes: int = 2**20
    """A file that it writes grows no further."""


class Job(Protocol):
    """Something for a child to do. It is pickled, so its class must be imported by name."""

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """Do it, in the child.

        Args:
            descriptors: what the parent opened for it; closed afterwards.
            progress: to be called as it goes on.

        Returns:
            What JSON can hold.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractJob:
    """One video to sample; descriptors: the upload, and the draft of its frame file."""

    video: str
    fed_bytes: int | None
    """Size of a remote upload, which the parent reads for the child; None for a local file."""
    draft_folder: Path
    """For messages."""
    sampling: Sampling
    options: DecodeOptions
    source_fingerprint: str

    @property
    def recipe(self) -> str:
        """See :func:`frame_recipe`."""
        return frame_recipe(self.sampling, self.options)

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """A :class:`FrameReport`."""
        from siglip_pipeline.video.extraction import extract
        from siglip_pipeline.video.source import MediaSource

        upload, draft = descriptors
        source = MediaSource.of_descriptor(self.video, upload, fed_bytes=self.fed_bytes)
        with open(draft, "wb", closefd=False) as file:
            return asdict(extract(self, source, file, progress))


@dataclass(frozen=True, slots=True, kw_only=True)
class HashJob:
    """An upload to hash; descriptor: the upload."""

    video: str
    fed_bytes: int | None

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """SHA-256 in hexadecimal."""
        from siglip_pipeline.video.source import MediaSource

        source = MediaSource.of_descriptor(self.video, descriptors[0], fed_bytes=self.fed_bytes)
        return source.sha256(progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureJob:
    """A client's picture to decode; descriptors: the picture, and an empty file for its pixels."""

    name: str
    format: str
    max_pixels: float

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """Height and width of the upright picture."""
        from siglip_pipeline.video.query_picture import decode_picture

        picture, pixels = descriptors
        with open(picture, "rb", closefd=False) as file:
            pixels_HWC = decode_picture(
                file, name=self.name, format=self.format, max_pixels=self.max_pixels
            )
        with open(pixels, "wb", closefd=False) as file:
            file.write(pixels_HWC.data)
        return pixels_HWC.shape[:2]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutJob:
    """A clip to cut; descriptors: the upload, and an empty file for the clip."""

    video: str
    fed_bytes: int | None
    start_seconds: float
    end_seconds: float

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """How many frames it has."""
        from siglip_pipeline.video.cut import cut
        from siglip_pipeline.video.source import MediaSource

        upload, target = descriptors
        source = MediaSource.of_descriptor(self.video, upload, fed_bytes=self.fed_bytes)
        with open(target, "w+b", buffering=0, closefd=False) as file:
            return cut(source, self.start_seconds, self.end_seconds, file, progress)


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


def read_report(video: str, value: Any) -> FrameReport:
    """The report of a child, which is not trusted to give what it should.

    Raises:
        VideoError: it makes no sense.
    """
    from pydantic import TypeAdapter, ValidationError  # here: children start faster without

    try:
        report = TypeAdapter(FrameReport).validate_python(value)
        if report.info.video != video or not re.fullmatch("[0-9a-f]{64}", report.source_sha256):
            raise ValueError
    except (ValidationError, ValueError, ArithmeticError) as error:
        raise VideoError(
            video, "the decoder gave a report that makes no sense; the file is damaged"
        ) from error
    return report
