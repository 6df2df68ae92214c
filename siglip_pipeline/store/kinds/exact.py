"""No index: a search compares every frame. The other kinds are measured against it."""

from collections.abc import Sequence
from typing import ClassVar

from psycopg import sql

from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds.base import Generation, IndexKind, Scope, exact_frames
from siglip_pipeline.store.kinds.effort import Effort, efforts


class Exact(IndexKind):
    """Compare every frame: exact, and fast enough up to some ten thousand frames."""

    name: ClassVar[str] = "exact"
    default_ef_search: ClassVar[int] = 1
    efforts: ClassVar[tuple[Effort, ...]] = efforts(1)
    holds_vectors: ClassVar[bool] = False

    def create(self, connection: Connection, target: Generation) -> None:
        """Create nothing: searches read the frames table."""

    def add(
        self, connection: Connection, target: Generation, video_ids: Sequence[int] | None = None
    ) -> None:
        """Add nothing."""

    def index_statement(self, target: Generation) -> sql.Composed | None:
        """Return None."""
        return None

    def build_bytes_per_row(self, dim: int) -> int:
        """Return 0: nothing is built."""
        return 0

    def settings(self, *, ef_search: int, rows: int, scope: Scope) -> dict[str, str]:
        """Return no settings."""
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
