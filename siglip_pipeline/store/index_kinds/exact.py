"""No index: every frame is compared. The truth that the others are measured against."""

from typing import ClassVar

from psycopg import sql

from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.generations import Generation
from siglip_pipeline.store.index_kinds.base import IndexKind, Scope, exact_frames


class Exact(IndexKind):
    """Every frame is compared: perfect, and fast enough up to some ten thousand frames."""

    name: ClassVar[str] = "exact"
    default_effort: ClassVar[int] = 1
    efforts: ClassVar[tuple[int, ...]] = (1,)
    holds_vectors: ClassVar[bool] = False

    def fill(self, connection: Connection, target: Generation) -> None:
        """Nothing to fill: the frames are searched where they are."""

    def index_statement(self, target: Generation) -> sql.Composed | None:
        """None."""
        return None

    def build_bytes_per_row(self, dim: int) -> int:
        """Nothing is built."""
        return 0

    def settings(self, *, effort: int, rows: int, scope: Scope) -> dict[str, str]:
        """None needed."""
        return {}

    def near(
        self, target: Generation, *, rows: int, scope: Scope, best_of_moment: bool
    ) -> sql.Composed:
        """See :meth:`IndexKind.near`."""
        return exact_frames(target, rows=rows, scope=scope)
