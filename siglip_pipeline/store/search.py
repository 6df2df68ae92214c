"""Search: the moments nearest to a query vector, whatever kind the live index is of."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from pgvector import HalfVector
from psycopg import sql

from siglip_pipeline.errors import NothingIndexedError, QueryError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import generations, tables
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.index_kinds import Generation, IndexKind, Scope, index_kind
from siglip_pipeline.store.models import ModelRow

# Up to so many frames, looking at each is quicker than an index with a filter, and exact.
EXACT_FRAMES = 20_000
ROWS_MAX = 20_000
K_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHit:
    """A moment that answers a query, by its best frame."""

    video: str
    frame_index: int
    time_seconds: float
    score: float
    """Cosine similarity with the query, in [-1, 1]."""
    moment_start_seconds: float
    moment_end_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NearFrame:
    """A frame near a query."""

    video_id: int
    frame_index: int
    time_seconds: float
    distance: float
    """Negative inner product."""


def search_frames(
    database: Database,
    model: ModelRow,
    query_D: FloatArray,
    *,
    k: int,
    videos: Sequence[str] | None = None,
    time_range: tuple[float, float] | None = None,
    uploaded_after: datetime | None = None,
    uploaded_before: datetime | None = None,
    ef_search: int | None = None,
    max_per_video: int | None = None,
) -> list[FrameHit]:
    """The ``k`` moments nearest to a query, one hit each; fewer only when there are fewer.

    Args:
        database: where.
        model: the model that the query was embedded with.
        query_D: unit vector.
        k: at most 1000.
        videos: paths to search in; None: all.
        time_range: seconds within the video, half-open.
        uploaded_after: the upload was modified at this time or later.
        uploaded_before: … before this time.
        ef_search: how hard to look; None: what the index's recall was measured with.
        max_per_video: at most so many moments of one video.

    Returns:
        Hits by falling score; ties by path, then frame.

    Raises:
        NothingIndexedError: the model has no published index.
        QueryError: a value that cannot be searched for.
    """
    _check(model, query_D, k, time_range, max_per_video)
    for attempt in range(3):
        try:
            with database.connection() as connection:
                # One snapshot: a video that is replaced meanwhile is seen before or after.
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                target = generations.live(connection, model.model_id)
                if target is None:
                    raise NothingIndexedError(
                        f"no index is published for model {model.name} yet; materialize "
                        "similarity_index"
                    )
                scope = resolve_scope(
                    connection,
                    model.model_id,
                    videos=videos,
                    time_range=time_range,
                    uploaded_after=uploaded_after,
                    uploaded_before=uploaded_before,
                )
                return _search(connection, target, query_D, k, scope, ef_search, max_per_video)
        except Exception as error:
            # The generation was replaced, and its tables dropped, between two statements.
            cause = error.__cause__ or error
            if attempt == 2 or not isinstance(cause, psycopg.errors.UndefinedTable):
                raise
    raise AssertionError("unreachable")


def _check(
    model: ModelRow,
    query_D: FloatArray,
    k: int,
    time_range: tuple[float, float] | None,
    max_per_video: int | None,
) -> None:
    if query_D.shape != (model.dim,):
        raise QueryError(f"the query has shape {query_D.shape}, model {model.name} ({model.dim},)")
    if not 1 <= k <= K_MAX:
        raise QueryError(f"k={k} is not between 1 and {K_MAX}")
    if time_range is not None and not time_range[0] < time_range[1]:
        raise QueryError(f"time_range={time_range} does not start before it ends")
    if max_per_video is not None and max_per_video < 1:
        raise QueryError(f"max_per_video={max_per_video} is less than 1")


def resolve_scope(
    connection: Connection,
    model_id: int,
    *,
    videos: Sequence[str] | None = None,
    time_range: tuple[float, float] | None = None,
    uploaded_after: datetime | None = None,
    uploaded_before: datetime | None = None,
) -> Scope:
    """The videos that pass the filters, and how many frames they hold.

    Raises:
        QueryError: naming videos that are not known.
    """
    if videos is None and uploaded_after is None and uploaded_before is None:
        return Scope(time_range=time_range)
    rows = connection.execute(
        "SELECT v.path, v.video_id, i.frames, i.moments,"
        " (%(after)s::timestamptz IS NULL OR v.modified_at >= %(after)s)"
        " AND (%(before)s::timestamptz IS NULL OR v.modified_at < %(before)s)"
        " FROM videos v LEFT JOIN ingests i ON i.video_id = v.video_id AND i.model_id = %(model)s"
        " WHERE %(videos)s::text[] IS NULL OR v.path = ANY(%(videos)s)",
        {
            "after": uploaded_after,
            "before": uploaded_before,
            "model": model_id,
            "videos": None if videos is None else list(videos),
        },
    ).fetchall()
    unknown = sorted(set(videos or ()) - {row[0] for row in rows})
    if unknown:
        raise QueryError(f"no video {unknown[0]!r} ({len(unknown)} of {len(videos or ())} unknown)")
    inside = [row[1:4] for row in rows if row[2] is not None and row[4]]
    return Scope(
        video_ids=[video_id for video_id, _, _ in inside],
        frames=sum(frames for _, frames, _ in inside),
        moments=sum(moments for _, _, moments in inside),
        time_range=time_range,
    )


def _search(
    connection: Connection,
    target: Generation,
    query_D: FloatArray,
    k: int,
    scope: Scope,
    effort: int | None,
    max_per_video: int | None,
) -> list[FrameHit]:
    kind = choose_kind(target, scope)
    rows = max(2 * k, effort or effort_of(kind, target))
    while True:
        hits, looked_at = _hits(connection, kind, target, query_D, rows, scope, effort)
        hits = _per_video(hits, max_per_video)
        if len(hits) >= k:
            return hits[:k]
        if kind.name == "exact" and looked_at < rows:
            return hits
        if looked_at < rows or rows >= ROWS_MAX:
            # The index has no more to say, but there may be more: only looking everywhere tells.
            kind = index_kind("exact")
        rows *= 4


def choose_kind(target: Generation, scope: Scope) -> IndexKind:
    """The live index, or none at all where so little is in scope that looking at it is quicker."""
    if scope.video_ids is not None and scope.frames <= EXACT_FRAMES:
        return index_kind("exact")
    return index_kind(target.kind)


def effort_of(kind: IndexKind, target: Generation) -> int:
    """How hard to look when nobody says."""
    if kind.name == target.kind and target.effort is not None:
        return target.effort
    return kind.default_effort


def _hits(
    connection: Connection,
    kind: IndexKind,
    target: Generation,
    query_D: FloatArray,
    rows: int,
    scope: Scope,
    effort: int | None,
) -> tuple[list[FrameHit], int]:
    """Hits in order, one per moment, and how many rows they were made of."""
    effort = effort or effort_of(kind, target)
    apply_settings(connection, kind, rows=rows, scope=scope, effort=effort)
    query = sql.SQL(
        "WITH near AS MATERIALIZED ({near}) SELECT v.path, n.frame_index, n.time_seconds,"
        " -n.distance, m.start_seconds, m.end_seconds, m.moment FROM near n"
        " JOIN videos v USING (video_id) JOIN LATERAL (SELECT moment, start_seconds, end_seconds"
        " FROM {moments} m WHERE m.video_id = n.video_id"
        " AND n.frame_index BETWEEN m.first_frame AND m.last_frame LIMIT 1) m ON true"
        " ORDER BY n.distance, v.path, n.frame_index"
    ).format(
        near=kind.near(target, rows=rows, scope=scope, best_of_moment=True),
        moments=tables.moments(target.model_id),
    )
    found = execute(connection, query, kind, target, query_D, scope).fetchall()
    hits: dict[tuple[str, int], FrameHit] = {}
    for path, frame, time_seconds, score, start, end, moment in found:
        if (path, moment) not in hits:
            hits[path, moment] = FrameHit(
                video=path,
                frame_index=frame,
                time_seconds=time_seconds,
                # Half precision lets the product of unit vectors stray past 1 a little.
                score=max(-1.0, min(1.0, score)),
                moment_start_seconds=start,
                moment_end_seconds=end,
            )
    return list(hits.values()), len(found)


class NearFrames:
    """The ``k`` frames that an index names first, ungrouped: what recall is measured on.

    The statement is put together once, for many queries in one transaction.
    """

    def __init__(
        self,
        connection: Connection,
        kind: IndexKind,
        target: Generation,
        *,
        k: int,
        scope: Scope,
        effort: int | None = None,
    ) -> None:
        self._connection, self._kind, self._target = connection, kind, target
        self._k, self._scope = k, scope
        effort = effort or effort_of(kind, target)
        rows = max(k, effort) if kind.groups_frames else k
        apply_settings(connection, kind, rows=rows, scope=scope, effort=effort)
        self._statement = sql.SQL(
            "WITH near AS MATERIALIZED ({near}) SELECT video_id, frame_index, time_seconds,"
            " distance FROM near ORDER BY distance, video_id, frame_index LIMIT {k}"
        ).format(
            near=kind.near(target, rows=rows, scope=scope, best_of_moment=False), k=sql.Literal(k)
        )
        self._bytes = self._statement.as_bytes(connection)

    def __call__(self, query_D: FloatArray) -> list[NearFrame]:
        """Frames by rising distance; fewer than ``k`` only when there are fewer."""
        found = self._execute(self._bytes, query_D)
        if len(found) < self._k and self._kind.name != "exact":
            everywhere = NearFrames(
                self._connection, index_kind("exact"), self._target, k=self._k, scope=self._scope
            )
            return everywhere(query_D)
        return [
            NearFrame(video_id=row[0], frame_index=row[1], time_seconds=row[2], distance=row[3])
            for row in found
        ]

    def plan(self, query_D: FloatArray) -> list[str]:
        """Lines of EXPLAIN."""
        return [row[0] for row in self._execute(b"EXPLAIN (COSTS OFF) " + self._bytes, query_D)]

    def _execute(self, statement: bytes, query_D: FloatArray) -> list[tuple[Any, ...]]:
        return execute(
            self._connection, statement, self._kind, self._target, query_D, self._scope
        ).fetchall()


def apply_settings(
    connection: Connection, kind: IndexKind, *, rows: int, scope: Scope, effort: int
) -> None:
    """Set the server up for a search, until the transaction ends."""
    settings = kind.settings(effort=effort, rows=rows, scope=scope)
    if settings:
        calls = sql.SQL(", ").join([sql.SQL("set_config(%s, %s, true)")] * len(settings))
        values = [part for item in settings.items() for part in item]
        connection.execute(sql.SQL("SELECT {}").format(calls), values)


def execute(
    connection: Connection,
    query: sql.Composed | bytes,
    kind: IndexKind,
    target: Generation,
    query_D: FloatArray,
    scope: Scope,
) -> psycopg.Cursor[tuple[Any, ...]]:
    """Run a query that :meth:`IndexKind.near` is part of."""
    values = scope.parameters() | kind.plan_parameters(target) | {"query": HalfVector(query_D)}
    # Never prepared: a plan that does not know the filter may shun the index.
    return connection.execute(query, values, prepare=False)


def _per_video(hits: list[FrameHit], most: int | None) -> list[FrameHit]:
    if most is None:
        return hits
    seen: dict[str, int] = {}
    kept = []
    for hit in hits:
        seen[hit.video] = seen.get(hit.video, 0) + 1
        if seen[hit.video] <= most:
            kept.append(hit)
    return kept
