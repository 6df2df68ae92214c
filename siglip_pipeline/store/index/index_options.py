"""Options: which index is built, and when the live one is replaced."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siglip_pipeline.settings import IndexKind, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """The choices of :func:`.build_index`; the defaults are those of the settings."""

    kind: "IndexKind" = "moments"
    """``auto``: :mod:`~siglip_pipeline.store.index.choice` decides."""
    moment_threshold: float = 0.9
    """A frame starts a moment when its cosine to the moment's running mean is below this."""
    min_recall: float = 0.95
    """Least recall@10 of an index that is published or kept."""
    rebuild_share: float = 0.1
    """Share of changed frames from which the index is rebuilt."""
    table_limit: int = 20_000_000
    """Frames from which the table of frames is divided into partitions; 0 for never."""
    recall_queries: int = 200
    """Picture queries, and text queries, of a recall check."""
    frame_biases: bool = False
    """Also estimate how near each frame is to queries in general, for SIGLIP_RANKING=hubness."""
    promote_automatically: bool = False
    """Switch searches to this model once it covers every video."""

    @classmethod
    def from_settings(cls, settings: "Settings") -> "IndexOptions":
        """Return the options that the environment asks for."""
        return cls(
            kind=settings.index_kind,
            moment_threshold=settings.moment_threshold,
            min_recall=settings.index_min_recall,
            rebuild_share=settings.index_rebuild_share,
            table_limit=settings.frames_table_limit,
            recall_queries=settings.index_recall_queries,
            frame_biases="hubness" in settings.ranking.lower(),
            promote_automatically=settings.promote_automatically,
        )
