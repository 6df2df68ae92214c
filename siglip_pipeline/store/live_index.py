"""The index that answers searches now, as the status and the checks see it."""

from dataclasses import dataclass

from siglip_pipeline.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveIndex:
    """The published generation of a model."""

    kind: str
    recall_at_10: float | None
    frames: int
    """Frames that it answers for."""


def live_index(database: Database, model_id: int) -> LiveIndex | None:
    """The published generation; None before the first one."""
    with database.connection() as connection:
        row = connection.execute(
            "SELECT g.kind, g.recall_at_10, (SELECT coalesce(sum(v.frames), 0)"
            "   FROM generation_videos v WHERE v.model_id = g.model_id"
            "   AND v.generation = g.generation AND v.ingest_id IS NOT NULL)"
            " FROM generations g WHERE g.model_id = %s AND g.state = 'live'",
            [model_id],
        ).fetchone()
    if row is None:
        return None
    return LiveIndex(kind=row[0], recall_at_10=row[1], frames=int(row[2]))
