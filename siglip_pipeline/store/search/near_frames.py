"""Find the frames nearest to a query, ungrouped, for the recall check."""

from dataclasses import dataclass
from typing import Any

from pgvector import HalfVector
from psycopg import sql

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds import Generation, IndexKind, Scope, index_kind
from siglip_pipeline.store.kinds.effort import Effort
from siglip_pipeline.store.search.execution import set_up


@dataclass(frozen=True, slots=True, kw_only=True)
class NearFrame:
    """A frame near a query."""

    video_id: int
    frame_index: int
    distance: float
    """Negative inner product."""


_NEAREST = sql.SQL("""
WITH near AS MATERIALIZED ({near})
SELECT video_id, frame_index, distance
FROM near
ORDER BY distance, video_id, frame_index LIMIT {k}
""")


class NearFrames:
    """Find the ``k`` frames nearest to a query by an index, ungrouped.

    The statement is composed once, for many queries in one transaction. It reads
    ``least_rows`` of the index, or more if ``k`` or the effort needs more. With ``best_of_moment``
    each moment of an index that groups frames is found by its best frame.
    """

    def __init__(
        self,
        connection: Connection,
        kind: IndexKind,
        target: Generation,
        *,
        k: int,
        scope: Scope,
        effort: Effort,
        least_rows: int = 0,
        best_of_moment: bool = False,
    ) -> None:
        rows = max(k, least_rows, effort.rows if kind.groups_frames else 0)
        kind = set_up(connection, kind, target, scope, effort=effort, rows=rows)
        self._connection, self._kind, self._target = connection, kind, target
        self._k, self._scope = k, scope
        self._statement = _NEAREST.format(
            near=kind.near(target, rows=rows, scope=scope, best_of_moment=best_of_moment),
            k=sql.Literal(k),
        )
        self._bytes = self._statement.as_bytes(connection)

    def __call__(self, query_D: FloatArray) -> list[NearFrame]:
        """Return frames by rising distance; fewer than ``k`` only if fewer exist.

        Args:
            query_D: unit vector.
        """
        found = self._execute(self._bytes, query_D, prepare=self._kind.keeps_plan(self._scope))
        if len(found) < self._k and self._kind.name != "exact":
            kind = index_kind("exact")
            everywhere = NearFrames(
                self._connection,
                kind,
                self._target,
                k=self._k,
                scope=self._scope,
                effort=kind.efforts[0],
            )
            return everywhere(query_D)
        return [NearFrame(video_id=row[0], frame_index=row[1], distance=row[2]) for row in found]

    def plan(self, query_D: FloatArray) -> list[str]:
        """Return the lines of EXPLAIN."""
        return [row[0] for row in self._execute(b"EXPLAIN (COSTS OFF) " + self._bytes, query_D)]

    def _execute(
        self, statement: bytes, query_D: FloatArray, *, prepare: bool = False
    ) -> list[tuple[Any, ...]]:
        values = self._scope.parameters() | self._kind.plan_parameters(self._target)
        return self._connection.execute(
            # Not prepared by default: a generic plan does not know the filter.
            statement,
            values | {"query": HalfVector(query_D)},
            prepare=prepare,
            binary=True,
        ).fetchall()
