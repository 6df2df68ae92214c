"""Search: the moments nearest to a query vector, whatever kind the live index is of.

Shapes: Q vectors of one query, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector
from psycopg import sql

from siglip_pipeline.errors import NothingIndexedError, QueryError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import generations, tables
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.execution import apply_settings, choose_kind, effort_of, execute
from siglip_pipeline.store.grouping import (
    MomentGroup,
    MomentKey,
    ScoredMoment,
    group_moments,
)
from siglip_pipeline.store.index_kinds import Generation, IndexKind, Scope, index_kind
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.scope import resolve_scope

ROWS_MAX = 20_000
# Of an exact search: frames of the best moments crowd out the others.
EXACT_ROWS = 256
K_MAX = 1000
APART = -1.0
"""For ``within``: every moment of the index is a hit of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHit:
    """A moment that answers a query, by its best frame."""

    video: str
    video_id: int
    frame_index: int
    time_seconds: float
    score: float
    """Cosine similarity with the query, in [-1, 1]; with the nearest of several vectors."""
    moment_start_seconds: float
    moment_end_seconds: float


class ActiveModelChangedError(Exception):
    """Another model has been promoted since the query was embedded: embed it again."""


def search_frames(
    database: Database,
    model: ModelRow,
    query: FloatArray,
    *,
    k: int,
    videos: Sequence[str] | None = None,
    time_range: tuple[float, float] | None = None,
    uploaded_after: datetime | None = None,
    uploaded_before: datetime | None = None,
    ef_search: int | None = None,
    max_per_video: int | None = None,
    min_score: float = -2.0,
    within: float = APART,
    must_be_active: bool = False,
) -> list[FrameHit]:
    """The ``k`` moments nearest to a query, one hit each; fewer only when there are fewer.

    Args:
        database: where.
        model: the model that the query was embedded with.
        query: unit vector [D], or several [Q, D]: a moment scores what the nearest of them says.
        k: at most 1000.
        videos: paths and globs to search in; None: all.
        time_range: seconds within the video, half-open.
        uploaded_after: the upload was modified at this time or later.
        uploaded_before: … before this time.
        ef_search: how hard to look; None: what the index's recall was measured with.
        max_per_video: at most so many moments of one video.
        min_score: moments that score less are no hits.
        within: neighbouring moments whose scores differ by at most this are one hit, see
            :mod:`~siglip_pipeline.store.grouping`.
        must_be_active: search only if the model is the one that search answers with.

    Returns:
        Hits by falling score; ties by path, then frame.

    Raises:
        NothingIndexedError: the model has no published index.
        QueryError: a value that cannot be searched for.
        ActiveModelChangedError: ``must_be_active``, and it is not.
    """
    query_QD = np.atleast_2d(query)
    _check(model, query_QD, k, time_range, max_per_video)
    for attempt in range(3):
        try:
            with database.connection() as connection:
                # One snapshot: a video that is replaced meanwhile is seen before or after.
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                target, active = generations.live_and_active(connection, model.model_id)
                if must_be_active and not active:
                    raise ActiveModelChangedError
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
                search = _Search(
                    connection=connection,
                    target=target,
                    query_QD=query_QD,
                    scope=scope,
                    effort=ef_search,
                    k=k,
                    within=within,
                    min_score=min_score,
                    max_per_video=max_per_video,
                )
                return [_hit(group) for group in search.groups()]
        except Exception as error:
            # The generation was replaced, and its tables dropped, between two statements.
            cause = error.__cause__ or error
            if attempt == 2 or not isinstance(cause, psycopg.errors.UndefinedTable):
                raise
    raise AssertionError("unreachable")


def _check(
    model: ModelRow,
    query_QD: FloatArray,
    k: int,
    time_range: tuple[float, float] | None,
    max_per_video: int | None,
) -> None:
    if query_QD.ndim != 2 or not len(query_QD) or query_QD.shape[1] != model.dim:
        raise QueryError(
            f"the query has shape {query_QD.shape[-1:]}, model {model.name} ({model.dim},)"
        )
    if not 1 <= k <= K_MAX:
        raise QueryError(f"k={k} is not between 1 and {K_MAX}")
    if time_range is not None and not time_range[0] < time_range[1]:
        raise QueryError(f"time_range={time_range} does not start before it ends")
    if max_per_video is not None and max_per_video < 1:
        raise QueryError(f"max_per_video={max_per_video} is less than 1")


