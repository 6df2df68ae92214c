"""What the kinds that search an HNSW graph have in common."""

from typing import ClassVar

from psycopg import sql

from siglip_pipeline.store import tables
from siglip_pipeline.store.kinds.base import Generation, IndexKind, Scope

# pgvector's own upper bound of hnsw.ef_search.
EF_MAX = 1000
EF_FILTERED = 200
NEIGHBOURS, EF_CONSTRUCTION = 16, 200
GRAPH_BYTES = 800
"""Memory that a build needs per row beside the vector, at 16 neighbours."""


class HnswIndex(IndexKind):
    """An HNSW graph over one column of the generation's table."""

    column: ClassVar[str] = "embedding"
    operators: ClassVar[str] = "halfvec_ip_ops"
    """The inner product orders unit vectors as the cosine does, and costs less."""
    oversampling: ClassVar[int] = 1
    """Rows of the graph to read per row that is requested."""

    def index_statement(self, target: Generation) -> sql.Composed | None:
        """See :meth:`IndexKind.index_statement`."""
        return sql.SQL(
            """
            CREATE INDEX {name} ON {table} USING hnsw ({column} {operators})
            WITH (m = {neighbours}, ef_construction = {ef_construction})
            """
        ).format(
            name=sql.Identifier(tables.index_name(target.model_id, target.generation)),
            table=tables.index(target.model_id, target.generation),
            column=sql.Identifier(self.column),
            operators=sql.SQL(self.operators),
            neighbours=sql.Literal(NEIGHBOURS),
            ef_construction=sql.Literal(EF_CONSTRUCTION),
        )

    def build_bytes_per_row(self, dim: int) -> int:
        """Return 2 bytes per dimension plus the graph: measured as 2.25 KB at 768 dimensions."""
        return 2 * dim + GRAPH_BYTES

    def settings(self, *, ef_search: int, rows: int, scope: Scope) -> dict[str, str]:
        """Return settings that continue until enough rows have passed the filter."""
        rows *= self.oversampling
        ef = max(ef_search, rows, 0 if scope.everything else EF_FILTERED)
        return {
            "hnsw.ef_search": str(min(ef, EF_MAX)),
            "hnsw.iterative_scan": "relaxed_order",
            "hnsw.max_scan_tuples": "20000" if scope.everything else "200000",
        }
