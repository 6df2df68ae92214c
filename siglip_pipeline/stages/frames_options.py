"""Options of the first stage. Imports no decoder, as `status` reads them too."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from siglip_pipeline import __version__
from siglip_pipeline.video.decode_options import DecodeOptions, frame_recipe
from siglip_pipeline.video.sampling import Sampling

if TYPE_CHECKING:
    from siglip_pipeline.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesOptions:
    """Which frames are sampled, and how they are decoded and stored."""

    sampling: Sampling
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    workers: int = 0
    """Videos decoded at once, one process each; 0 for one per CPU core."""

    @classmethod
    def from_settings(cls, settings: "Settings") -> "FramesOptions":
        """Return the options that the environment asks for."""
        return cls(
            sampling=Sampling.parse(settings.sampling),
            decode=DecodeOptions.from_settings(settings),
            workers=settings.decode_workers,
        )

    @property
    def recipe(self) -> str:
        """Return everything that decides which frames are stored, and how, as one string."""
        return frame_recipe(self.sampling, self.decode)

    @property
    def conditions(self) -> str:
        """Return everything beside the content that decides whether decoding fails."""
        return f"{__version__} {self.sampling} {self.decode!r}"