def _hit(group: MomentGroup) -> FrameHit:
    return FrameHit(
        video=group.peak.video,
        video_id=group.peak.video_id,
        frame_index=group.peak.frame_index,
        time_seconds=group.peak.time_seconds,
        score=group.peak.score,
        moment_start_seconds=group.start_seconds,
        moment_end_seconds=group.end_seconds,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """One search within one transaction."""

    connection: Connection
    target: Generation
    query_QD: FloatArray
    scope: Scope
    effort: int | None
    k: int
    within: float
    min_score: float
    max_per_video: int | None
    known: dict[MomentKey, ScoredMoment | None] = field(default_factory=dict)
    """Every moment that was scored exactly; None: out of scope, or there is none."""

    def groups(self) -> list[MomentGroup]:
        """The best ``k``, by way of the index, looking further until they are complete."""
        kind = choose_kind(self.target, self.scope)
        least = EXACT_ROWS if kind.name == "exact" else self.effort or effort_of(kind, self.target)
        rows = max(2 * self.k, least)
        while True:
            peaks, looked_at = self._near(kind, rows)
            groups, complete = self._group(peaks)
            if complete or len(groups) >= self.k:
                return groups
            if kind.name == "exact" and looked_at < rows:
                return groups
            if looked_at < rows or rows >= ROWS_MAX:
                # The index has no more to say, but only looking everywhere tells that it is all.
                kind = index_kind("exact")
            rows *= 4

    def _group(self, peaks: list[ScoredMoment]) -> tuple[list[MomentGroup], bool]:
        """Groups around these peaks, and whether better ones cannot be found."""
        while True:
            grouping = group_moments(
                peaks,
                self.known,
                k=self.k,
                within=self.within,
                min_score=self.min_score,
                max_per_video=self.max_per_video,
            )
            if not grouping.unknown:
                return grouping.groups, grouping.below
            self._look_up(grouping.unknown)

    def _near(self, kind: IndexKind, rows: int) -> tuple[list[ScoredMoment], int]:
        """The moments of the nearest rows, and how many rows there were for each vector."""
        effort = self.effort or effort_of(kind, self.target)
        apply_settings(self.connection, kind, rows=rows, scope=self.scope, effort=effort)
        query = sql.SQL(
            "WITH near AS MATERIALIZED ({near}) SELECT v.path, n.video_id, m.moment, n.frame_index,"
            " n.time_seconds, -n.distance, m.start_seconds, m.end_seconds"
            " FROM near n JOIN videos v USING (video_id)"
            " JOIN LATERAL (SELECT moment, start_seconds, end_seconds FROM {moments} m"
            " WHERE m.video_id = n.video_id"
            " AND n.frame_index BETWEEN m.first_frame AND m.last_frame LIMIT 1) m ON true"
            " ORDER BY n.distance, v.path, n.frame_index"
        ).format(
            near=kind.near(self.target, rows=rows, scope=self.scope, best_of_moment=True),
            moments=tables.moments(self.target.model_id),
        )
        found: dict[MomentKey, ScoredMoment] = {}
        fewest = rows
        for vector_D in self.query_QD:
            cursor = execute(self.connection, query, kind, self.target, vector_D, self.scope)
            scored = _scored(cursor.fetchall())
            fewest = min(fewest, cursor.rowcount)
            _keep_best(found, scored)
        if len(self.query_QD) > 1:
            # What one vector found, another may lie nearer to.
            self._look_up(found.keys() - self.known.keys())
            return [best for key in found if (best := self.known[key]) is not None], fewest
        self.known.update(found)
        return list(found.values()), fewest

    def _look_up(self, keys: "set[MomentKey]") -> None:
        """Score these moments exactly."""
        if not keys:
            return
        query = sql.SQL(
            "SELECT v.path, m.video_id, m.moment, best.frame_index, best.time_seconds,"
            " -best.distance, m.start_seconds, m.end_seconds"
            " FROM unnest(%(of_video)s::integer[], %(numbers)s::integer[])"
            " AS wanted (video_id, moment) JOIN {moments} m USING (video_id, moment)"
            " JOIN videos v USING (video_id) CROSS JOIN LATERAL (SELECT f.frame_index,"
            " f.time_seconds, f.embedding <#> %(query)b AS distance FROM {frames} f"
            " WHERE f.video_id = m.video_id"
            " AND f.frame_index BETWEEN m.first_frame AND m.last_frame AND {scope}"
            " ORDER BY distance, f.frame_index LIMIT 1) best"
        ).format(
            moments=tables.moments(self.target.model_id),
            frames=tables.frames(self.target.model_id),
            scope=self.scope.frame_condition("f"),
        )
        ordered = sorted(keys)
        values = self.scope.parameters() | {
            "of_video": [video_id for video_id, _ in ordered],
            "numbers": [moment for _, moment in ordered],
        }
        found: dict[MomentKey, ScoredMoment] = {}
        for vector_D in self.query_QD:
            values["query"] = HalfVector(vector_D)
            rows = self.connection.execute(query, values, prepare=False).fetchall()
            _keep_best(found, _scored(rows))
        self.known.update({key: found.get(key) for key in keys})


def _scored(rows: Sequence[tuple[Any, ...]]) -> list[ScoredMoment]:
    return [
        ScoredMoment(
            video=path,
            video_id=video_id,
            moment=moment,
            frame_index=frame_index,
            time_seconds=time_seconds,
            # Half precision lets the product of unit vectors stray past 1 a little.
            score=max(-1.0, min(1.0, score)),
            start_seconds=start,
            end_seconds=end,
        )
        for path, video_id, moment, frame_index, time_seconds, score, start, end in rows
    ]


def _keep_best(found: dict[MomentKey, ScoredMoment], scored: Sequence[ScoredMoment]) -> None:
    for moment in scored:
        best = found.get(moment.key)
        if best is None or moment.rank < best.rank:
            found[moment.key] = moment
