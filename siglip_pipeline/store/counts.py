"""Count what is stored under a model, and how much of it an index covers."""

from dataclasses import dataclass

from siglip_pipeline.store.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCounts:
    """What is stored under a model."""

    frames: int
    moments: int


def stored(connection: Connection, model_id: int) -> StoredCounts:
    """Return the number of frames and moments of all videos under a model."""
    [row] = connection.execute(
        """
        SELECT coalesce(sum(frames), 0), coalesce(sum(moments), 0) FROM ingests
        WHERE model_id = %s
        """,
        [model_id],
    )
    return StoredCounts(frames=int(row[0]), moments=int(row[1]))


def answered_frames(connection: Connection, model_id: int, generation: int) -> int:
    """Return the number of frames that an index generation covers."""
    [row] = connection.execute(
        """
        SELECT coalesce(sum(frames), 0) FROM generation_videos WHERE model_id = %s
        AND generation = %s AND ingest_id IS NOT NULL
        """,
        [model_id, generation],
    )
    return int(row[0])
