"""Check the recall of an index against an exact search, and measure its latency.

The same code measures every kind of index.

Shapes: Q queries, K depth of the truth.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from psycopg import sql

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import counts, tables
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.index.build import Progress
from siglip_pipeline.store.index.recall.kept_truths import keep_truths
from siglip_pipeline.store.index.recall.looks import FIRST_LOOK, is_clear, looks
from siglip_pipeline.store.index.recall.queries import ALIKE, SEED, Query
from siglip_pipeline.store.index.recall.recall_report import RecallCase, RecallReport
from siglip_pipeline.store.index.recall.shares import scopes_of
from siglip_pipeline.store.index.recall.truth import Truth, bootstrap, found_share
from siglip_pipeline.store.index.recall.truth_ahead import DEPTH, continue_truths
from siglip_pipeline.store.kinds import Generation, IndexKind, Scope, index_kind
from siglip_pipeline.store.kinds.clusters import CLOSE
from siglip_pipeline.store.kinds.effort import IN_SCOPE, Effort, chosen_efforts, effort_for_all
from siglip_pipeline.store.kinds.modality import Modality
from siglip_pipeline.store.kinds.moment_index import cluster_centres
from siglip_pipeline.store.search.execution import choose_kind, effort_of
from siglip_pipeline.store.search.near_frames import NearFrames
from siglip_pipeline.store.search.search_run import GROWN_ROWS
from siglip_pipeline.text.in_words import counted

DEPTHS = (1, 10, DEPTH)
# Recall@10 for which the effort is chosen: above what publishing requires by default.
AIM = 0.99
# To find the ten best moments may take more than ten frames do. For that an ``ef_search`` of up to
# this is chosen, in indexes of up to so many moments: decision 0125 has the cost.
WIDEST = 300
MOST_MOMENTS = 100_000
# Of the queries: those for the plot alone, and those to all depths where there is no early stop.
PART = 0.25
# Asked where every frame in scope is compared, which misses nothing: they show that, and the time.
EXACT_QUERIES = 20
# With fewer rows, the planner may rightly prefer a scan to the index.
INDEX_EXPECTED_ROWS = 10_000


def check_recall(
    database: Database,
    target: Generation,
    queries: Sequence[Query],
    *,
    progress: Progress,
    min_recall: float,
    sweep: bool = True,
) -> RecallReport:
    """Measure the recall and latency of a generation, live or not.

    Args:
        database: holds the generation.
        target: the generation.
        queries: queries of both modalities.
        progress: called with sentences about the progress.
        min_recall: a filtered case ends early when its recall@10 is clear of this.
        sweep: also measure other efforts, choose those of searches, and report them for the plot.
    """
    began = time.monotonic()
    # One snapshot, so that the exact and the approximate search see the same frames.
    with database.snapshot(reading=tables.frames(target.model_id)) as connection:
        scopes = scopes_of(connection, target)
        progress(
            f"recall check: exact search for {counted(len(queries), 'query', 'queries')}, "
            f"{counted(len(scopes), 'filter')}"
        )
        truths = continue_truths(connection, target, queries, scopes)
        kind = index_kind(target.kind)
        rows_count, table_bytes, ann_bytes = sizes(connection, target)
        target = replace(target, rows=rows_count)
        asked = _asked(_with_ties(connection, target, queries), scopes, truths)
        sweeps = _sweep(connection, target, asked) if sweep else []
        parameters = _parameters(connection, target, asked, sweeps)
        target = replace(target, parameters=target.parameters | parameters)
        cases = _cases(connection, target, asked, min_recall)
        plan, uses_index = explain(connection, target, queries[0]) if queries else ("", True)
        frames = counts.answered_frames(connection, target.model_id, target.generation)
    keep_truths(database, target.model_id, queries, truths)
    return RecallReport(
        kind=target.kind,
        ef_search=max((c.ef_search for c in cases if c.share == 1), default=kind.default_ef_search),
        parameters=target.parameters,
        frames=frames,
        cases=tuple(cases),
        sweep=tuple(sweeps),
        table_bytes=table_bytes,
        ann_bytes=ann_bytes,
        plan=plan,
        uses_index=uses_index or rows_count < INDEX_EXPECTED_ROWS or not kind.holds_vectors,
        rows=rows_count,
        made_texts=any(query.made for query in queries),
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """The queries of one modality, in the random order that an early stop assumes."""

    modality: Modality
    queries: Sequence[Query]
    wanted: Sequence[tuple[float, Scope, FloatArray]]
    """For each filter: the share of videos, the scope, and the distances [Q, K] of the truth.
    The first is without a filter."""

    @property
    def of_everything_QK(self) -> FloatArray:
        """The distances of the truth without a filter."""
        _, scope, truth_QK = self.wanted[0]
        assert scope.everything
        return truth_QK


def _with_ties(connection: Connection, target: Generation, queries: Sequence[Query]) -> list[Query]:
    """Return the queries; of those that show the picture of a cluster, its frames are alike."""
    centres = cluster_centres(connection, target)
    return [
        replace(query, tie=ALIKE)
        if query.modality == "picture"
        and any(query.embedding_D @ centre_D >= CLOSE for centre_D in centres)
        else query
        for query in queries
    ]


def _asked(
    queries: Sequence[Query], scopes: dict[float, Scope], truths: dict[float, Truth]
) -> list[_Group]:
    """Return the groups of the modalities that there are queries of."""
    order = np.random.default_rng(SEED).permutation(len(queries)).tolist()
    modalities: tuple[Modality, ...] = ("picture", "text")
    groups = []
    for modality in modalities:
        rows = [i for i in order if queries[i].modality == modality]
        if rows:
            wanted = [
                (share, scope, truths[share].distances_QK[rows]) for share, scope in scopes.items()
            ]
            some = [queries[i] for i in rows]
            groups.append(_Group(modality=modality, queries=some, wanted=wanted))
    return groups


def _parameters(
    connection: Connection,
    target: Generation,
    groups: Sequence[_Group],
    sweep: Sequence[RecallCase],
) -> dict[str, Any]:
    """Return the parameters of a generation that tell searches their effort."""
    if not sweep:
        return {}
    chosen = {
        group.modality: choose_effort([case for case in sweep if case.modality == group.modality])
        for group in groups
    }
    if any(query.made for group in groups for query in group.queries):
        return effort_for_all(chosen)  # they say nothing of where texts lie
    for group in groups:
        effort = _for_hits(connection, target, group, chosen[group.modality])
        chosen[group.modality] = _in_scopes(connection, target, group, effort)
    pictures_QD, texts_QD = (
        np.array([query.embedding_D for query in group.queries]) for group in groups
    )
    return chosen_efforts(chosen, pictures_QD, texts_QD)


def _in_scopes(connection: Connection, target: Generation, group: _Group, effort: Effort) -> Effort:
    """Return an effort that goes as far in scopes as the aim needs, if that matters in any."""
    efforts = [replace(effort, in_scope=in_scope) for in_scope in IN_SCOPE]
    concerned = [
        (share, scope, truth_QK)
        for share, scope, truth_QK in group.wanted
        if _walk(target, scope, efforts[0]) != _walk(target, scope, efforts[-1])
    ]
    for less in efforts[:-1] if concerned else ():
        cases = (
            measure(
                connection,
                target,
                group.queries,
                truth_QK,
                share=share,
                scope=scope,
                effort=less,
                depths=(10,),
                rows_each=GROWN_ROWS,
                bound=AIM,
            )
            for share, scope, truth_QK in concerned
        )
        if all(case.recall_at_10 >= AIM for case in cases):
            return less
    return efforts[-1]


def _walk(target: Generation, scope: Scope, effort: Effort) -> tuple[IndexKind, int]:
    kind = choose_kind(target, scope)
    return kind.within(target, scope, effort=effort, rows=max(effort.rows, 10 * GROWN_ROWS))


def _cases(
    connection: Connection, target: Generation, groups: Sequence[_Group], min_recall: float
) -> list[RecallCase]:
    """Measure each modality under each filter, with as many rows as searches for hits read."""
    return [
        measure(
            connection,
            target,
            group.queries,
            truth_QK,
            share=share,
            scope=scope,
            rows_each=GROWN_ROWS,
            bound=min_recall if share < 1 else None,
        )
        for group in groups
        for share, scope, truth_QK in group.wanted
    ]


def _sweep(
    connection: Connection, target: Generation, groups: Sequence[_Group]
) -> list[RecallCase]:
    """Measure rising efforts for each modality, up to the first that reaches the aim.

    One more follows for the plot, with a part of the queries.
    """
    return [
        case
        for group in groups
        for case in _sweep_one(connection, target, group.queries, group.of_everything_QK)
    ]


def _sweep_one(
    connection: Connection, target: Generation, queries: Sequence[Query], truth_QK: FloatArray
) -> list[RecallCase]:
    cases: list[RecallCase] = []
    for effort in index_kind(target.kind).efforts:
        reached = bool(cases) and cases[-1].recall_at_10 >= AIM
        some = math.ceil(PART * len(queries)) if reached else len(queries)
        cases.append(
            measure(
                connection,
                target,
                queries[:some],
                truth_QK[:some],
                effort=effort,
                depths=(10,),
                bound=AIM,
            )
        )
        if reached:
            break
    return cases


def choose_effort(sweep: Sequence[RecallCase]) -> Effort:
    """Return the first effort at which a modality reached the aim, or else the last."""
    case = next((case for case in sweep if case.recall_at_10 >= AIM), sweep[-1])
    return Effort(ef_search=case.ef_search, rows=case.rows_read)


def _for_hits(connection: Connection, target: Generation, group: _Group, effort: Effort) -> Effort:
    """Return an effort from this one on that also finds the ten best moments, if that is cheap.

    Ten hits are ten moments, each by its best frame; the last of them are farther from the query
    than ten frames. The first queries are asked, and compared with a search of every moment.
    """
    kind = index_kind(target.kind)
    if not kind.groups_frames or target.rows > MOST_MOMENTS:
        return effort
    queries = group.queries[: math.ceil(FIRST_LOOK * len(group.queries))]

    def find(kind: IndexKind, effort: Effort) -> list[list[float]]:
        search = NearFrames(
            connection,
            kind,
            target,
            k=10,
            scope=Scope(),
            effort=effort,
            least_rows=10 * GROWN_ROWS,
            best_of_moment=True,
        )
        return [[near.distance for near in search(query.embedding_D)] for query in queries]

    best = [np.array(distances) for distances in find(kind.in_full(target), effort)]
    tried: dict[Effort, float] = {}
    for next_effort in (effort, *kind.efforts[kind.efforts.index(effort) + 1 :]):
        if tried and next_effort.ef_search > WIDEST:
            break
        found = find(kind, next_effort)
        tried[next_effort] = float(
            np.mean([found_share(b, f, 10) for b, f in zip(best, found, strict=True)])
        )
        if tried[next_effort] >= AIM:
            break
    return max(tried, key=lambda effort: tried[effort])  # the first of equals


def measure(
    connection: Connection,
    target: Generation,
    queries: Sequence[Query],
    truth_QK: FloatArray,
    *,
    share: float = 1.0,
    scope: Scope | None = None,
    effort: Effort | None = None,
    depths: Sequence[int] = (10, 100),
    rows_each: int = 0,
    bound: float | None = None,
) -> RecallCase:
    """Search with each query to the first depth, with some to all, and compare with the truth.

    The latency is that of the first depth. At least ``rows_each`` rows of the index are read for
    each frame of a depth. With a bound, stop when recall@10 is clear of it; only queries before the
    first look go to all depths.
    """
    scope = scope or Scope()
    kind = choose_kind(target, scope)
    if kind.name == "exact" != target.kind:
        queries = queries[:EXACT_QUERIES]
    asked: list[_Answer] = []
    for count in looks(len(queries), PART if bound is None else FIRST_LOOK):
        some = slice(len(asked), count)
        if kind.name == "exact":  # its first rows are those of a search for fewer
            depths = depths[-1:]
        elif asked:
            depths = depths[:1]
        asked += _ask(
            connection,
            kind,
            target,
            queries[some],
            truth_QK[some],
            scope,
            effort,
            depths,
            rows_each,
        )
        if bound is not None and is_clear(np.array([one.recalls[10] for one in asked]), bound):
            break
    return _case(asked, modality=queries[0].modality, share=share, searched=kind.name)


@dataclass(slots=True, kw_only=True)
class _Answer:
    """One query, searched with to each of the depths."""

    effort: Effort
    recalls: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Of the first depth."""
    returned: int = 0
    existing: int = 0


