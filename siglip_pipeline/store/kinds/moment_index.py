"""HNSW over the mean vectors of moments, then an exact comparison of their frames."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from psycopg import sql

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import counts, tables
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds.base import (
    Generation,
    IndexKind,
    Scope,
    among,
    query_vector,
    vector_type,
)
from siglip_pipeline.store.kinds.clusters import (
    CLOSE,
    FEWEST_MOMENTS,
    SAMPLE,
    find_clusters,
    number_of_clusters,
    parameters_for,
)
from siglip_pipeline.store.kinds.effort import Effort
from siglip_pipeline.store.kinds.hnsw import EF_MAX, HnswIndex

WALK_COST = 10
"""Moments that are compared in the time of one more ``ef_search``."""
_BEYOND_ROWS = 1.25
"""A walk holds so many times the moments whose frames are compared: the last of its list are the
least sure. Of the hundred frames nearest to a text among five million it finds 0.993; 0.977 with
1."""
_FURTHER_IN_TIMES = 2
"""How many times as far a walk within times goes at least."""
FAR_FACTOR = 10
"""Where nothing in scope is like the query, the scores of moments differ less than those of the
frames of one: the frames of up to so many times the moments are compared (decision 0122)."""
FAR_ROWS = 1_000
"""At most so many moments are more than were asked for: their frames take some 30 ms."""
_MOMENTS_FOR_ONE = 400

_MEAN = sql.SQL("""
    SELECT l2_normalize(avg(f.embedding)) AS embedding
    FROM {frames} f
    WHERE f.video_id = m.video_id AND f.frame_index BETWEEN m.first_frame AND m.last_frame
""")

# Spread over all videos, and the same in each build.
_SAMPLE = sql.SQL("""
SELECT mean.embedding
FROM (
    SELECT * FROM {moments}
    ORDER BY hashint8extended((video_id::bigint << 32) + moment, 0) LIMIT {count}
) m
CROSS JOIN LATERAL ({mean}) mean
""")

_CREATE = sql.SQL("""
CREATE TABLE {} (
    video_id integer NOT NULL, moment integer NOT NULL,
    first_frame integer NOT NULL, last_frame integer NOT NULL,
    start_seconds double precision NOT NULL, end_seconds double precision NOT NULL,
    embedding {} STORAGE PLAIN NOT NULL,
    PRIMARY KEY (video_id, moment)
)
""")

_CREATE_CLUSTERS = sql.SQL("CREATE TABLE {} (cluster integer, centre {} STORAGE PLAIN NOT NULL)")
_ADD_CLUSTER = sql.SQL("ALTER TABLE {} ADD cluster integer")
_INDEX_CLUSTER = sql.SQL("CREATE INDEX ON {} (cluster) WHERE cluster IS NOT NULL")

_ADD = sql.SQL("""
INSERT INTO {table}
SELECT m.video_id, m.moment, m.first_frame, m.last_frame, m.start_seconds, m.end_seconds,
       mean.embedding{cluster}
FROM {moments} m
CROSS JOIN LATERAL ({mean}) mean
WHERE {videos}
""")

_CLUSTER = sql.SQL(""", (
    SELECT c.cluster FROM {clusters} c WHERE c.centre <#> mean.embedding <= -{close}
    ORDER BY c.centre <#> mean.embedding LIMIT 1
)""")

_WALK = sql.SQL("""
    SELECT m.video_id, m.first_frame, m.last_frame
    FROM {table} m
    WHERE {videos} AND {overlap}
    ORDER BY m.embedding <#> {query} LIMIT {rows}
""")

_WALKED = sql.SQL("""
    SELECT m.*, m.embedding <#> {query} AS distance
    FROM {table} m WHERE {walked} ORDER BY m.embedding <#> {query} LIMIT {reach}
