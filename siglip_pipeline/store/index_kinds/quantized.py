"""HNSW over one bit per dimension, then an exact look at the frames that it names."""

from collections.abc import Sequence
from typing import Any, ClassVar

from psycopg import sql

from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.index_kinds.base import (
    EF_MAX,
    Generation,
    IndexKind,
    Scope,
    among,
    hnsw_settings,
    late_frames,
    query_vector,
    vector_type,
)

# Frames that the mean is taken of.
SAMPLE = 20_000

# The Hamming distance of signs is coarse: look at this many times more frames than are wanted.
OVERSAMPLING = 10


class HnswBinary(IndexKind):
    """A fifth of the size of HNSW over all frames.

    A bit says on which side of the mean a frame lies. The mean of the frames is taken off frames
    and picture queries, the mean of text queries off text queries: the two kinds lie apart, and
    centred alike every text would have the same bits.
    """

    name: ClassVar[str] = "hnsw_binary"
    default_effort: ClassVar[int] = 400
    efforts: ClassVar[tuple[int, ...]] = (100, 200, 400, 800)

    def parameters(self, connection: Connection, target: Generation) -> dict[str, Any]:
        """The means of frames and of text queries, from a sample and from the recall check's."""
        frames = connection.execute(
            sql.SQL(
                "SELECT avg(embedding)::text FROM {} TABLESAMPLE SYSTEM (%s) REPEATABLE (1)"
            ).format(tables.frames(target.model_id)),
            [100 * _share_of(connection, target)],
        ).fetchone()
        texts = connection.execute(
            "SELECT avg(embedding)::text FROM recall_queries"
            " WHERE model_id = %s AND modality = 'text'",
            [target.model_id],
        ).fetchone()
        assert frames is not None
        assert texts is not None
        zeros = str([0] * target.dim)
        return {"picture_mean": frames[0] or zeros, "text_mean": texts[0] or frames[0] or zeros}

    def create(self, connection: Connection, target: Generation) -> None:
        """The signs of each centred frame."""
        connection.execute(
            sql.SQL(
                "CREATE TABLE {} (video_id integer NOT NULL, frame_index integer NOT NULL,"
                " time_seconds double precision NOT NULL, code bit({}) NOT NULL,"
                " PRIMARY KEY (video_id, frame_index))"
            ).format(tables.index(target.model_id, target.generation), sql.Literal(target.dim))
        )

    def add(
        self, connection: Connection, target: Generation, video_ids: Sequence[int] | None = None
    ) -> None:
        """See :meth:`IndexKind.add`."""
        connection.execute(
            sql.SQL(
                "INSERT INTO {} SELECT f.video_id, f.frame_index, f.time_seconds,"
                " binary_quantize(f.embedding - {}::{}) FROM {} f WHERE {}"
            ).format(
                tables.index(target.model_id, target.generation),
                sql.Literal(target.parameters["picture_mean"]),
                vector_type(target.dim),
                tables.frames(target.model_id),
                among("f", video_ids),
            )
        )

    def index_statement(self, target: Generation) -> sql.Composed | None:
        """By Hamming distance."""
        return sql.SQL(
            "CREATE INDEX {name} ON {table} USING hnsw (code bit_hamming_ops)"
            " WITH (m = 16, ef_construction = 200)"
        ).format(
            name=sql.Identifier(tables.index_name(target.model_id, target.generation)),
            table=tables.index(target.model_id, target.generation),
        )

    def build_bytes_per_row(self, dim: int) -> int:
        """The code, and the graph."""
        return dim // 8 + 800

    def settings(self, *, effort: int, rows: int, scope: Scope) -> dict[str, str]:
        """See :func:`hnsw_settings`."""
        wanted = min(max(effort, OVERSAMPLING * rows), EF_MAX)
        return hnsw_settings(effort=wanted, rows=OVERSAMPLING * rows, scope=scope)

    def plan_parameters(self, target: Generation) -> dict[str, Any]:
        """The two means that a query is centred by."""
        return super().plan_parameters(target) | {
            "picture_mean": target.parameters["picture_mean"],
            "text_mean": target.parameters["text_mean"],
        }

    def near(
        self, target: Generation, *, rows: int, scope: Scope, best_of_moment: bool
    ) -> sql.Composed:
        """See :meth:`IndexKind.near`."""
        kind = vector_type(target.dim)
        query = query_vector(target.dim)
        # A query belongs to the kind whose mean is nearer; the gap between them is wide.
        mean = sql.SQL(
            "(CASE WHEN {query} <=> %(text_mean)s::{kind} < {query} <=> %(picture_mean)s::{kind}"
            " THEN %(text_mean)s ELSE %(picture_mean)s END)::{kind}"
        ).format(query=query, kind=kind)
        return sql.SQL(
            "(SELECT f.video_id, f.frame_index, f.time_seconds, f.embedding <#> {query} AS distance"
            " FROM (SELECT c.video_id, c.frame_index FROM {table} c WHERE {coded}"
            " ORDER BY c.code <~> binary_quantize({query} - {mean})::bit({dim}) LIMIT {shortlist})"
            " near JOIN {frames} f USING (video_id, frame_index) ORDER BY distance LIMIT {rows})"
            " UNION ALL ({late})"
        ).format(
            query=query,
            mean=mean,
            dim=sql.Literal(target.dim),
            table=tables.index(target.model_id, target.generation),
            coded=scope.frame_condition("c"),
            shortlist=sql.Literal(max(OVERSAMPLING * rows, 100)),
            frames=tables.frames(target.model_id),
            rows=sql.Literal(rows),
            late=late_frames(target, rows=rows, scope=scope),
        )


def _share_of(connection: Connection, target: Generation) -> float:
    """The share of the frames that makes up a sample."""
    row = connection.execute(
        "SELECT coalesce(sum(frames), 0) FROM ingests WHERE model_id = %s", [target.model_id]
    ).fetchone()
    assert row is not None
    return min(1.0, SAMPLE / max(1, int(row[0])))