def _ask(
    connection: Connection,
    kind: IndexKind,
    target: Generation,
    queries: Sequence[Query],
    truth_QK: FloatArray,
    scope: Scope,
    effort: Effort | None,
    depths: Sequence[int],
    rows_each: int,
) -> list[_Answer]:
    asked = [
        _Answer(effort=effort or effort_of(kind, target, query.embedding_D)) for query in queries
    ]
    for deep in depths:
        for chosen in sorted({one.effort for one in asked}):
            # One more, as the query's own frame may be among them.
            search = NearFrames(
                connection,
                kind,
                target,
                k=deep + 1,
                scope=scope,
                effort=chosen,
                least_rows=rows_each * deep,
            )
            for one, query, truth_K in zip(asked, queries, truth_QK, strict=True):
                if one.effort != chosen:
                    continue
                began = time.perf_counter()
                found = search(query.embedding_D)
                one.seconds = one.seconds or time.perf_counter() - began
                others = [
                    f.distance for f in found if (f.video_id, f.frame_index) != query.held_out
                ]
                one.returned += len(others[:deep])
                one.existing += min(int(np.isfinite(truth_K).sum()), deep)
                for depth in (d for d in DEPTHS if d <= deep):
                    one.recalls.setdefault(
                        depth, found_share(truth_K, others[:deep], depth, tie=query.tie)
                    )
    return asked


