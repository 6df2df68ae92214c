"""Find moments: by text, by picture, by another moment, by a clip, or by a mix of these.

    from siglip_pipeline.search import SearchFilter, SearchOptions, SearchService

    service = SearchService(database, SearchOptions.from_settings(settings))
    service.by_text("a red car", k=5, filter=SearchFilter(videos=("holiday/**",)))

docs/search.md explains the results. The room owns queries, from their parsing to their
hits, and labels; it imports `store` and the rooms below it, no Dagster.
"""

from siglip_pipeline.hits import MAX_K, Hit, Moment, QueryShown, SearchFilter, SearchResult
from siglip_pipeline.search.embedder import QueryEmbedder
from siglip_pipeline.search.explaining import Cause, Explanation
from siglip_pipeline.search.label_search import LabelReport, LabelScore, VideoLabels
from siglip_pipeline.search.query_terms import (
    ImageTerm,
    MomentTerm,
    QueryTerm,
    SequenceTerm,
    TextTerm,
    parse_moment,
    parse_query,
)
from siglip_pipeline.search.receipts import Receipt
from siglip_pipeline.search.search_options import SearchOptions
from siglip_pipeline.search.service import DEFAULT_K, SearchService

__all__ = [
    "DEFAULT_K",
    "MAX_K",
    "Cause",
    "Explanation",
    "Hit",
    "ImageTerm",
    "LabelReport",
    "LabelScore",
    "Moment",
    "MomentTerm",
    "QueryEmbedder",
    "QueryShown",
    "QueryTerm",
    "Receipt",
    "SearchFilter",
    "SearchOptions",
    "SearchResult",
    "SearchService",
    "SequenceTerm",
    "TextTerm",
    "VideoLabels",
    "parse_moment",
    "parse_query",
]