""")

# The members of clusters are not in the graph (docs/indexes.md). Those of a cluster are compared
# where its centre is as near as what the walk meets: a longer walk takes in more clusters, and one
# that meets nearly nothing all of them.
_WALKED_BESIDE_CLUSTERS = sql.SQL("""
    WITH met AS MATERIALIZED (
        SELECT m.video_id, m.first_frame, m.last_frame, m.start_seconds, m.end_seconds,
               m.embedding <#> {query} AS distance
        FROM {table} m WHERE m.cluster IS NULL AND {walked}
        ORDER BY m.embedding <#> {query} LIMIT {reach}
    )
    SELECT * FROM met
    UNION ALL
    SELECT members.*
    FROM {clusters} c
    CROSS JOIN LATERAL (
        SELECT m.video_id, m.first_frame, m.last_frame, m.start_seconds, m.end_seconds,
               m.embedding <#> {query}
        FROM {table} m WHERE m.cluster = c.cluster AND {walked}
        OFFSET 0 -- one cluster after the other: else all moments would be read for one
    ) members
    WHERE c.centre <#> {query} <= (
        SELECT CASE WHEN count(*) < {reach} / 2 THEN 'infinity' ELSE max(distance) END FROM met
    )
""")

_NEAREST = sql.SQL("""
    SELECT m.video_id, m.first_frame, m.last_frame FROM ({walk}) m
    ORDER BY m.distance LIMIT {rows}
