"""The statement of a search: find the moments near a query, and group them into hits.

Often several consecutive moments match a query: a long take that was cut at its 64th frame, or a
dialogue of shot and reverse shot. From best to worst, each moment that is in no hit yet becomes the
peak of a new one. The hit grows to both sides over moments that are in no hit, as long as each
scores at least the peak's score minus ``within``, and at least ``min_score``. So each moment is in
at most one hit, and the grouping depends on scores alone, not on the order of the index.

Shapes: Q vectors of one query, D dimensions.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg
from pgvector import HalfVector
from psycopg import sql

from siglip_pipeline.hits import SearchRequest
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds import Generation, IndexKind, Scope
from siglip_pipeline.store.kinds.base import query_vector

_STATEMENT = sql.SQL("""
WITH RECURSIVE {near},
-- Each row that is kept must be looked up; with ties, as their order is not known yet.
kept AS MATERIALIZED (
    SELECT * FROM near ORDER BY distance FETCH FIRST {kept} ROWS WITH TIES
),
found AS MATERIALIZED (
    SELECT *, row_number() OVER (ORDER BY score DESC, path, frame_index) AS place,
           (video_id::bigint << 32) + moment AS key
    FROM (
        SELECT DISTINCT ON (n.video_id, m.moment)
               v.path, v.media_offset_seconds, n.video_id, m.moment, n.frame_index,
               n.time_seconds,
               -- In half precision the product of two unit vectors can slightly exceed 1.
               greatest(-1, least(1, -n.distance)) AS score
        FROM kept n
        JOIN LATERAL (
            SELECT path, media_offset_seconds FROM videos WHERE video_id = n.video_id LIMIT 1
        ) v ON true
        JOIN LATERAL (
            SELECT moment FROM {moments} m
            WHERE m.video_id = n.video_id
              AND n.frame_index BETWEEN m.first_frame AND m.last_frame
            LIMIT 1
        ) m ON true
        ORDER BY n.video_id, m.moment, n.distance, n.frame_index
    ) best
),
{hits}
SELECT state.*, hit.*
FROM (
    SELECT {rows_read},
           (SELECT is_active FROM models
            WHERE model_id = %(model_id)s AND active_generation = %(generation)s),
           {least_score}
) state
LEFT JOIN (
    SELECT path, video_id, time_seconds, frame_index, score, opening.start_seconds,
           ending.end_seconds, time_seconds + media_offset_seconds AS media_time_seconds
    FROM hits
    JOIN found USING (place)
    JOIN LATERAL (
        SELECT start_seconds FROM {moments} m
        WHERE m.video_id = found.video_id AND m.moment = lower(hits.own) - (key - found.moment)
    ) opening ON true
    JOIN LATERAL (
        SELECT end_seconds FROM {moments} m
        WHERE m.video_id = found.video_id AND m.moment < upper(hits.own) - (key - found.moment)
        ORDER BY m.moment DESC LIMIT 1
    ) ending ON true
    ORDER BY place
) hit ON true
""")

_NEAR = sql.SQL("{name} AS MATERIALIZED ({near})")

# A moment that one vector found may be nearer to another: it scores by the nearest vector.
_NEAREST_OF_ALL = sql.SQL("""
{each},
near AS MATERIALIZED (
    SELECT best.*
    FROM (
        SELECT DISTINCT n.video_id, m.first_frame, m.last_frame
        FROM ({all}) n
        JOIN {moments} m ON m.video_id = n.video_id
         AND n.frame_index BETWEEN m.first_frame AND m.last_frame
    ) moment
    CROSS JOIN LATERAL (
        SELECT f.video_id, f.frame_index, f.time_seconds, least({distances}) AS distance
        FROM {frames} f
        WHERE f.video_id = moment.video_id
          AND f.frame_index BETWEEN moment.first_frame AND moment.last_frame AND {scope}
        ORDER BY distance, f.frame_index LIMIT 1
    ) best
)
""")

_APART = sql.SQL("""
hits AS (
    SELECT place, int8range(key, key + 1) AS own
    FROM (
        SELECT place, key, row_number() OVER (PARTITION BY video_id ORDER BY place) AS of_video
        FROM found WHERE score >= %(min_score)s
    ) peak
    WHERE {of_video}
    ORDER BY place LIMIT {k}
)
""")

# From best to worst. ``taken`` holds the ranges of keys of all hits so far; a new hit has the
# reach of its peak without them. Moments tile a video, so a reach ends before the next moment
# that does not score enough.
_GROWN = sql.SQL("""
walk AS (
    SELECT 0 AS hits, 0::bigint AS place, '{{}}'::int8multirange AS taken,
           '{{}}'::integer[] AS videos, NULL::int8range AS own
    UNION ALL
    SELECT hits + 1, peak.place, taken + int8multirange(reach.own), videos || peak.video_id,
           reach.own
    FROM walk
    CROSS JOIN LATERAL (
        SELECT *, greatest(score - %(within)s, %(min_score)s) AS floor
        FROM found
        WHERE found.place > walk.place AND score >= %(min_score)s AND NOT key <@ taken
          AND {of_video}
        ORDER BY found.place LIMIT 1
    ) peak
    CROSS JOIN LATERAL (
        -- The scores of neighbours that the index found are known.
        SELECT ARRAY(
            SELECT moment FROM found WHERE video_id = peak.video_id AND score >= peak.floor
        ) AS moments
    ) known
    {below}
    {above}
    CROSS JOIN LATERAL (
        SELECT own
        FROM unnest(int8multirange(int8range(
            key - peak.moment + coalesce(below.moment + 1, 0),
            key - peak.moment + coalesce(above.moment, 2147483647)
        )) - taken) own
        WHERE own @> key
    ) reach
    WHERE hits < {k}
),
hits AS (SELECT place, own FROM walk WHERE place > 0)
""")

# On one side of a peak: the nearest moment that does not score enough. A subquery rather than
# EXISTS, which the planner might turn into a join with all frames of the video. It stops at the
# first frame that scores enough, so it reads all frames only of the moment that ends the reach.
_STOP = sql.SQL("""
    LEFT JOIN LATERAL (
        SELECT m.moment FROM {moments} m
        WHERE m.video_id = peak.video_id AND m.moment {beyond} peak.moment
          AND NOT (
              m.moment = ANY (known.moments)
              OR (
                  SELECT true FROM {frames} f
                  WHERE f.video_id = m.video_id
                    AND f.frame_index BETWEEN m.first_frame AND m.last_frame
                    AND {scope} AND ({near_enough})
                  LIMIT 1
              ) IS NOT NULL
          )
        ORDER BY m.moment {order} LIMIT 1
    ) {name} ON true
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class NearMoments:
    """The result of one statement."""

    hits: list[tuple[Any, ...]]
    """Best first: path, video id, seconds, frame index, score, start and end of the hit, and the
    seconds that a player shows."""
    rows_read: int
    """Rows of the index that were read, for the vector with the fewest."""
    least_score: float
    """The score down to which all rows that the index returned were kept."""
    live: bool | None
    """Whether search answers with this model; None if this generation is not live any more."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the text of a statement depends on beside the generation and the scope."""

    kind: IndexKind
    rows: int
    kept: int
    k: int
    vectors: int
    is_apart: bool
    max_per_video: int | None


