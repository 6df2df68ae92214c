"""Read which index answers searches now, for the status and the checks."""

from dataclasses import dataclass

from siglip_pipeline.store import counts
from siglip_pipeline.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveIndex:
    """The published generation of a model."""

    kind: str
    recall_at_10: float | None
    recall_queries: int
    """Queries that its recall check asks: fewer than wanted in a small collection."""
    frames: int
    """Frames that it covers."""
    instead_of: str | None
    """The index that was refused, and why, if this one answers in its place."""


def live_index(database: Database, model_id: int) -> LiveIndex | None:
    """Return the published generation of a model; None before the first one."""
    with database.connection() as connection:
        row = connection.execute(
            """
            SELECT generation, kind, recall_at_10, reason,
                   (SELECT count(*) FROM recall_queries q WHERE q.model_id = g.model_id)
            FROM generations g WHERE model_id = %s AND state = 'live'
            """,
            [model_id],
        ).fetchone()
        if row is None:
            return None
        frames = counts.answered_frames(connection, model_id, row[0])
    return LiveIndex(
        kind=row[1],
        recall_at_10=row[2],
        recall_queries=row[4],
        frames=frames,
        instead_of=row[3],
    )
