"""Keep the similarity index of a model up to date: rebuild, check and publish it."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from siglip_pipeline.embedded_postgres.tuning import BuildSettings
from siglip_pipeline.store import counts, generations
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.frame_biases import update_frame_biases
from siglip_pipeline.store.index import build as building
from siglip_pipeline.store.index import publish as publishing
from siglip_pipeline.store.index import recall
from siglip_pipeline.store.index.choice import AUTO, COMPACT, VARIED, choose_kind_for, way_out
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.partitioning import PartitionReport, partition_if_large
from siglip_pipeline.store.index.recall import RecallReport
from siglip_pipeline.store.index.recall.queries import EmbedTexts, Query, prepare_queries
from siglip_pipeline.store.kinds import Generation, index_kind
from siglip_pipeline.store.kinds.clusters import number_of_clusters
from siglip_pipeline.store.live_index import live_index
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.text.in_words import counted, duration_in_words

logger = logging.getLogger(__name__)

Outcome = Literal["published", "refused", "current", "empty"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """The outcome of a build."""

    outcome: Outcome
    """``published``; ``refused``: the recall check failed, and the live index stays; where there is
    none for search, every frame is compared; ``current``: the live index is good enough, and
    nothing was built; ``empty``: there is no live index, and no frame to make one of."""
    reason: str
    """The reason, as a sentence."""
    kind: str
    generation: int | None
    """The new generation; the live one if nothing was built; None if there is none."""
    active: bool
    """Whether search answers with this model now."""
    changed_share: float
    """Share of the live generation's frames that had changed before."""
    build_seconds: float
    settings: BuildSettings | None
    """Memory and workers of the build."""
    recall: RecallReport | None
    """The recall check; None if there was nothing to check."""
    recall_queries: int = 0
    """Pictures and texts that a recall check asks now."""
    recall_queries_wanted: int = 0
    """Those of ``SIGLIP_INDEX_RECALL_QUERIES``: a small collection has fewer."""
    partitioned: PartitionReport | None = None
    """How the table of frames was partitioned before; None if it was not."""

    @property
    def published(self) -> bool:
        """Return whether a new generation went live."""
        return self.outcome == "published"

    @property
    def clusters(self) -> int:
        """Return how many pictures are kept out of the graph, as many moments show them."""
        return number_of_clusters(self.recall.parameters) if self.recall else 0

    def to_json(self) -> dict[str, Any]:
        """Return the report for metadata and ``--json``."""
        report = self.recall
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "kind": self.kind,
            "generation": self.generation,
            "published": self.published,
            "active": self.active,
            "changed_share": round(self.changed_share, 4),
            "build_seconds": round(self.build_seconds, 3),
            "frames": report.frames if report else 0,
            "rows": report.rows if report else 0,
            "clusters": self.clusters,
            "bytes_per_frame": round(report.bytes_per_frame, 1) if report else None,
            "recall_at_10": report.recall_at_10 if report else None,
            "maintenance_work_mem_bytes": self.settings.memory_bytes if self.settings else None,
            "workers": self.settings.workers if self.settings else None,
            "recall_queries": self.recall_queries,
            "recall_queries_wanted": self.recall_queries_wanted,
            "partitioned": self.partitioned and self.partitioned.to_json(),
        }


def build_index(
    database: Database,
    model_id: int,
    *,
    options: IndexOptions,
    kind: str | None = None,
    progress: building.Progress = logger.info,
    texts: Sequence[str] = (),
    embed_texts: EmbedTexts | None = None,
    force: bool = False,
) -> IndexReport:
    """Bring the index of a model up to date.

    Small changes are in the live index already. A new generation is built beside it if there is
    none, if another kind or threshold is set, if more than ``rebuild_share`` of the frames
    changed, or if recall fell below ``min_recall``. It is published in one transaction, and only if
    its recall check passes; the old one answers until then. ``auto`` builds ``moments`` where
    ``hnsw`` does not pass. Where the first one does not pass, a generation of the kind ``exact``
    answers until another does. The first one is built once there
    is a frame, so that a search before says that nothing is indexed yet. A live one may become
    empty.

    Args:
        database: holds the vectors and the index.
        model_id: the model whose vectors are indexed.
        options: the kind, and when the index is rebuilt.
        kind: replaces ``options.kind``.
        progress: called with sentences about the progress.
        texts: the user's text queries for the recall check.
        embed_texts: the model's text tower, for the recall check; None to make text-like queries
            from pictures.
        force: build even if the live generation is good enough, or the kind is unsafe.

    Raises:
        SimilarityIndexError: another process is building, or the kind is refused.
        ModelNotFoundError: no such model.
    """
    model = ModelStore(database).get(model_id)
    wanted = kind or options.kind
    if wanted != AUTO:
        building.check_kind(database, index_kind(wanted).name, force=force)
    with building.building(database, model_id):
        partitioned = partition_if_large(
            database, model_id, table_limit=options.table_limit, progress=progress
        )
        queries = prepare_queries(
            database,
            model,
            texts=texts,
            embed_texts=embed_texts,
            count=options.recall_queries,
        )
        wanted_queries = 2 * options.recall_queries
        if queries and len(queries) < wanted_queries:
            progress(
                f"recall check: {counted(len(queries), 'query', 'queries')} instead of "
                f"{wanted_queries}, as the collection is small"
            )
        report = _bring_up_to_date(database, model, wanted, queries, options, progress, force=force)
    return replace(
        report,
        recall_queries=len(queries),
        recall_queries_wanted=wanted_queries,
        partitioned=partitioned,
    )


