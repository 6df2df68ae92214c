"""The jobs of decoding children. Parents import this module, so it imports no av."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from siglip_pipeline.video.decode_options import DecodeOptions, Progress, frame_recipe
from siglip_pipeline.video.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one job; the parent ends a child that exceeds one."""

    stall_seconds: float = 60.0
    """Longest time without a message of progress."""
    total_seconds: float
    memory_mib: int = 4096
    threads: int = 1
    file_bytes: int = 2**20
    """Largest file that the child may write."""


class Job(Protocol):
    """Work for a child. Jobs are pickled, so the class must be importable by name."""

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """Do the work, in the child.

        Args:
            descriptors: open files from the parent; closed afterwards.
            progress: called during the work.

        Returns:
            A value that JSON can represent.
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

    @property
    def recipe(self) -> str:
        """See :func:`frame_recipe`."""
        return frame_recipe(self.sampling, self.options)

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """Return the fields of a :class:`FrameReport`."""
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
        """Return the SHA-256 in hexadecimal."""
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
        """Write the pixels of the upright picture; return its height and width."""
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
    longest_side: int | None

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """Write the clip; return the fields of a :class:`CutReport`."""
        from siglip_pipeline.video.cut import cut
        from siglip_pipeline.video.source import MediaSource

        upload, target = descriptors
        source = MediaSource.of_descriptor(self.video, upload, fed_bytes=self.fed_bytes)
        with open(target, "w+b", buffering=0, closefd=False) as file:
            report = cut(
                source,
                self.start_seconds,
                self.end_seconds,
                file,
                longest_side=self.longest_side,
                on_progress=progress,
            )
        return asdict(report)