def near_moments(
    connection: Connection,
    target: Generation,
    kind: IndexKind,
    scope: Scope,
    request: SearchRequest,
    *,
    rows: int,
    kept: int,
) -> NearMoments:
    """Return the best hits among the moments of the ``rows`` nearest rows of an index.

    Args:
        connection: may be without a transaction: one statement is a snapshot by itself.
        target: the generation that is searched.
        kind: the kind of index to search; the exact kind may replace the generation's own.
        scope: what may be found.
        request: the query vectors, the filter and the limits.
        rows: the number of nearest rows of the index to read, for each vector.
        kept: the number of best rows among them to group into hits.
    """
    shape = _Shape(
        kind,
        rows,
        kept,
        request.k,
        len(request.query_QD),
        request.within < 0,
        request.filter.max_per_video,
    )
    vectors = map(HalfVector, request.query_QD)
    values = (
        scope.parameters()
        | kind.plan_parameters(target)
        | {"within": request.within, "min_score": request.min_score}
        | dict(zip(_names(shape.vectors), vectors, strict=True))
    )
    cursor: psycopg.Cursor[tuple[Any, ...]]
    if kind.keeps_plan(scope):
        statement, names = _numbered(
            target, shape, scope.video_ids is not None, scope.time_range is not None
        )
        cursor = psycopg.RawCursor(connection)
        cursor.execute(statement, [values[name] for name in names], prepare=True, binary=True)
    else:  # a prepared plan does not know the filter and may avoid the graph
        cursor = connection.execute(
            _statement(target, scope, shape), values, prepare=False, binary=True
        )
    found = cursor.fetchall()
    rows_read, live, least_score = found[0][:3]
    return NearMoments(
        hits=[row[3:] for row in found if row[3] is not None],
        rows_read=rows_read,
        least_score=1.0 if least_score is None else least_score,
        live=live,
    )


