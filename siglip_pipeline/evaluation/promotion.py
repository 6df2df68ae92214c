"""Promote a model only if it answers the judged queries about as well as the active one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from siglip_pipeline.errors import JudgedQueriesError, StoreError
from siglip_pipeline.evaluation.annotations import read_judged
from siglip_pipeline.evaluation.comparing import worse_queries
from siglip_pipeline.evaluation.evaluating import EvaluationOptions, evaluate
from siglip_pipeline.evaluation.metrics import Metric
from siglip_pipeline.evaluation.quality_report import QualityReport
from siglip_pipeline.search import SearchOptions
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.quality_results import record_quality
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.text.json_form import to_json

if TYPE_CHECKING:
    from siglip_pipeline.settings import Settings

_WORSE_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityGate:
    """The judged queries that decide whether quality has fallen."""

    judged: Path
    """A file of judged queries."""
    metric: str
    margin: float
    """How much the metric may fall."""
    search: SearchOptions

    @classmethod
    def from_settings(cls, settings: "Settings") -> "QualityGate | None":
        """Return the gate that the environment asks for; None without judged queries.

        Raises:
            JudgedQueriesError: no metric has the name in SIGLIP_QUALITY_METRIC.
        """
        if settings.judged_queries is None:
            return None
        _ = Metric(settings.quality_metric).parts
        return cls(
            judged=settings.judged_queries,
            metric=settings.quality_metric,
            margin=settings.quality_margin,
            search=SearchOptions.from_settings(settings),
        )

    def evaluate(
        self,
        database: Database,
        model_key: str | None = None,
        *,
        progress: Callable[[str], object] = lambda _: None,
    ) -> QualityReport:
        """Return how well a model answers the queries whose videos are indexed.

        Raises:
            JudgedQueriesError: the file does not fit, or no query of it can be rated.
        """
        report = evaluate(
            database,
            read_judged(self.judged),
            EvaluationOptions(
                search=self.search, model_key=model_key, skip_missing=True, metrics=(self.metric,)
            ),
            progress=progress,
        )
        if report.overall.metric(self.metric) is None:
            raise JudgedQueriesError(
                f"{self.judged}: {self.metric} rates none of its queries; choose another metric "
                "with SIGLIP_QUALITY_METRIC"
            )
        return report

    def value(self, report: QualityReport) -> float:
        """Return the metric over all queries."""
        found = report.overall.metric(self.metric)
        assert found is not None, "evaluate() refuses such a report"
        return found.mean

    def objection(self, active: QualityReport, candidate: QualityReport) -> str | None:
        """Return what speaks against the candidate, with the queries that got worse."""
        before, after = self.value(active), self.value(candidate)
        if after >= before - self.margin:
            return None
        worse = worse_queries(active, candidate, self.metric)
        lines = [
            f"  line {query.line}, {query.query!r}: {query.before:.3f} to {query.after:.3f}"
            for query in worse[:_WORSE_SHOWN]
        ]
        if len(worse) > _WORSE_SHOWN:
            lines.append(f"  and {len(worse) - _WORSE_SHOWN} more")
        return "\n".join(
            (
                f"model {candidate.model_key} answers {self.judged.name} worse than "
                f"{active.model_key}: {self.metric} falls from {before:.3f} to {after:.3f}, and "
                f"SIGLIP_QUALITY_MARGIN allows {self.margin:g}; use --force to promote it "
                f"nevertheless. {counted(len(worse), 'query', 'queries')} got worse:",
                *lines,
            )
        )


def promote(
    database: Database,
    key: str,
    gate: QualityGate | None,
    *,
    force: bool = False,
    progress: Callable[[str], object] = lambda _: None,
) -> ModelRow:
    """Make a model the active one, unless it covers less or answers worse.

    Args:
        database: holds both models.
        key: the key of a model with a published index.
        gate: the judged queries; None to ask none.
        force: promote it nevertheless; what spoke against it is recorded.
        progress: called with sentences about the progress.

    Raises:
        ModelNotFoundError: no such key.
        StoreError: what speaks against it.
        JudgedQueriesError: the file of judged queries does not fit.
    """
    models = ModelStore(database)
    candidate, active = models.get(key), models.active()
    objections = []
    if gate and active and active.key != key and candidate.active_generation is not None:
        reports = [gate.evaluate(database, k, progress=progress) for k in (active.key, key)]
        for report in reports:
            record_quality(database, to_json(report), purpose="promotion")
        if (objection := gate.objection(*reports)) is not None:
            objections.append(objection)
    return models.promote(key, force=force, objections=objections)


def promote_automatically(database: Database, model_id: int, gate: QualityGate) -> str | None:
    """Promote a model that covers every video and answers well enough.

    Returns:
        What speaks against it; None if it is the active model now.
    """
    model = ModelStore(database).get(model_id)
    if model.is_active:
        return None
    try:
        promote(database, model.key, gate)
    except StoreError as error:
        return str(error)
    return None