def _bring_up_to_date(
    database: Database,
    model: ModelRow,
    wanted: str,
    queries: Sequence[Query],
    options: IndexOptions,
    progress: building.Progress,
    *,
    force: bool,
) -> IndexReport:
    """Keep the live index if it is good enough, else build; the caller holds the build lock."""
    model_id = model.model_id
    if options.frame_biases and queries:
        progress(f"biases of {counted(update_frame_biases(database, model_id), 'video')} estimated")
    live, changed, is_there = _live(database, model_id)
    if model.moment_threshold != options.moment_threshold:
        building.recut(database, model_id, options.moment_threshold, progress)
    chosen = wanted
    if wanted == AUTO:
        chosen = _choose(database, model_id, live, changed, options, progress)
    if live is None and not queries:
        return _empty(model, chosen)
    why = "requested" if force else _reason_to_build(model, live, changed, chosen, options)
    if why is None and not is_there:
        why = "the database lacks the live one, as after a dump that was restored in part"
    if why is None and live is not None:
        checked = _check_live(database, live, changed, queries, options, progress)
        if checked is None or checked.fault(options.min_recall) is None:
            return _current(model, live, changed, checked)
        why = f"recall fell: {checked.fault(options.min_recall)}"
    progress(f"building a {chosen} index of model {model.name}: {why}")
    report = _build(database, model, chosen, queries, options, changed, progress)
    if report.outcome == "refused" and wanted == AUTO and chosen == VARIED:
        progress(f"auto: {COMPACT}, as {VARIED} was refused")
        why = f"{VARIED}: {report.reason}"
        report = _build(
            database, model, COMPACT, queries, options, changed, progress, instead_of=why
        )
    if report.outcome == "refused" and ModelStore(database).active() is None:
        progress("every frame is compared until an index passes")
        return _without_index(database, model, queries, options, progress, instead_of=report)
    return report


def _without_index(
    database: Database,
    model: ModelRow,
    queries: Sequence[Query],
    options: IndexOptions,
    progress: building.Progress,
    *,
    instead_of: IndexReport,
) -> IndexReport:
    """Publish a generation that compares every frame, so that search answers at all.

    Returns:
        The report of the index that was refused.
    """
    why = f"{instead_of.kind}: {instead_of.reason}"
    changed = instead_of.changed_share
    exact = _build(database, model, "exact", queries, options, changed, progress, instead_of=why)
    if not exact.published:
        return instead_of
    reason = f"{instead_of.reason}; searches compare every frame until an index passes"
    return replace(instead_of, active=exact.active, reason=reason)


def _live(database: Database, model_id: int) -> tuple[Generation | None, float, bool]:
    """Return the live generation, which share of it has changed, and whether its index is there."""
    with database.connection() as connection:
        live = generations.live(connection, model_id)
        if live is None:
            return None, 0.0, False
        changed = generations.changed_share(connection, live)
        return live, changed, generations.has_its_index(connection, live)


def _choose(
    database: Database,
    model_id: int,
    live: Generation | None,
    changed: float,
    options: IndexOptions,
    progress: building.Progress,
) -> str:
    with database.connection() as connection:
        stored = counts.stored(connection, model_id)
    published = live_index(database, model_id)
    refused = published and published.instead_of
    kind, why = choose_kind_for(stored, None if live is None else live.kind)
    if kind == VARIED and refused and changed <= options.rebuild_share:
        kind, why = COMPACT, f"auto: {COMPACT}, as an index was refused ({refused})"
    progress(why)
    return kind


