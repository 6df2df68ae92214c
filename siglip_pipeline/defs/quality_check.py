"""Checks of what is found: judged queries after each build, asked queries every night."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from siglip_pipeline.defs.metadata import table
from siglip_pipeline.defs.partitions import asset_key
from siglip_pipeline.errors import JudgedQueriesError, NothingIndexedError
from siglip_pipeline.evaluation.logged_queries import prove_logged_queries
from siglip_pipeline.evaluation.promotion import QualityGate, promote_automatically
from siglip_pipeline.records import Stage
from siglip_pipeline.search import SearchOptions, SearchService
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.quality_results import (
    PastQuality,
    best_quality,
    quality_history,
    record_quality,
)
from siglip_pipeline.store.query_log import QueryLog
from siglip_pipeline.text.json_form import to_json

NAME = "retrieval_quality"
LOGGED_NAME = "recall_of_asked_queries"
_WORSE_SHOWN = 50

QUALITY_CHECKS = (
    (
        dg.AssetCheckSpec(
            NAME,
            asset=asset_key(Stage.INDEX),
            description="The judged queries of SIGLIP_JUDGED_QUERIES are answered about as well as "
            "ever: SIGLIP_QUALITY_METRIC is at most SIGLIP_QUALITY_MARGIN below its best.",
        ),
    )
    if Settings.load().judged_queries
    else ()
)


LOGGED_CHECKS = (
    (
        dg.AssetCheckSpec(
            LOGGED_NAME,
            asset=asset_key("reconciliation"),
            description="Of what an exact search finds for a sample of the last day's queries "
            "(SIGLIP_QUERY_LOG), the index found at least SIGLIP_INDEX_MIN_RECALL.",
        ),
    )
    if Settings.load().query_log
    else ()
)


def check_quality(
    database: Database, model_id: int, gate: QualityGate, *, promoting: bool
) -> dg.AssetCheckResult:
    """Ask the judged queries of a model's index, and compare with earlier results of the same ones.

    Args:
        database: holds the index and the earlier results.
        model_id: the model.
        gate: the queries, the metric and the margin.
        promoting: also make the model the active one, if it answers well enough.
    """
    try:
        report = gate.evaluate(database, ModelStore(database).get(model_id).key)
        objection = promote_automatically(database, model_id, gate) if promoting else None
    except (JudgedQueriesError, NothingIndexedError) as error:
        return dg.AssetCheckResult(check_name=NAME, passed=False, metadata={"reason": str(error)})
    with database.connection() as connection:
        history = quality_history(connection, judged=report.judged, purpose="check")
    best = best_quality(database, gate.metric, judged=report.judged, digest=report.digest)
    record_quality(database, to_json(report), purpose="check")
    value = round(gate.value(report), 6)
    metadata: dict[str, Any] = {
        gate.metric: value,
        "best_so_far": value if best is None else max(best, value),
        "judged_queries": len(report.queries),
        "left_out": report.skipped,
        "metrics": table(
            {
                "tag": tag.tag or "all",
                "metric": value.metric,
                "mean": round(value.mean, 4),
                "low": round(value.low, 4),
                "high": round(value.high, 4),
                "queries": value.queries,
            }
            for tag in report.tags
            for value in tag.metrics
        ),
        "history": _history_table(history, gate.metric),
    }
    if objection is not None:
        metadata["not_promoted"] = objection
    return dg.AssetCheckResult(
        check_name=NAME,
        passed=objection is None and (best is None or value >= best - gate.margin),
        metadata=metadata,
    )


def _history_table(history: Sequence[PastQuality], metric: str) -> dg.MetadataValue[Any]:
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "evaluated_at": past.evaluated_at.isoformat(timespec="seconds"),
                    "model": past.model_key,
                    "generation": past.generation or 0,
                    metric: round(_value(past.report, metric) or 0.0, 4),
                    "queries": past.report["digest"],
                }
            )
            for past in history
        ],
        schema=dg.TableSchema(
            columns=[
                dg.TableColumn("evaluated_at"),
                dg.TableColumn("model"),
                dg.TableColumn("generation", "int"),
                dg.TableColumn(metric, "float"),
                dg.TableColumn("queries"),
            ]
        ),
    )


def _value(report: dict[str, Any], metric: str) -> float | None:
    """Return a metric over all queries from a stored report."""
    found = (m["mean"] for m in report["tags"][0]["metrics"] if m["metric"] == metric)
    return next(found, None)


def check_logged_queries(database: Database, settings: Settings) -> dg.AssetCheckResult:
    """Prove a sample of the queries that people asked yesterday."""
    service = SearchService(database, SearchOptions.from_settings(settings))
    try:
        found = prove_logged_queries(QueryLog(database), service, keep_days=settings.query_log_days)
    except NothingIndexedError as error:
        return dg.AssetCheckResult(
            check_name=LOGGED_NAME, passed=False, metadata={"reason": str(error)}
        )
    metadata: dict[str, Any] = {
        "queries": len(found.queries),
        "recall_at_10": round(found.recall, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
    }
    worse = [query for query in found.queries if query.missed][:_WORSE_SHOWN]
    if worse:
        metadata["incomplete"] = table(
            {"text": query.text, "recall": round(query.recall, 4), "missed": query.missed}
            for query in worse
        )
    return dg.AssetCheckResult(
        check_name=LOGGED_NAME,
        passed=found.recall >= settings.index_min_recall,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=metadata,
    )
