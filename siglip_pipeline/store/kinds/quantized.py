"""HNSW over one bit per dimension, then an exact comparison of the frames that it finds."""

from collections.abc import Sequence
from typing import Any, ClassVar

from psycopg import sql

from siglip_pipeline.store import counts, tables
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds.base import (
    Generation,
    Scope,
    among,
    late_frames,
    query_vector,
    vector_type,
)
from siglip_pipeline.store.kinds.effort import Effort, efforts
from siglip_pipeline.store.kinds.hnsw import GRAPH_BYTES, HnswIndex

# Frames in the sample whose mean is computed.
SAMPLE = 20_000


_CREATE = sql.SQL("""
CREATE TABLE {} (
    video_id integer NOT NULL, frame_index integer NOT NULL, time_seconds double precision NOT NULL,
    code bit({}) NOT NULL,
    PRIMARY KEY (video_id, frame_index)
)
""")

_ADD = sql.SQL("""
INSERT INTO {}
SELECT f.video_id, f.frame_index, f.time_seconds, binary_quantize(f.embedding - {}::{})
FROM {} f WHERE {}
""")

_MEAN = sql.SQL("""
(
    CASE WHEN {query} <=> %(text_mean)s::{kind} < {query} <=> %(picture_mean)s::{kind}
    THEN %(text_mean)s ELSE %(picture_mean)s END
)::{kind}
""")

_NEAR = sql.SQL("""
(
    SELECT f.video_id, f.frame_index, f.time_seconds, f.embedding <#> {query} AS distance
    FROM (
        SELECT c.video_id, c.frame_index
        FROM {table} c
        WHERE {coded}
        ORDER BY c.code <~> binary_quantize({query} - {mean})::bit({dim}) LIMIT {shortlist}
    ) near
    JOIN {frames} f USING (video_id, frame_index)
    ORDER BY distance LIMIT {rows}
)
UNION ALL ({late})
""")


class HnswBinary(HnswIndex):
    """HNSW over sign bits: a fifth of the size of HNSW over all frames.

    A bit is the sign of a vector's component after centring. Frames and picture queries are
    centred by the mean of the frames, text queries by the mean of text queries: the two groups lie
    far apart, so with a common mean all texts would have nearly the same bits.
    """

    name: ClassVar[str] = "hnsw_binary"
    default_ef_search: ClassVar[int] = 400
    efforts: ClassVar[tuple[Effort, ...]] = efforts(100, 200, 400, 800)

    column: ClassVar[str] = "code"
    operators: ClassVar[str] = "bit_hamming_ops"
    oversampling: ClassVar[int] = 10
    """Read many rows per result, as the Hamming distance of signs is coarse."""

    def parameters(self, connection: Connection, target: Generation) -> dict[str, Any]:
        """Return the mean of a sample of frames, and that of the recall check's text queries."""
        frames = connection.execute(
            sql.SQL(
                "SELECT avg(embedding)::text FROM {} TABLESAMPLE SYSTEM (%s) REPEATABLE (1)"
            ).format(tables.frames(target.model_id)),
            [100 * _share_of(connection, target)],
        ).fetchone()
        texts = connection.execute(
            """
            SELECT avg(embedding)::text FROM recall_queries
            WHERE model_id = %s AND modality = 'text'
            """,
            [target.model_id],
        ).fetchone()
        assert frames is not None
        assert texts is not None
        zeros = str([0] * target.dim)
        return {"picture_mean": frames[0] or zeros, "text_mean": texts[0] or frames[0] or zeros}

    def create(self, connection: Connection, target: Generation) -> None:
        """Create a table of the signs of each centred frame."""
        connection.execute(
            _CREATE.format(
                tables.index(target.model_id, target.generation), sql.Literal(target.dim)
            )
        )

    def add(
        self, connection: Connection, target: Generation, video_ids: Sequence[int] | None = None
    ) -> None:
        """See :meth:`IndexKind.add`."""
        connection.execute(
            _ADD.format(
                tables.index(target.model_id, target.generation),
                sql.Literal(target.parameters["picture_mean"]),
                vector_type(target.dim),
                tables.frames(target.model_id),
                among("f", video_ids),
            )
        )

    def build_bytes_per_row(self, dim: int) -> int:
        """Return the bytes of the code plus the graph."""
        return dim // 8 + GRAPH_BYTES

    def plan_parameters(self, target: Generation) -> dict[str, Any]:
        """Return the two means, one of which centres the query."""
        return super().plan_parameters(target) | {
            "picture_mean": target.parameters["picture_mean"],
            "text_mean": target.parameters["text_mean"],
        }

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
        kind = vector_type(target.dim)
        vector = query_vector(target.dim, query)
        # Centre a query by the nearer mean; the two means are far apart.
        mean = _MEAN.format(query=vector, kind=kind)
        return _NEAR.format(
            query=vector,
            mean=mean,
            dim=sql.Literal(target.dim),
            table=tables.index(target.model_id, target.generation),
            coded=scope.frame_condition("c"),
            shortlist=sql.Literal(max(self.oversampling * rows, 100)),
            frames=tables.frames(target.model_id),
            rows=sql.Literal(rows),
            late=late_frames(target, rows=rows, scope=scope, query=query),
        )


def _share_of(connection: Connection, target: Generation) -> float:
    """Return the share of the frames that makes up a sample."""
    frames = counts.stored(connection, target.model_id).frames
    return min(1.0, SAMPLE / max(1, frames))