def _case(
    asked: Sequence[_Answer], *, modality: Modality, share: float, searched: str
) -> RecallCase:
    """Return the figures of all queries of a case."""
    recalls = {
        depth: np.array([one.recalls[depth] for one in asked if depth in one.recalls])
        for depth in asked[0].recalls
    }
    low, high = bootstrap(recalls[10])
    existing = sum(one.existing for one in asked)
    seconds = [one.seconds for one in asked]
    most = max(one.effort for one in asked)
    return RecallCase(
        modality=modality,
        share=share,
        ef_search=most.ef_search,
        rows_read=most.rows,
        searched=searched,
        queries=len(asked),
        recall_at_1=float(recalls[1].mean()),
        recall_at_10=float(recalls[10].mean()),
        recall_at_100=float(recalls[100].mean()) if 100 in recalls else None,
        queries_at_100=len(recalls[100]) if 100 in recalls else 0,
        low=low,
        high=high,
        rows_share=sum(one.returned for one in asked) / existing if existing else 1.0,
        p50_seconds=float(np.percentile(seconds, 50)),
        p99_seconds=float(np.percentile(seconds, 99)),
    )


def explain(connection: Connection, target: Generation, query: Query) -> tuple[str, bool]:
    """Return the plan of an unfiltered search, and whether it uses the similarity index."""
    kind = index_kind(target.kind)
    effort = effort_of(kind, target, query.embedding_D)
    search = NearFrames(connection, kind, target, k=10, scope=Scope(), effort=effort)
    lines = [line[:200] for line in search.plan(query.embedding_D)]
    name = tables.index_name(target.model_id, target.generation)
    return "\n".join(lines), any(name in line for line in lines)


def sizes(connection: Connection, target: Generation) -> tuple[int, int, int]:
    """Return the rows of the table, its bytes with all indexes, and those of its ANN index."""
    if not index_kind(target.kind).holds_vectors:
        return 0, 0, 0
    table = tables.index(target.model_id, target.generation)
    [row] = connection.execute(
        sql.SQL(
            """
            SELECT (SELECT count(*) FROM {}), pg_total_relation_size(%s::regclass),
            coalesce(pg_relation_size(to_regclass(%s)), 0)
            """
        ).format(table),
        [table.as_string(), tables.index_name(target.model_id, target.generation)],
    )
    return int(row[0]), int(row[1]), int(row[2])
