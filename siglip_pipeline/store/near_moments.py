"""The statements of a search: the moments near a query, and how far each goes to both sides.

Shapes: Q vectors of one query, D dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg
from pgvector import HalfVector
from psycopg import sql

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.grouping import MomentKey, Reach, ScoredMoment
from siglip_pipeline.store.index_kinds import Generation, IndexKind, Scope
from siglip_pipeline.store.index_kinds.base import query_vector

_COLUMNS = sql.SQL(
    "path, video_id, moment, frame_index, time_seconds, score, start_seconds, end_seconds"
)
# Cosines of unit vectors: half precision lets their products stray past 1 a little.
_SCORE = sql.SQL("greatest(-1, least(1, -({distance})))")

# What a neighbour must score to be in a peak's reach.
_FLOOR = sql.SQL("greatest({} - %(within)s, %(min_score)s) AS floor")

# To one side of a peak: the nearest moment that does not score enough. Moments tile a video, so
# it ends where the peak's reach begins, or begins where that ends. A subquery rather than EXISTS,
# which the planner might turn into a join with all frames of the video; and the first frame that
# scores enough will do, so that few are looked at but where the reach ends.
_STOP = sql.SQL(
    "LEFT JOIN LATERAL (SELECT m.moment, m.start_seconds, m.end_seconds FROM {moments} m"
    " WHERE m.video_id = peak.video_id AND m.moment {beyond} peak.moment"
    " AND NOT (m.moment = ANY (peak.known) OR (SELECT true FROM {frames} f"
    " WHERE f.video_id = m.video_id AND f.frame_index BETWEEN m.first_frame AND m.last_frame"
    " AND {scope} AND ({near_enough}) LIMIT 1) IS NOT NULL)"
    " ORDER BY m.moment {order} LIMIT 1) {name} ON true"
)
# … and the first and last moment of the video, where there is none.
_REACH = sql.SQL(
    "SELECT peak.video_id, peak.moment, coalesce(below.moment + 1, 0) AS first,"
    " coalesce(above.moment - 1, ending.moment) AS last,"
    " coalesce(below.end_seconds, opening.start_seconds) AS from_seconds,"
    " coalesce(above.start_seconds, ending.end_seconds) AS to_seconds"
    " FROM ({peaks}) peak"
    " {below} {above}"
    " LEFT JOIN LATERAL (SELECT start_seconds FROM {moments} m WHERE m.video_id = peak.video_id"
    " ORDER BY m.moment LIMIT 1) opening ON below.moment IS NULL"
    " LEFT JOIN LATERAL (SELECT moment, end_seconds FROM {moments} m"
    " WHERE m.video_id = peak.video_id ORDER BY m.moment DESC LIMIT 1) ending"
    " ON above.moment IS NULL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NearMoments:
    """What an index names for one vector."""

    moments: list[ScoredMoment]
    """Best first."""
    reaches: dict[MomentKey, Reach]
    """Of the best of them."""
    looked_at: int
    """Rows of the index that they are of."""
    least_score: float
    """Of them all."""
    live: bool | None
    """Whether search answers with this model; None: not with this generation of it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentQueries:
    """Asks about moments within one transaction.

    Args:
        connection: in a transaction; may be in pipeline mode.
        target: the generation that is searched.
        scope: what may be found.
        within, min_score: see :func:`~siglip_pipeline.store.grouping.group_moments`.
    """

    connection: Connection
    target: Generation
    scope: Scope
    within: float
    min_score: float

    def ask_near(
        self,
        kind: IndexKind,
        vectors_QD: FloatArray,
        *,
        rows: int,
        walked: int,
        max_per_video: int | None = None,
        walked_only: bool = False,
    ) -> list[psycopg.Cursor[tuple[Any, ...]]]:
        """Send one statement for each vector; :func:`read_near` reads the answers.

        Args:
            kind: of index.
            vectors_QD: of the query.
            rows: how far to look.
            walked: for how many of the best groups to tell how far they go.
            max_per_video: so many of one video at most.
            walked_only: tell of these groups' peaks only: the other moments are in them, or worse.
        """
        values = kind.plan_parameters(self.target) | self._limits()
        return [
            self._execute(
                *(_near_statement, kind, rows, walked, max_per_video, walked_only),
                values=values | {"query": HalfVector(vector_D)},
            )
            for vector_D in vectors_QD
        ]

    def reach(
        self, peaks: Sequence[ScoredMoment], vectors_QD: FloatArray
    ) -> dict[MomentKey, Reach]:
        """How far each of these goes, a moment scoring what the nearest vector says."""
        peaks_of = {
            "of_video": [peak.video_id for peak in peaks],
            "numbers": [peak.moment for peak in peaks],
            "scores": [peak.score for peak in peaks],
        }
        values = peaks_of | self._limits() | _named(vectors_QD)
        rows = self._execute(_reach_statement, len(vectors_QD), values=values).fetchall()
        return {(row[0], row[1]): Reach._make(row[2:]) for row in rows}

    def score(
        self, keys: Sequence[MomentKey], vectors_QD: FloatArray
    ) -> dict[MomentKey, ScoredMoment]:
        """These moments by their best frames, each scoring what the nearest vector says.

        Moments without a frame in scope are left out.
        """
        wanted = {
            "of_video": [video_id for video_id, _ in keys],
            "numbers": [moment for _, moment in keys],
        }
        values = wanted | _named(vectors_QD)
        rows = self._execute(_score_statement, len(vectors_QD), values=values).fetchall()
        return {moment.key: moment for moment in map(ScoredMoment._make, rows)}

    def _limits(self) -> dict[str, float]:
        return {"within": self.within, "min_score": self.min_score}

    def _execute(
        self, make: Callable[..., sql.Composed], *shape: Any, values: dict[str, Any]
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        values = self.scope.parameters() | values
        if self.scope.everything:
            statement = _composed(make, self.target, *shape)
            return self.connection.execute(statement, values, prepare=True, binary=True)
        # A plan that does not know the filter may shun the index.
        composed = make(self.target, self.scope, *shape)
        return self.connection.execute(composed, values, prepare=False, binary=True)


def read_near(cursor: psycopg.Cursor[tuple[Any, ...]]) -> NearMoments:
    """The answer to one statement of :meth:`MomentQueries.ask_near`."""
    moments, reaches, looked_at, live, least = [], {}, 0, None, 1.0
    for row in cursor.fetchall():
        moment = ScoredMoment._make(row[:8])
        moments.append(moment)
        looked_at, live, least = row[8:11]
        if row[11] is not None:
            reaches[moment.key] = Reach._make(row[11:])
    return NearMoments(
        moments=moments, reaches=reaches, looked_at=looked_at, least_score=least, live=live
    )


@lru_cache(maxsize=256)
def _composed(make: Callable[..., sql.Composed], target: Generation, *shape: Any) -> bytes:
    """A statement without a filter: putting it together takes as long as a short search."""
    return make(target, Scope(), *shape).as_bytes(None)


def _near_statement(
    target: Generation,
    scope: Scope,
    kind: IndexKind,
    rows: int,
    walked: int,
    max_per_video: int | None,
    walked_only: bool,
) -> sql.Composed:
    return sql.SQL(
        "WITH RECURSIVE near AS MATERIALIZED ({near}),"
        " found AS MATERIALIZED (SELECT *, (video_id::bigint << 32) + moment AS key,"
        " row_number() OVER (ORDER BY distance, path, frame_index) AS place"
        " FROM (SELECT DISTINCT ON (n.video_id, m.moment) v.path,"
        " n.video_id, m.moment, n.frame_index, n.time_seconds, n.distance, {score} AS score,"
        " m.start_seconds, m.end_seconds FROM near n"
        " JOIN LATERAL (SELECT path FROM videos WHERE video_id = n.video_id LIMIT 1) v ON true"
        " JOIN LATERAL (SELECT moment, start_seconds, end_seconds FROM {moments} m"
        " WHERE m.video_id = n.video_id"
        " AND n.frame_index BETWEEN m.first_frame AND m.last_frame LIMIT 1) m ON true"
        " ORDER BY n.video_id, m.moment, n.distance, n.frame_index) best),"
        " walk AS ({walk})"
        " SELECT {columns}, (SELECT count(*) FROM near), (SELECT is_active FROM models"
        " WHERE model_id = %(model_id)s AND active_generation = %(generation)s),"
        " (SELECT min(score) FROM found), first, last, from_seconds, to_seconds"
        " FROM found {some} JOIN walk USING (place) ORDER BY place"
    ).format(
        near=kind.near(target, rows=rows, scope=scope, best_of_moment=True),
        score=_SCORE.format(distance=sql.SQL("n.distance")),
        moments=tables.moments(target.model_id),
        walk=_walk(target, scope, walked, max_per_video),
        columns=_COLUMNS,
        some=sql.SQL("" if walked_only else "LEFT"),
    )


def _walk(target: Generation, scope: Scope, walked: int, max_per_video: int | None) -> sql.Composed:
    """How far peaks go, from best to worst, as :func:`.group_moments` takes them.

    What is taken is kept as ranges of keys. A reach ends where a better one's begins.
    """
    # Neighbours that were found need not be looked at again.
    peak = sql.SQL(
        "SELECT *, ARRAY(SELECT moment FROM found WHERE video_id = p.video_id AND score >= floor)"
        " AS known FROM (SELECT peak.video_id, peak.moment, {floor}) p"
    ).format(floor=_FLOOR.format(sql.SQL("peak.score")))
    return sql.SQL(
        "SELECT 0 AS peaks, 0::bigint AS place, '{{}}'::int8multirange AS taken,"
        " '{{}}'::integer[] AS videos, NULL::integer AS first, NULL::integer AS last,"
        " NULL::float8 AS from_seconds, NULL::float8 AS to_seconds"
        " UNION ALL SELECT peaks + 1, peak.place, taken + (SELECT int8multirange(own)"
        " FROM unnest(int8multirange(int8range(peak.key - peak.moment + reach.first,"
        " peak.key - peak.moment + reach.last, '[]')) - taken) own WHERE own @> peak.key),"
        " videos || peak.video_id, reach.first, reach.last, reach.from_seconds, reach.to_seconds"
        " FROM walk CROSS JOIN LATERAL (SELECT * FROM found WHERE found.place > walk.place"
        " AND score >= %(min_score)s AND NOT key <@ taken AND {few} ORDER BY found.place LIMIT 1)"
        " peak CROSS JOIN LATERAL ({reach}) reach WHERE peaks < {walked}"
    ).format(
        few=sql.SQL(
            "true"
            if max_per_video is None
            else "cardinality(array_positions(videos, video_id)) < {}"
        ).format(sql.Literal(max_per_video)),
        reach=_reach(target, scope, peak, ["query"]),
        walked=sql.Literal(walked),
    )


def _reach_statement(target: Generation, scope: Scope, vectors: int) -> sql.Composed:
    peaks = sql.SQL(
        "SELECT video_id, moment, {floor}, '{{}}'::integer[] AS known"
        " FROM unnest(%(of_video)s::integer[], %(numbers)s::integer[], %(scores)s::float8[])"
        " AS peaks (video_id, moment, score)"
    ).format(floor=_FLOOR.format(sql.SQL("score")))
    return _reach(target, scope, peaks, _names(vectors))


def _reach(
    target: Generation, scope: Scope, peaks: sql.Composable, vectors: Sequence[str]
) -> sql.Composed:
    near_enough = [
        sql.SQL("-(f.embedding <#> {}) >= peak.floor").format(query_vector(target.dim, name))
        for name in vectors
    ]
    moments = tables.moments(target.model_id)

    def stop(name: str, beyond: str, order: str) -> sql.Composed:
        return _STOP.format(
            moments=moments,
            frames=tables.frames(target.model_id),
            scope=scope.frame_condition("f"),
            near_enough=sql.SQL(" OR ").join(near_enough),
            name=sql.Identifier(name),
            beyond=sql.SQL(beyond),
            order=sql.SQL(order),
        )

    return _REACH.format(
        peaks=peaks,
        moments=moments,
        below=stop("below", "<", "DESC"),
        above=stop("above", ">", "ASC"),
    )


def _score_statement(target: Generation, scope: Scope, vectors: int) -> sql.Composed:
    distances = [
        sql.SQL("f.embedding <#> {}").format(query_vector(target.dim, name))
        for name in _names(vectors)
    ]
    return sql.SQL(
        "SELECT {columns} FROM (SELECT v.path, m.video_id, m.moment, best.frame_index,"
        " best.time_seconds, {score} AS score, m.start_seconds, m.end_seconds"
        " FROM unnest(%(of_video)s::integer[], %(numbers)s::integer[])"
        " AS wanted (video_id, moment) JOIN {moments} m USING (video_id, moment)"
        " JOIN videos v USING (video_id) CROSS JOIN LATERAL (SELECT f.frame_index,"
        " f.time_seconds, least({distances}) AS distance FROM {frames} f"
        " WHERE f.video_id = m.video_id"
        " AND f.frame_index BETWEEN m.first_frame AND m.last_frame AND {scope}"
        " ORDER BY distance, f.frame_index LIMIT 1) best) scored"
    ).format(
        columns=_COLUMNS,
        score=_SCORE.format(distance=sql.SQL("best.distance")),
        distances=sql.SQL(", ").join(distances),
        moments=tables.moments(target.model_id),
        frames=tables.frames(target.model_id),
        scope=scope.frame_condition("f"),
    )


def _names(vectors: int) -> list[str]:
    return [f"query{place}" for place in range(vectors)]


def _named(vectors_QD: FloatArray) -> dict[str, HalfVector]:
    names = _names(len(vectors_QD))
    return {name: HalfVector(vector_D) for name, vector_D in zip(names, vectors_QD, strict=True)}
