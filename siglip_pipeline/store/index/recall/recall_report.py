"""The result of a recall check, and whether an index with it may be published."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from siglip_pipeline.store.kinds.modality import Modality
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.text.json_form import to_json

EfSearch = Annotated[int, Field(serialization_alias="effort")]
"""Serialised as ``effort``, the key of reports of earlier versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallCase:
    """The recall and latency of one modality under one filter at one value of ef_search."""

    modality: Modality
    share: float
    """Share of videos that pass the filter; 1 without a filter."""
    ef_search: EfSearch
    rows_read: int
    """Moments, or frames, of the index that were compared exactly."""
    searched: str
    """The kind that was searched: the exact one in small scopes."""
    queries: int
    recall_at_1: float
    recall_at_10: float
    recall_at_100: float | None
    """None in the sweep, which measures recall@10 only."""
    queries_at_100: int
    """Of how many queries: the first ones, or all where every frame in scope is compared."""
    low: float
    """95% bootstrap interval of recall@10, lower end."""
    high: float
    rows_share: float
    """Share of the requested rows that exist and were returned."""
    p50_seconds: float
    p99_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallReport:
    """One recall check."""

    kind: str
    ef_search: EfSearch
    """The default of searches, chosen by the sweep: the largest of both modalities."""
    parameters: Annotated[dict[str, Any], Field(exclude=True)]
    """What searches with this index need to know."""
    frames: int
    cases: tuple[RecallCase, ...]
    """At the default value: both modalities, without and with filters."""
    sweep: tuple[RecallCase, ...]
    """Without a filter, over values of ef_search: recall against latency."""
    table_bytes: int
    """Size of the generation, with all its indexes."""
    ann_bytes: int
    plan: str
    """EXPLAIN of one unfiltered search."""
    uses_index: bool
    rows: int
    """Rows of the generation's table."""
    made_texts: bool
    """The text queries were made from pictures, without a text tower."""
    seconds: float

    @property
    def recall_at_10(self) -> float:
        """Return the lowest recall@10 of all cases."""
        return min((case.recall_at_10 for case in self.cases), default=1.0)

    @property
    def bytes_per_frame(self) -> float:
        """Return the size of the generation per frame that it covers."""
        return self.table_bytes / max(1, self.frames)

    def fault(self, minimum: float) -> str | None:
        """Return why an index with this report must not be published; None if it may."""
        for case in self.cases:
            if case.recall_at_10 < minimum:
                return (
                    f"recall@10 of {case.modality} queries is {case.recall_at_10:.3f} "
                    f"({_filter_text(case.share)}), at least {minimum} is required "
                    "(SIGLIP_INDEX_MIN_RECALL)"
                )
            if case.rows_share < 1:
                return (
                    f"{case.modality} queries ({_filter_text(case.share)}) got only "
                    f"{case.rows_share:.1%} of the rows that there are"
                )
        if not self.uses_index:
            return (
                f"the planner does not use the index of {counted(self.rows, 'row')}:\n{self.plan}"
            )
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the report for metadata, ``--json`` and the history."""
        return to_json(self) | {
            "recall_at_10": self.recall_at_10,
            "bytes_per_frame": round(self.bytes_per_frame, 1),
        }


def _filter_text(share: float) -> str:
    return "no filter" if share == 1 else f"filtered to {share:.1%} of videos"
