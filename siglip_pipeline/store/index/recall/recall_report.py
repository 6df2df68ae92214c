"""What a recall check found, and whether an index with it may be published."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from siglip_pipeline.store.index.recall.queries import Modality
from siglip_pipeline.text.json_form import to_json

EfSearch = Annotated[int, Field(serialization_alias="effort")]
"""Under the name that reports of earlier versions keep it by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallCase:
    """What one kind of query found under one filter at one value of ef_search."""

    modality: Modality
    share: float
    """Share of videos that the filter lets through; 1: no filter."""
    ef_search: EfSearch
    searched: str
    """The kind that answered: small scopes are looked at frame by frame."""
    queries: int
    recall_at_1: float
    recall_at_10: float
    recall_at_100: float | None
    """None in the sweep, which looks for ten."""
    low: float
    """95% bootstrap interval of recall@10, lower end."""
    high: float
    rows_share: float
    """Rows returned of those asked for that exist."""
    p50_seconds: float
    p99_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallReport:
    """One recall check."""

    kind: str
    ef_search: EfSearch
    """What searches take by default: chosen by the sweep."""
    frames: int
    cases: tuple[RecallCase, ...]
    """At the default value: both modalities, without and with filters."""
    sweep: tuple[RecallCase, ...]
    """Without a filter, over values of ef_search: recall against latency."""
    table_bytes: int
    """What the generation takes, with all its indexes."""
    ann_bytes: int
    plan: str
    """EXPLAIN of one unfiltered search."""
    uses_index: bool
    rows: int
    """Rows of the generation's table."""
    made_texts: bool
    """The text queries were made up from pictures: no text tower was at hand."""
    seconds: float

    @property
    def recall_at_10(self) -> float:
        """The lowest of all cases."""
        return min((case.recall_at_10 for case in self.cases), default=1.0)

    @property
    def bytes_per_frame(self) -> float:
        """What the generation takes for each frame that it answers for."""
        return self.table_bytes / max(1, self.frames)

    def fault(self, minimum: float) -> str | None:
        """Why an index with this report must not be published; None: it may."""
        for case in self.cases:
            if case.recall_at_10 < minimum:
                return (
                    f"recall@10 of {case.modality} queries is {case.recall_at_10:.3f} "
                    f"({_filter_text(case.share)}), at least {minimum} is asked for "
                    "(SIGLIP_INDEX_MIN_RECALL)"
                )
            if case.rows_share < 1:
                return (
                    f"{case.modality} queries ({_filter_text(case.share)}) got only "
                    f"{case.rows_share:.1%} of the rows that there are"
                )
        if not self.uses_index:
            return f"the planner does not use the index of {self.rows} rows:\n{self.plan}"
        return None

    def to_json(self) -> dict[str, Any]:
        """For metadata, ``--json`` and the history."""
        return to_json(self) | {
            "recall_at_10": self.recall_at_10,
            "bytes_per_frame": round(self.bytes_per_frame, 1),
        }


def _filter_text(share: float) -> str:
    return "no filter" if share == 1 else f"filtered to {share:.1%} of videos"
