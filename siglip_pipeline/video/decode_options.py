"""Options of decoding and storing frames."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from siglip_pipeline.video.sampling import Sampling

if TYPE_CHECKING:  # children start faster without pydantic
    from siglip_pipeline.settings import Settings

Progress = Callable[[int], None]
"""Called with the number of packets, frames or bytes so far, during the work."""

HASH_BASE_SECONDS: Final = 10.0
"""Time limit of hashing an empty upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """Options of decoding and storing frames; the defaults are those of the settings."""

    longest_side: int = 768
    """Longest side of stored frames, in pixels; larger frames are scaled down."""
    jpeg_quality: int = 90
    stall_seconds: float = 60.0
    """A child that makes no progress for this time is ended."""
    total_seconds: float = 6 * 3600.0
    """A child that takes longer for one video is ended."""
    memory_mib: int = 4096
    """A child that uses more memory is ended."""
    max_upload_gib: float = 256.0
    """A larger upload is refused without being read."""
    hash_seconds_per_gib: float = 60.0
    min_decodable_share: float = 0.5
    deduplicate: bool = False
    """Store near-identical consecutive frames once."""
    threads: int = 0
    """Decoder threads per video; 0 divides the cores among the videos decoded at once."""

    @classmethod
    def from_settings(cls, settings: "Settings") -> "DecodeOptions":
        """Return the options of these settings."""
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
        """Return the time limit, in seconds, of hashing this many bytes."""
        return HASH_BASE_SECONDS + self.hash_seconds_per_gib * size_bytes / 2**30


def frame_recipe(sampling: Sampling, options: DecodeOptions) -> str:
    """Return what determines which frames are stored and how, such as ``fps:1 768px q90``.

    The same source and recipe give the same frames. The recipe is stored with them.
    """
    deduplicated = " deduplicated" if options.deduplicate else ""
    return f"{sampling} {options.longest_side}px q{options.jpeg_quality}{deduplicated}"
