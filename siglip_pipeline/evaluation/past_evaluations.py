"""Earlier evaluations as the command, HTTP and the page show them."""

from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter

from siglip_pipeline.evaluation.quality_report import TagQuality
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.quality_results import Purpose, count_quality, quality_history
from siglip_pipeline.text.json_form import DOCUMENTED, Given


@dataclass(frozen=True, slots=True, kw_only=True)
class PastEvaluation:
    """How well judged queries were answered at some time."""

    __pydantic_config__ = DOCUMENTED

    evaluated_at: datetime
    purpose: Purpose
    """By `evaluate`, by the check `retrieval_quality`, or by `models promote`."""
    judged: str
    """Name of the file."""
    digest: str
    """Hash of what was asked and judged: results of equal digests compare."""
    model: str
    model_key: str
    generation: int | None
    """The index generation that was searched."""
    min_probability: float
    """A search answered "nothing here" if no hit was at least as probable; 0: it never did."""
    ranking: Given[str] = None
    """SIGLIP_RANKING, where it named any technique."""
    queries: int
    """Queries that were asked."""
    skipped: int
    """Queries left out because a video of theirs was not indexed."""
    seconds: float
    tags: tuple[TagQuality, ...]
    """All queries first, then each tag."""

    @property
    def overall(self) -> TagQuality:
        """Return the metrics of all queries."""
        return self.tags[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationsDocument:
    """Earlier evaluations, newest first."""

    evaluations: tuple[PastEvaluation, ...]
    total: int
    """In all pages."""


def past_evaluations(
    database: Database,
    *,
    judged: str | None = None,
    purpose: Purpose | None = None,
    limit: int = 50,
    offset: int = 0,
) -> EvaluationsDocument:
    """Return the last evaluations, newest first.

    Args:
        database: holds them.
        judged: of the file of this name only.
        purpose: only those that were made for this.
        limit: so many.
        offset: skip so many of the newest.
    """
    with database.snapshot() as connection:  # a page and the total that agree
        history = quality_history(
            connection, judged=judged, purpose=purpose, limit=limit, offset=offset
        )
        total = count_quality(connection, judged=judged, purpose=purpose)
    return EvaluationsDocument(
        evaluations=tuple(
            _PAST.validate_python(
                {
                    **past.report,
                    "queries": past.queries,
                    "purpose": past.purpose,
                    "evaluated_at": past.evaluated_at,
                }
            )
            for past in history
        ),
        total=total,
    )


_PAST = TypeAdapter(PastEvaluation)
