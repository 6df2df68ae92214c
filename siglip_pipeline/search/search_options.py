"""Options of searches: the device that embeds queries, and which hits are hidden."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from siglip_pipeline.search.ranking import Ranking
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.video.decode_options import DecodeOptions

if TYPE_CHECKING:
    from siglip_pipeline.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """The options of a :class:`~siglip_pipeline.search.SearchService`."""

    model: ModelOptions
    """Device and dtype; the index decides which model embeds a query."""
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    """How the clip of a query is decoded."""
    picture_seconds: float = 5.0
    """Time limit for decoding the picture of a query."""
    min_probability: float = 0.0
    """Hide hits that are less probable; 0 hides none."""
    ranking: Ranking = field(default_factory=Ranking)
    """What hits are ranked by."""
    frame_store: SecretUrl = field(default_factory=lambda: SecretUrl("./.siglip/frames"))
    """Folder or fsspec URL of the stored frames, for thumbnails."""
    uploads: str = "SIGLIP_UPLOADS"
    """The place of uploads, for the message that nothing is indexed yet."""

    @classmethod
    def from_settings(cls, settings: "Settings") -> "SearchOptions":
        """Return the options that the environment asks for."""
        return cls(
            model=ModelOptions.from_settings(settings),
            decode=DecodeOptions.from_settings(settings),
            picture_seconds=settings.picture_seconds,
            min_probability=settings.search_min_probability,
            ranking=Ranking.parse(settings.ranking),
            frame_store=settings.frame_store_url,
            uploads=str(settings.uploads),
        )