@lru_cache(maxsize=256)
def _numbered(
    target: Generation, shape: _Shape, in_videos: bool, in_time: bool
) -> tuple[bytes, tuple[str, ...]]:
    """Return a statement whose plan suits all values of its filter, and its parameters' names.

    They are ``$1``, ``$2`` … in the text. Cached: composing it costs as much as a short search.
    psycopg would look for the parameters of so long a statement at every search.
    """
    names: dict[str, int] = {}

    def number(found: re.Match[bytes]) -> bytes:
        return b"$%d" % names.setdefault(found[1].decode(), len(names) + 1)

    # Of a filter, the text holds only what it is about.
    scope = Scope(video_ids=[] if in_videos else None, time_range=(0.0, 0.0) if in_time else None)
    statement = _statement(target, scope, shape).as_bytes(None)
    return re.sub(rb"%\((\w+)\)[sb]", number, statement), tuple(names)


def _statement(target: Generation, scope: Scope, shape: _Shape) -> sql.Composed:
    names = _names(shape.vectors)
    each = [f"near_{name}" for name in names] if len(names) > 1 else ["near"]
    return _STATEMENT.format(
        near=_near(target, scope, shape, dict(zip(each, names, strict=True))),
        moments=tables.moments(target.model_id),
        hits=_apart(shape) if shape.is_apart else _grown(target, scope, shape),
        rows_read=_aggregate_each("least", "count(*)", each),
        # The vector whose next row would be the best sets the limit.
        least_score=_aggregate_each("greatest", "min(-distance)", [*each, "kept"]),
        kept=sql.Literal(shape.kept),
    )


def _aggregate_each(function: str, aggregate: str, tables: Iterable[str]) -> sql.Composed:
    """Return SQL for a function of one aggregate per table."""
    values = [
        sql.SQL("(SELECT {} FROM {})").format(sql.SQL(aggregate), sql.Identifier(table))
        for table in tables
    ]
    return sql.SQL("{}({})").format(sql.SQL(function), sql.SQL(", ").join(values))


def _near(target: Generation, scope: Scope, shape: _Shape, vectors: dict[str, str]) -> sql.Composed:
    """Return table expressions of the frames near each vector; ``near`` holds those near any."""
    each = sql.SQL(",\n").join(
        _NEAR.format(
            name=sql.Identifier(name),
            near=shape.kind.near(
                target, rows=shape.rows, scope=scope, best_of_moment=True, query=vector
            ),
        )
        for name, vector in vectors.items()
    )
    if "near" in vectors:
        return each
    return _NEAREST_OF_ALL.format(
        each=each,
        all=sql.SQL(" UNION ALL ").join(
            sql.SQL("SELECT video_id, frame_index FROM {}").format(sql.Identifier(name))
            for name in vectors
        ),
        moments=tables.moments(target.model_id),
        distances=sql.SQL(", ").join(
            sql.SQL("f.embedding <#> {}").format(query_vector(target.dim, vector))
            for vector in vectors.values()
        ),
        frames=tables.frames(target.model_id),
        scope=scope.time_condition("f"),
    )


def _apart(shape: _Shape) -> sql.Composed:
    """Return SQL that makes each moment a hit of its own."""
    of_video = _of_video("of_video <= {}", shape)
    return _APART.format(of_video=of_video, k=sql.Literal(shape.k))


def _grown(target: Generation, scope: Scope, shape: _Shape) -> sql.Composed:
    """Return SQL that grows hits over neighbouring moments."""
    near_enough = sql.SQL(" OR ").join(
        sql.SQL("-(f.embedding <#> {}) >= peak.floor").format(query_vector(target.dim, name))
        for name in _names(shape.vectors)
    )
    below, above = (
        _STOP.format(
            moments=tables.moments(target.model_id),
            frames=tables.frames(target.model_id),
            scope=scope.time_condition("f"),
            near_enough=near_enough,
            name=sql.Identifier(name),
            beyond=sql.SQL(beyond),
            order=sql.SQL(order),
        )
        for name, beyond, order in (("below", "<", "DESC"), ("above", ">", "ASC"))
    )
    of_video = _of_video("cardinality(array_positions(videos, video_id)) < {}", shape)
    return _GROWN.format(below=below, above=above, of_video=of_video, k=sql.Literal(shape.k))


def _of_video(condition: str, shape: _Shape) -> sql.Composed:
    """Return SQL that limits the number of hits per video."""
    if shape.max_per_video is None:
        return sql.SQL("true").format()
    return sql.SQL(condition).format(sql.Literal(shape.max_per_video))


def _names(vectors: int) -> Sequence[str]:
    """Return the parameter names of the query's vectors."""
    return ["query", *(f"query_{number}" for number in range(1, vectors))]