""")

# "+ 0" hides the order from the planner, which would walk the graph otherwise.
_ALL = sql.SQL("""
    SELECT m.video_id, m.first_frame, m.last_frame
    FROM {table} m
    WHERE {videos} AND {overlap} AND {wanted}
    ORDER BY (m.embedding <#> {query}) + 0 LIMIT {more}
""")

# A graph finds well only what is nearest of all moments. Where too few of these are in scope, the
# scope shows something else than the query asks for, and a walk meets only some of what is nearest
# in scope. To walk on (``hnsw.iterative_scan``) takes a hundred times as long, and misses half.
_WALK_OR_ALL = sql.SQL("""
    WITH walked AS MATERIALIZED (
        SELECT m.video_id, m.first_frame, m.last_frame
        FROM ({walk}) m
        WHERE {videos} AND {overlap}
        ORDER BY m.distance LIMIT {rows}
    )
    SELECT * FROM walked WHERE (SELECT count(*) FROM walked) >= {rows}
    UNION ALL ({all})
""")

_NEAR = sql.SQL("""
SELECT best.*
FROM ({moments}) near
CROSS JOIN LATERAL (
    SELECT f.video_id, f.frame_index, f.time_seconds, f.embedding <#> {query} AS distance
    FROM {frames} f
    WHERE f.video_id = near.video_id AND {scope}
      AND f.frame_index BETWEEN near.first_frame AND near.last_frame
    {best}
) best
""")


class MomentIndex(HnswIndex):
    """The default: small, fast to build, and with the highest recall on video."""

    name: ClassVar[str] = "moments"
    default_ef_search: ClassVar[int] = 100
    # In the order of their cost: a row costs as much as about three of ``ef_search``. Texts need
    # the walk; the rows are for footage whose best frames are unlike the mean of their moment.
    efforts: ClassVar[tuple[Effort, ...]] = tuple(
        Effort(ef_search=ef_search, rows=rows)
        for ef_search, rows in (
            *((25, 25), (50, 25), (100, 25), (200, 25), (250, 25), (200, 50), (300, 25)),
            *((400, 25), (400, 100), (800, 50), (800, 200), (400, 400), (800, 800)),
        )
    )

    groups_frames: ClassVar[bool] = True
    adds_changes: ClassVar[bool] = True

    further: int = 1
    """Where all moments in scope are compared, the frames of so many times the rows are."""

    def parameters(self, connection: Connection, target: Generation) -> dict[str, Any]:
        """Find clusters in a sample of the moments, keep their centres, and return their number."""
        from pgvector import HalfVector  # imports numpy

        frames, moments = tables.frames(target.model_id), tables.moments(target.model_id)
        if counts.stored(connection, target.model_id).moments < FEWEST_MOMENTS:
            return {}
        mean = _MEAN.format(frames=frames)
        sample = _SAMPLE.format(moments=moments, count=sql.Literal(SAMPLE), mean=mean)
        vectors = [vector.to_numpy() for (vector,) in connection.execute(sample)]
        centres = find_clusters(vectors)
        if not centres:
            return {}
        table = tables.clusters(target.model_id, target.generation)
        connection.execute(_CREATE_CLUSTERS.format(table, vector_type(target.dim)))
        with connection.cursor() as cursor:
            cursor.executemany(
                sql.SQL("INSERT INTO {} VALUES (%s, %s)").format(table),
                [(number, HalfVector(centre_D)) for number, centre_D in enumerate(centres)],
            )
        return parameters_for(len(centres))

    def create(self, connection: Connection, target: Generation) -> None:
        """Create a table of moments: their bounds, and the unit vector of their frames' mean."""
        table = tables.index(target.model_id, target.generation)
        connection.execute(_CREATE.format(table, vector_type(target.dim)))
        if has_clusters(target):
            connection.execute(_ADD_CLUSTER.format(table))
            connection.execute(_INDEX_CLUSTER.format(table))

    def add(
        self, connection: Connection, target: Generation, video_ids: Sequence[int] | None = None
    ) -> None:
        """See :meth:`IndexKind.add`."""
        connection.execute(
            _ADD.format(
                table=tables.index(target.model_id, target.generation),
                moments=tables.moments(target.model_id),
                mean=_MEAN.format(frames=tables.frames(target.model_id)),
                cluster=_cluster(target),
                videos=among("m", video_ids),
            )
        )

    def index_statement(self, target: Generation) -> sql.Composed | None:
        """See :meth:`IndexKind.index_statement`; members of clusters are left out."""
        statement = super().index_statement(target)
        if statement is not None and has_clusters(target):
            statement += sql.SQL(" WHERE cluster IS NULL")
        return statement

    def within(
        self, target: Generation, scope: Scope, *, effort: Effort, rows: int
    ) -> tuple[IndexKind, int]:
        """Walk so far that as many moments in scope are met as without a filter; or compare all.

        The share of moments in scope is about the same among those that a walk meets as among all,
        unless the scope shows something else than the query asks for. As it is not exactly the
        same, the walk is to meet twice the rows in scope.
        """
        if scope.video_ids is None:  # how many moments lie within times is not known
            further = 1 if scope.everything else max(_FURTHER_IN_TIMES, effort.in_scope)
            due = max(further * effort.ef_search, _BEYOND_ROWS * rows)
            ef_search = min(math.ceil(due), EF_MAX)
            if has_clusters(target):
                return beside_clusters(max(ef_search, rows)), ef_search
            return self, ef_search
        share = scope.moments / max(target.rows, scope.moments, 1)
        due = max(effort.in_scope * effort.ef_search, 2 * rows)
        further = _further(scope.moments)
        if scope.moments * share <= WALK_COST * due or 2 * rows > EF_MAX * share:
            return every_moment(further), effort.ef_search
        nearest = 100 * math.ceil(2 * rows / share / 100)
        return walk_once(nearest, further), min(math.ceil(due / share), EF_MAX)

    def in_full(self, target: Generation) -> IndexKind:
        """Return the search that compares all moments."""
        return every_moment(_further(target.rows))

    def near(
        self,
        target: Generation,
        *,
        rows: int,
        scope: Scope,
        best_of_moment: bool,
        query: str = "query",
    ) -> sql.Composed:
        """See :meth:`IndexKind.near`."""
        overlap = sql.SQL("true")
        if scope.time_range is not None:
            overlap = sql.SQL(
                "m.start_seconds < %(to_seconds)s AND m.end_seconds > %(from_seconds)s"
            )
        # OFFSET 0: one moment after the other. In few long videos each moment would else be joined
        # with all frames of its video.
        best = sql.SQL("ORDER BY distance, f.frame_index LIMIT 1" if best_of_moment else "OFFSET 0")
        parts = {
            "table": tables.index(target.model_id, target.generation),
            "overlap": overlap,
            "query": query_vector(target.dim, query),
            "rows": sql.Literal(rows),
            "more": sql.Literal(max(rows, min(self.further * rows, FAR_ROWS))),
        }
        return _NEAR.format(
            moments=self._moments(target, scope, parts),
            query=parts["query"],
            frames=tables.frames(target.model_id),
            scope=scope.time_condition("f"),
            best=best,
        )

    def _moments(
        self, target: Generation, scope: Scope, parts: dict[str, sql.Composable]
    ) -> sql.Composed:
        """Return SQL for the moments nearest to a vector."""
        return _WALK.format(**parts, videos=scope.video_condition("m"))


def _further(moments: int) -> int:
    """Return of how many times the moments the frames are compared, where all in scope are met.

    The more moments a scope has, the more of them lie as near as the nearest, if none is like the
    query. Measured in decision 0122: 100 moments for ten hits among 2,400, 200 among 15,000.
    """
    return min(FAR_FACTOR, math.ceil(math.sqrt(max(1, moments) / _MOMENTS_FOR_ONE)))


class EveryMoment(MomentIndex):
    """The same table without its graph: every moment in scope is compared, and none is missed."""

    def __init__(self, further: int) -> None:
        self.further = further

    def keeps_plan(self, scope: Scope) -> bool:
        """Return true: the moments are found by the ids of their videos, however many."""
        return True

    def _moments(
        self, target: Generation, scope: Scope, parts: dict[str, sql.Composable]
    ) -> sql.Composed:
        return _all(scope, parts, sql.SQL("true"))


class WalkBesideClusters(MomentIndex):
    """One walk of a graph without the members of clusters; these are compared beside it."""

    def __init__(self, reach: int) -> None:
        self._reach = reach

    def _moments(
        self, target: Generation, scope: Scope, parts: dict[str, sql.Composable]
    ) -> sql.Composed:
        walked = sql.SQL("{} AND {}").format(scope.video_condition("m"), parts["overlap"])
        walk = _walk(target, parts, self._reach, walked)
        return _NEAREST.format(walk=walk, rows=parts["rows"])


class WalkOnce(MomentIndex):
    """One walk of the graph; where it meets too few, every moment in scope is compared."""

    def __init__(self, nearest: int, further: int) -> None:
        self._nearest, self.further = nearest, further

    def settings(self, *, ef_search: int, rows: int, scope: Scope) -> dict[str, str]:
        """Return settings without further walks."""
        once = {"hnsw.iterative_scan": "off"}
        return super().settings(ef_search=ef_search, rows=rows, scope=scope) | once

    def keeps_plan(self, scope: Scope) -> bool:
        """Return true: the walk is without the filter."""
        return True

    def _moments(
        self, target: Generation, scope: Scope, parts: dict[str, sql.Composable]
    ) -> sql.Composed:
        too_few = sql.SQL("(SELECT count(*) FROM walked) < {}").format(parts["rows"])
        return _WALK_OR_ALL.format(
            **parts,
            walk=_walk(target, parts, self._nearest, sql.SQL("true")),
            videos=scope.video_filter("m"),
            all=_all(scope, parts, too_few),
        )


def _walk(
    target: Generation, parts: dict[str, sql.Composable], reach: int, walked: sql.Composable
) -> sql.Composed:
    """Return SQL for what one walk of the graph meets, and the clusters that are as near."""
    walk = _WALKED_BESIDE_CLUSTERS if has_clusters(target) else _WALKED
    return walk.format(
        **parts,
        reach=sql.Literal(reach),
        walked=walked,
        clusters=tables.clusters(target.model_id, target.generation),
    )


def _all(scope: Scope, parts: dict[str, sql.Composable], wanted: sql.Composable) -> sql.Composed:
    """Return SQL that compares all moments in scope, if that is wanted."""
    return _ALL.format(**parts, videos=scope.video_condition("m"), wanted=wanted)


def cluster_centres(connection: Connection, target: Generation) -> list[FloatArray]:
    """Return the centres of the clusters of a generation: unit vectors [D]."""
    if not has_clusters(target):
        return []
    table = tables.clusters(target.model_id, target.generation)
    rows = connection.execute(sql.SQL("SELECT centre FROM {} ORDER BY cluster").format(table))
    return [centre.to_numpy() for (centre,) in rows]


def has_clusters(target: Generation) -> bool:
    """Return whether moments of clusters are kept out of the graph of a generation."""
    return number_of_clusters(target.parameters) > 0


def _cluster(target: Generation) -> sql.Composed:
    """Return SQL of one more column of :data:`_ADD`, if there are clusters."""
    if not has_clusters(target):
        return sql.SQL("").format()
    return _CLUSTER.format(
        clusters=tables.clusters(target.model_id, target.generation), close=sql.Literal(CLOSE)
    )


@lru_cache
def beside_clusters(reach: int) -> WalkBesideClusters:
    """Return the search that walks the graph so far, and compares the clusters that are as near."""
    return WalkBesideClusters(reach)


@lru_cache
def every_moment(further: int) -> EveryMoment:
    """Return the search that compares all moments, and the frames of so many times the rows."""
    return EveryMoment(further)


@lru_cache
def walk_once(nearest: int, further: int) -> WalkOnce:
    """Return the search that takes the rows in scope among so many nearest moments of all."""
    return WalkOnce(nearest, further)
