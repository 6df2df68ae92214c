"""HNSW over the mean vectors of moments, then an exact comparison of their frames."""

from collections.abc import Sequence
from typing import ClassVar

from psycopg import sql

from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds.base import Generation, Scope, among, query_vector, vector_type
from siglip_pipeline.store.kinds.effort import Effort
from siglip_pipeline.store.kinds.hnsw import HnswIndex

# Up to this many moments in scope, comparing each is as fast as walking the graph until enough of
# them have passed the filter, and it misses none. Text queries gain most.
EXACT_MOMENTS = 20_000


_CREATE = sql.SQL("""
CREATE TABLE {} (
    video_id integer NOT NULL, moment integer NOT NULL,
    first_frame integer NOT NULL, last_frame integer NOT NULL,
    start_seconds double precision NOT NULL, end_seconds double precision NOT NULL,
    embedding {} STORAGE PLAIN NOT NULL,
    PRIMARY KEY (video_id, moment)
)
""")

_ADD = sql.SQL("""
INSERT INTO {table}
SELECT m.video_id, m.moment, m.first_frame, m.last_frame, m.start_seconds, m.end_seconds,
       mean.embedding
FROM {moments} m
CROSS JOIN LATERAL (
    SELECT l2_normalize(avg(f.embedding)) AS embedding
    FROM {frames} f
    WHERE f.video_id = m.video_id AND f.frame_index BETWEEN m.first_frame AND m.last_frame
) mean
WHERE {videos}
""")

_NEAR = sql.SQL("""
SELECT best.*
FROM (
    SELECT m.video_id, m.first_frame, m.last_frame
    FROM {table} m
    WHERE {videos} AND {overlap}
    ORDER BY (m.embedding <#> {query}){hidden} LIMIT {rows}
) near
CROSS JOIN LATERAL (
    SELECT f.video_id, f.frame_index, f.time_seconds, f.embedding <#> {query} AS distance
    FROM {frames} f
    WHERE f.video_id = near.video_id AND {scope}
      AND f.frame_index BETWEEN near.first_frame AND near.last_frame{best}
) best
""")


class MomentIndex(HnswIndex):
    """The default: small, fast to build, and with the highest recall on video."""

    name: ClassVar[str] = "moments"
    default_ef_search: ClassVar[int] = 100
    # Walking the graph costs a tenth of comparing the frames of what it finds. Texts need the walk.
    efforts: ClassVar[tuple[Effort, ...]] = tuple(
        Effort(ef_search=ef_search, rows=rows)
        for ef_search, rows in (
            *((25, 25), (50, 25), (100, 25), (200, 50), (400, 100)),
            *((400, 400), (800, 200), (800, 800)),
        )
    )

    groups_frames: ClassVar[bool] = True
    adds_changes: ClassVar[bool] = True

    def create(self, connection: Connection, target: Generation) -> None:
        """Create a table of moments: their bounds, and the unit vector of their frames' mean."""
        table = tables.index(target.model_id, target.generation)
        connection.execute(_CREATE.format(table, vector_type(target.dim)))

    def add(
        self, connection: Connection, target: Generation, video_ids: Sequence[int] | None = None
    ) -> None:
        """See :meth:`IndexKind.add`."""
        connection.execute(
            _ADD.format(
                table=tables.index(target.model_id, target.generation),
                moments=tables.moments(target.model_id),
                frames=tables.frames(target.model_id),
                videos=among("m", video_ids),
            )
        )

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
        best = (
            sql.SQL(" ORDER BY distance, f.frame_index LIMIT 1") if best_of_moment else sql.SQL("")
        )
        # "+ 0" hides the order from the planner, which would walk the graph otherwise.
        few = scope.video_ids is not None and scope.moments <= EXACT_MOMENTS
        return _NEAR.format(
            table=tables.index(target.model_id, target.generation),
            videos=scope.video_condition("m"),
            overlap=overlap,
            hidden=sql.SQL(" + 0" if few else ""),
            query=query_vector(target.dim, query),
            rows=sql.Literal(rows),
            frames=tables.frames(target.model_id),
            scope=scope.time_condition("f"),
            best=best,
        )
