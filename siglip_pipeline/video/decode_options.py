"""How frames are decoded and stored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from siglip_pipeline.video.sampling import Sampling

if TYPE_CHECKING:  # children start faster without pydantic
    from siglip_pipeline.settings import Settings

Progress = Callable[[int], None]
"""Called with the number of packets, frames or bytes so far, as often as there are any."""

HASH_BASE_SECONDS: Final = 10.0
"""What hashing may take, however small the upload."""


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