def _reason_to_build(
    model: ModelRow, live: Generation | None, changed: float, kind: str, options: IndexOptions
) -> str | None:
    """Return why a new generation is due; None if the live one suffices."""
    if live is None:
        return "there is none yet"
    if live.kind != kind:
        return f"the live one is of kind {live.kind}"
    if model.moment_threshold != options.moment_threshold:
        return f"moments were cut at {model.moment_threshold}, now {options.moment_threshold}"
    if changed > options.rebuild_share:
        return f"{changed:.1%} of its frames changed, more than {options.rebuild_share:.1%}"
    return None


def _check_live(
    database: Database,
    live: Generation,
    changed: float,
    queries: Sequence[Query],
    options: IndexOptions,
    progress: building.Progress,
) -> RecallReport | None:
    """Check the recall of the live index again if it has changed; None if it has not."""
    if changed == 0 or not queries:
        return None
    report = recall.check_recall(
        database, live, queries, min_recall=options.min_recall, progress=progress, sweep=False
    )
    passed = report.fault(options.min_recall) is None
    recall.record_check(database, live, report, purpose="drift", passed=passed)
    return report


def _current(
    model: ModelRow, live: Generation, changed: float, report: RecallReport | None
) -> IndexReport:
    return IndexReport(
        outcome="current",
        reason=f"generation {live.generation} is good enough: {changed:.1%} of its frames changed",
        kind=live.kind,
        generation=live.generation,
        active=model.is_active,
        changed_share=changed,
        build_seconds=0.0,
        settings=None,
        recall=report,
    )


def _empty(model: ModelRow, kind: str) -> IndexReport:
    return IndexReport(
        outcome="empty",
        reason=f"there are no vectors of model {model.name} yet, so there is nothing to index",
        kind=kind,
        generation=None,
        active=model.is_active,
        changed_share=0.0,
        build_seconds=0.0,
        settings=None,
        recall=None,
    )


def _build(
    database: Database,
    model: ModelRow,
    kind: str,
    queries: Sequence[Query],
    options: IndexOptions,
    changed: float,
    progress: building.Progress,
    *,
    instead_of: str | None = None,
) -> IndexReport:
    began = time.monotonic()
    target = building.begin(database, model.model_id, kind)
    if count := number_of_clusters(target.parameters):
        progress(f"pictures that many moments show, kept out of the graph: {count}")
    try:
        with recall.truth_ahead(database, target, queries):
            rows = building.fill(database, target)
            progress(f"generation {target.generation}: {counted(rows, 'row')} written")
            used = building.create_index(database, target, rows, progress=progress)
        publishing.catch_up_early(database, target)
    except BaseException as error:
        publishing.discard(database, target, f"the build failed: {error}")
        publishing.drop_unused(database, model.model_id)
        raise
    built_seconds = time.monotonic() - began
    report, fault = _check_new(database, target, queries, options, progress)
    active = model.is_active
    if fault is None:
        active = publishing.publish(
            database,
            target,
            report,
            built_seconds,
            promote=options.promote_automatically,
            instead_of=instead_of,
        )
    else:
        publishing.discard(database, target, fault)
    publishing.drop_unused(database, model.model_id)
    reason = f"generation {target.generation} is live"
    if fault is not None:
        reason = f"{fault}; {way_out(kind)}"
    progress(reason if fault is None else f"not published: {reason}")
    return IndexReport(
        outcome="published" if fault is None else "refused",
        reason=reason,
        kind=kind,
        generation=target.generation,
        active=active,
        changed_share=changed,
        build_seconds=built_seconds,
        settings=used,
        recall=report,
    )


def _check_new(
    database: Database,
    target: Generation,
    queries: Sequence[Query],
    options: IndexOptions,
    progress: building.Progress,
) -> tuple[RecallReport | None, str | None]:
    """Check the recall of a new generation; return the report, and why it must not be published."""
    if not queries:
        return None, None
    report = recall.check_recall(
        database, target, queries, min_recall=options.min_recall, progress=progress
    )
    fault = report.fault(options.min_recall)
    recall.record_check(database, target, report, purpose="publish", passed=fault is None)
    progress(
        f"recall@10 {report.recall_at_10:.3f}, {report.bytes_per_frame:.0f} bytes a frame, "
        f"checked in {duration_in_words(report.seconds)}"
    )
    return report, fault
