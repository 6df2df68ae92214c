"""The recall check: what an index finds of what an exact search finds, and how fast.

The same code measures every kind of index. The truth for all queries and filters is found in one
pass over the frames. A frame counts as found when it is as near as the last one of the truth, so
that ties, and frames that are copies of each other, are not held against an index.

Shapes: Q queries, K depth of the truth, R rows of a block of frames.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.copy import read_vectors
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.index_kinds import Generation, IndexKind, Scope, index_kind
from siglip_pipeline.store.near_frames import NearFrames
from siglip_pipeline.store.recall_queries import Modality, Query
from siglip_pipeline.store.search import choose_kind, effort_of

SEED = 20_250_117
DEPTHS = (1, 10, 100)
SHARES = (0.001, 0.01, 0.05, 0.3)
# Queries of the sweep over efforts, of each modality: it serves the plot only.
SWEEP_QUERIES = 50
# Recall@10 that the effort of an index is chosen for: above what publishing asks for by default,
# since it is read off a part of the queries.
AIM = 0.99
# Half precision: two frames whose inner products differ by less are as near as each other.
TIE = 1e-5
# Below, scanning the few rows may be quicker than the index, and the planner knows it.
INDEX_EXPECTED_ROWS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallCase:
    """What one kind of query found under one filter at one effort."""

    modality: Modality
    share: float
    """Share of videos that the filter lets through; 1: no filter."""
    effort: int
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
    effort: int
    """The effort that searches take by default: chosen by the sweep."""
    frames: int
    cases: tuple[RecallCase, ...]
    """At the default effort: both modalities, without and with filters."""
    sweep: tuple[RecallCase, ...]
    """Without a filter, over efforts: recall against latency."""
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
        plain = asdict(self)
        return plain | {
            "recall_at_10": self.recall_at_10,
            "bytes_per_frame": round(self.bytes_per_frame, 1),
        }


def _filter_text(share: float) -> str:
    return "no filter" if share == 1 else f"filtered to {share:.1%} of videos"


def check_recall(
    database: Database,
    target: Generation,
    queries: Sequence[Query],
    *,
    progress: Callable[[str], object],
    sweep: bool = True,
) -> RecallReport:
    """Measure a generation, live or not.

    Args:
        database: where.
        target: what to measure.
        queries: of both modalities.
        progress: is told in sentences what happens.
        sweep: also measure other efforts, for the plot.
    """
    began = time.monotonic()
    with database.connection() as connection:
        # One snapshot, so that truth and answers are of the same frames.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        scopes = _scopes(connection, target)
        progress(f"recall check: exact search for {len(queries)} queries, {len(scopes)} filters")
        truth = find_truth(connection, target, queries, list(scopes.values()), max(DEPTHS))
        kind = index_kind(target.kind)
        groups: dict[Modality, list[int]] = {
            modality: [i for i, query in enumerate(queries) if query.modality == modality]
            for modality in ("picture", "text")
        }
        sweeps = _sweep(connection, target, queries, groups, truth[0]) if sweep else []
        if sweeps:
            target = replace(
                target, parameters=target.parameters | {"effort": choose_effort(sweeps)}
            )
        cases = [
            measure(
                connection,
                target,
                [queries[i] for i in rows],
                truth_QK[rows],
                share=share,
                scope=scope,
                depths=(10, 100) if share == 1 else (100,),
            )
            for rows in groups.values()
            if rows
            for (share, scope), truth_QK in zip(scopes.items(), truth, strict=True)
        ]
        plan, uses_index = explain(connection, target, queries[0]) if queries else ("", True)
        rows_count, table_bytes, ann_bytes = sizes(connection, target)
        frames = _frames(connection, target)
    return RecallReport(
        kind=target.kind,
        effort=target.effort or kind.default_effort,
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


def _scopes(connection: Connection, target: Generation) -> dict[float, Scope]:
    """Everything, and random shares of the videos; the same ones for the same videos."""
    rows = connection.execute(
        "SELECT g.video_id, i.frames, i.moments FROM generation_videos g"
        " JOIN ingests i USING (model_id, video_id) WHERE g.model_id = %s AND g.generation = %s"
        " AND g.ingest_id IS NOT NULL ORDER BY g.video_id",
        [target.model_id, target.generation],
    ).fetchall()
    rng = np.random.default_rng(SEED)
    scopes = {1.0: Scope()}
    counts = {len(rows)}
    for share in SHARES:
        count = max(1, round(share * len(rows)))
        if count in counts:  # so few videos that two shares are the same
            continue
        counts.add(count)
        picked = rng.choice(len(rows), size=count, replace=False)
        scopes[share] = Scope(
            video_ids=[rows[i][0] for i in picked],
            frames=sum(rows[i][1] for i in picked),
            moments=sum(rows[i][2] for i in picked),
        )
    return scopes


def _sweep(
    connection: Connection,
    target: Generation,
    queries: Sequence[Query],
    groups: dict[Modality, list[int]],
    truth_QK: FloatArray,
) -> list[RecallCase]:
    """Recall and latency over rising efforts, to one past the first that reaches the aim."""
    cases: list[RecallCase] = []
    for effort in index_kind(target.kind).efforts:
        some = [rows[:SWEEP_QUERIES] for rows in groups.values() if rows]
        cases += [
            measure(
                connection,
                target,
                [queries[i] for i in rows],
                truth_QK[rows],
                effort=effort,
                depths=(10,),
            )
            for rows in some
        ]
        if choose_effort(cases) < effort:
            break
    return cases


def choose_effort(sweep: Sequence[RecallCase]) -> int:
    """The least effort at which every modality reached the aim; the greatest if none did."""
    efforts = sorted({case.effort for case in sweep})
    for effort in efforts:
        if all(case.recall_at_10 >= AIM for case in sweep if case.effort == effort):
            return effort
    return efforts[-1]


def find_truth(
    connection: Connection,
    target: Generation,
    queries: Sequence[Query],
    scopes: Sequence[Scope],
    depth: int,
) -> list[FloatArray]:
    """Distances [Q, K] of the nearest frames, ascending, for each scope; ``inf`` past the last.

    Every frame is compared with every query, in one pass. Vectors and queries are rounded to half
    precision as the database rounds them.
    """
    q = len(queries)
    rounded_QD = np.array([query.embedding_D for query in queries], dtype=np.float16)
    queries_QD = rounded_QD.astype(np.float32).reshape(q, target.dim)
    best = [np.full((q, depth), np.inf, np.float32) for _ in scopes]
    ids = [None if s.video_ids is None else np.array(s.video_ids) for s in scopes]
    held = {query.held_out: i for i, query in enumerate(queries) if query.held_out}
    for video_id_R, frame_index_R, vectors_RD in read_vectors(
        connection, tables.frames(target.model_id), target.dim
    ):
        distances_QR = -(queries_QD @ vectors_RD.T)
        for row, column in _held_out(video_id_R, frame_index_R, held):
            distances_QR[column, row] = np.inf
        for i, wanted in enumerate(ids):
            inside_QR = distances_QR
            if wanted is not None:
                inside_QR = distances_QR[:, np.isin(video_id_R, wanted)]
            both = np.concatenate([best[i], inside_QR], axis=1)
            best[i] = np.partition(both, depth - 1, axis=1)[:, :depth]
    return [np.sort(nearest_QK, axis=1) for nearest_QK in best]


def _held_out(
    video_id_R: NDArray[np.int64],
    frame_index_R: NDArray[np.int64],
    held: dict[tuple[int, int], int],
) -> Iterator[tuple[int, int]]:
    """Positions (row, query) of frames that are queries themselves."""
    for (video_id, frame_index), column in held.items():
        rows = np.flatnonzero((video_id_R == video_id) & (frame_index_R == frame_index))
        for row in rows:
            yield int(row), column


def measure(
    connection: Connection,
    target: Generation,
    queries: Sequence[Query],
    truth_QK: FloatArray,
    *,
    share: float = 1.0,
    scope: Scope | None = None,
    effort: int | None = None,
    depths: Sequence[int] = (10, 100),
) -> RecallCase:
    """Search with each query to each of the depths, and compare with the truth.

    Latency is that of the first depth.
    """
    scope = scope or Scope()
    kind = choose_kind(target, scope)
    effort = effort or effort_of(kind, target)
    exist_Q = np.isfinite(truth_QK).sum(axis=1)
    returned = existing = 0
    recalls: dict[int, NDArray[np.float64]] = {}
    seconds: list[float] = []
    for deep in depths:
        found, spent = _search(connection, kind, target, queries, deep, scope, effort)
        seconds = seconds or spent
        returned += sum(map(len, found))
        existing += int(np.minimum(exist_Q, deep).sum())
        for depth in (d for d in DEPTHS if d <= deep and d not in recalls):
            recalls[depth] = np.array(
                [found_share(t_K, f, depth) for t_K, f in zip(truth_QK, found, strict=True)]
            )
    low, high = bootstrap(recalls[10])
    return RecallCase(
        modality=queries[0].modality,
        share=share,
        effort=effort,
        searched=kind.name,
        queries=len(queries),
        recall_at_1=float(recalls[1].mean()),
        recall_at_10=float(recalls[10].mean()),
        recall_at_100=float(recalls[100].mean()) if 100 in recalls else None,
        low=low,
        high=high,
        rows_share=returned / existing if existing else 1.0,
        p50_seconds=float(np.percentile(seconds, 50)),
        p99_seconds=float(np.percentile(seconds, 99)),
    )


def _search(
    connection: Connection,
    kind: IndexKind,
    target: Generation,
    queries: Sequence[Query],
    k: int,
    scope: Scope,
    effort: int,
) -> tuple[list[list[float]], list[float]]:
    """Distances that each query finds, its own frame left out, and the seconds that it took."""
    # One more, in case the query's own frame is among them.
    search = NearFrames(connection, kind, target, k=k + 1, scope=scope, effort=effort)
    distances, seconds = [], []
    for query in queries:
        began = time.perf_counter()
        found = search(query.embedding_D)
        seconds.append(time.perf_counter() - began)
        others = [f.distance for f in found if (f.video_id, f.frame_index) != query.held_out]
        distances.append(others[:k])
    return distances, seconds


def found_share(truth_K: FloatArray, found: Sequence[float], depth: int) -> float:
    """Recall at a depth: the share of the nearest frames, or of as near ones, that was found.

    Args:
        truth_K: true distances, ascending; ``inf`` where there are no more frames.
        found: distances found, ascending.
        depth: how many of them count.
    """
    wanted = min(depth, int(np.isfinite(truth_K).sum()))
    if wanted == 0:
        return 1.0
    limit = float(truth_K[wanted - 1]) + TIE
    return min(wanted, sum(distance <= limit for distance in found[:depth])) / wanted


def bootstrap(values_Q: NDArray[np.float64], *, seed: int = SEED) -> tuple[float, float]:
    """95% interval of the mean (percentile method), by a thousand resamplings."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values_Q), size=(1000, len(values_Q)))
    low, high = np.percentile(values_Q[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def explain(connection: Connection, target: Generation, query: Query) -> tuple[str, bool]:
    """The plan of an unfiltered search, and whether it reads the similarity index."""
    kind = index_kind(target.kind)
    search = NearFrames(connection, kind, target, k=10, scope=Scope())
    lines = [line[:200] for line in search.plan(query.embedding_D)]
    name = tables.index_name(target.model_id, target.generation)
    return "\n".join(lines), any(name in line for line in lines)


def sizes(connection: Connection, target: Generation) -> tuple[int, int, int]:
    """Rows of a generation's table, its bytes with all indexes, and its similarity index's."""
    if not index_kind(target.kind).holds_vectors:
        return 0, 0, 0
    table = tables.index(target.model_id, target.generation)
    row = connection.execute(
        sql.SQL(
            "SELECT (SELECT count(*) FROM {}), pg_total_relation_size(%s::regclass),"
            " coalesce(pg_relation_size(to_regclass(%s)), 0)"
        ).format(table),
        [table.as_string(), tables.index_name(target.model_id, target.generation)],
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), int(row[2])


def _frames(connection: Connection, target: Generation) -> int:
    row = connection.execute(
        "SELECT coalesce(sum(frames), 0) FROM generation_videos WHERE model_id = %s"
        " AND generation = %s AND ingest_id IS NOT NULL",
        [target.model_id, target.generation],
    ).fetchone()
    assert row is not None
    return int(row[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class PastCheck:
    """A row of the history."""

    generation: int
    kind: str
    purpose: str
    passed: bool
    recall_at_10: float
    checked_at: Any


def record_check(
    database: Database, target: Generation, report: RecallReport, *, purpose: str, passed: bool
) -> None:
    """Keep a report in the history."""
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO recall_checks (model_id, generation, kind, purpose, passed, recall_at_10,"
            " report) VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [
                target.model_id,
                target.generation,
                target.kind,
                purpose,
                passed,
                report.recall_at_10,
                json.dumps(report.to_json()),
            ],
        )


def recall_history(database: Database, model_id: int, *, limit: int = 50) -> list[PastCheck]:
    """The last checks of a model, newest first."""
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT generation, kind, purpose, passed, recall_at_10, checked_at FROM recall_checks"
            " WHERE model_id = %s ORDER BY check_id DESC LIMIT %s",
            [model_id, limit],
        ).fetchall()
    return [
        PastCheck(
            generation=row[0],
            kind=row[1],
            purpose=row[2],
            passed=row[3],
            recall_at_10=row[4],
            checked_at=row[5],
        )
        for row in rows
    ]
