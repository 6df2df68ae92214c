"""An index over the vectors of all frames: HNSW, and IVFFlat."""

from collections.abc import Sequence
from typing import Any, ClassVar

from psycopg import sql

from siglip_pipeline.store import counts, tables
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds.base import (
    Generation,
    IndexKind,
    Scope,
    among,
    late_frames,
    query_vector,
    vector_type,
)
from siglip_pipeline.store.kinds.effort import Effort, efforts
from siglip_pipeline.store.kinds.hnsw import HnswIndex

_CREATE = sql.SQL("""
CREATE TABLE {} (
    video_id integer NOT NULL, frame_index integer NOT NULL, time_seconds double precision NOT NULL,
    embedding {} STORAGE PLAIN NOT NULL,
    PRIMARY KEY (video_id, frame_index)
)
""")

_ADD = sql.SQL("""
INSERT INTO {}
SELECT f.video_id, f.frame_index, f.time_seconds, f.embedding FROM {} f WHERE {}
""")

_NEAR = sql.SQL("""
(
    SELECT f.video_id, f.frame_index, f.time_seconds, f.embedding <#> {query} AS distance
    FROM {table} f
    WHERE {scope}
    ORDER BY f.embedding <#> {query} LIMIT {rows}
)
UNION ALL ({late})
""")


class FrameIndex(IndexKind):
    """An indexed copy of the frames' vectors; changed videos are searched exactly beside it."""

    def create(self, connection: Connection, target: Generation) -> None:
        """Create a copy: an index on the frames table itself would slow every load."""
        connection.execute(
            _CREATE.format(
                tables.index(target.model_id, target.generation), vector_type(target.dim)
            )
        )

    def add(
        self, connection: Connection, target: Generation, video_ids: Sequence[int] | None = None
    ) -> None:
        """See :meth:`IndexKind.add`."""
        connection.execute(
            _ADD.format(
                tables.index(target.model_id, target.generation),
                tables.frames(target.model_id),
                among("f", video_ids),
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
        return _NEAR.format(
            query=query_vector(target.dim, query),
            table=tables.index(target.model_id, target.generation),
            scope=scope.frame_condition("f"),
            rows=sql.Literal(rows),
            late=late_frames(target, rows=rows, scope=scope, query=query),
        )


class Hnsw(HnswIndex, FrameIndex):
    """HNSW over all frames: for footage so varied that moments save no space."""

    name: ClassVar[str] = "hnsw"
    default_ef_search: ClassVar[int] = 200
    efforts: ClassVar[tuple[Effort, ...]] = efforts(50, 100, 200, 400, 800)


class IvfFlat(FrameIndex):
    """Inverted lists over all frames. Builds can overflow before pgvector 0.8.7."""

    name: ClassVar[str] = "ivfflat"
    default_ef_search: ClassVar[int] = 20
    efforts: ClassVar[tuple[Effort, ...]] = efforts(5, 10, 20, 40, 80)

    def parameters(self, connection: Connection, target: Generation) -> dict[str, Any]:
        """Return pgvector's advice: rows / 1000 lists up to a million rows, then sqrt(rows)."""
        rows = counts.stored(connection, target.model_id).frames
        lists = rows // 1000 if rows <= 1_000_000 else int(rows**0.5)
        return {"lists": max(1, lists)}

    def index_statement(self, target: Generation) -> sql.Composed | None:
        """Return the statement for ``parameters['lists']`` lists."""
        return sql.SQL(
            """
            CREATE INDEX {name} ON {table} USING ivfflat (embedding halfvec_ip_ops)
            WITH (lists = {lists})
            """
        ).format(
            name=sql.Identifier(tables.index_name(target.model_id, target.generation)),
            table=tables.index(target.model_id, target.generation),
            lists=sql.Literal(int(target.parameters["lists"])),
        )

    def build_bytes_per_row(self, dim: int) -> int:
        """Return the bytes of the k-means sample: 50 rows per list, one list per 100 rows."""
        return dim

    def settings(self, *, ef_search: int, rows: int, scope: Scope) -> dict[str, str]:
        """Return settings that read lists until enough rows have passed the filter."""
        return {
            "ivfflat.probes": str(ef_search),
            "ivfflat.iterative_scan": "relaxed_order",
            "ivfflat.max_probes": str(ef_search if scope.everything else 32768),
        }
