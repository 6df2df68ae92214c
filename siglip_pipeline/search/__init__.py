"""Find moments: by text, by picture, by another moment, by a clip, or by a mix of these.

    from siglip_pipeline.search import SearchFilter, SearchService

    service = SearchService(database, settings)
    service.by_text("a red car", k=5, filter=SearchFilter(videos=("holiday/**",)))

docs/search.md explains what is found and how.
"""

from siglip_pipeline.search.answers import SearchResult
from siglip_pipeline.search.embedder import QueryEmbedder
from siglip_pipeline.search.filters import SearchFilter
from siglip_pipeline.search.labels import LabelReport, LabelScore, VideoLabels
from siglip_pipeline.search.parts import (
    ImagePart,
    MomentPart,
    QueryPart,
    TextPart,
    parse_moment,
    parse_query,
)
from siglip_pipeline.search.service import DEFAULT_K, MAX_K, SearchService

__all__ = [
    "DEFAULT_K",
    "MAX_K",
    "ImagePart",
    "LabelReport",
    "LabelScore",
    "MomentPart",
    "QueryEmbedder",
    "QueryPart",
    "SearchFilter",
    "SearchResult",
    "SearchService",
    "TextPart",
    "VideoLabels",
    "parse_moment",
    "parse_query",
]
