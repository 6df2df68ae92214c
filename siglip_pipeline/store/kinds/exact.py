"""No index: every frame is compared. The truth that the others are measured against."""

from collections.abc import Sequence
from typing import ClassVar

from psycopg import sql

from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds.base import Generation, IndexKind, Scope, exact_frames


class Exact(IndexKind):
    """Every frame is compared: perfect, and fast enough up to some ten thousand frames."""

    name: ClassVar[str] = "exact"
    default_ef_search: ClassVar[int] = 1
    ef_searches: ClassVar[tuple[int, ...]] = (1,)
    holds_vectors: ClassVar[bool] = False

    def create(self, connection: Connection, target: Generation) -> None:
        """No table: the frames are searched where they are."""

    def add(
        self, connection: Connection, target: Generation, video_ids: Sequence[int] | None = None
    ) -> None:
        """Nothing to add."""

    def index_statement(self, target: Generation) -> sql.Composed | None:
        """None."""
        return None

    def build_bytes_per_row(self, dim: int) -> int:
        """Nothing is built."""
        return 0

    def settings(self, *, ef_search: int, rows: int, scope: Scope) -> dict[str, str]:
        """None needed."""
        return {}

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
        return exact_frames(target, rows=rows, scope=scope, query=query)
