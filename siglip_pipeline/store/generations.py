"""Index generations: which one is live, and how it follows videos that change.

A load or a deletion updates the live generation in its own transaction. Stale rows leave the index
at once. New rows are added where they are few (moments), or else searched exactly beside the index
until the next generation (frames). ``late`` marks the videos concerned.
"""

from collections.abc import Sequence

from psycopg import sql

from siglip_pipeline.store import tables
from siglip_pipeline.store.database import LOCK_MODEL, LOCK_VIDEO, Connection
from siglip_pipeline.store.kinds import Generation, index_kind

_LIVE = """
SELECT g.generation, g.kind, g.parameters, g.rows, m.dim, m.is_active
FROM models m
LEFT JOIN generations g ON g.model_id = m.model_id AND g.generation = m.active_generation
WHERE m.model_id = %s
"""

_MARK_LATE = """
INSERT INTO generation_videos (model_id, generation, video_id, ingest_id, frames, late)
SELECT model_id, %s, video_id, ingest_id, frames, true
FROM ingests WHERE model_id = %s AND video_id = %s
ON CONFLICT (model_id, generation, video_id)
    DO UPDATE SET ingest_id = excluded.ingest_id, frames = excluded.frames, late = true
"""

_DELETED = """
SELECT video_id FROM generation_videos g
WHERE model_id = %s AND generation = %s AND ingest_id IS NOT NULL
  AND NOT EXISTS (
      SELECT FROM ingests i WHERE i.model_id = g.model_id AND i.video_id = g.video_id
  )
"""

_CHANGED = """
SELECT i.video_id
FROM ingests i
LEFT JOIN generation_videos g
    ON g.model_id = i.model_id AND g.generation = %s AND g.video_id = i.video_id
WHERE i.model_id = %s AND g.ingest_id IS DISTINCT FROM i.ingest_id
ORDER BY i.video_id
"""

_CHANGED_SHARE = """
SELECT coalesce(sum(frames) FILTER (WHERE late), 0)::float8 / greatest(sum(frames), 1)
FROM generation_videos WHERE model_id = %s AND generation = %s
"""


def live(connection: Connection, model_id: int) -> Generation | None:
    """Return the published generation of a model; None before the first one."""
    return live_and_active(connection, model_id)[0]


def live_and_active(connection: Connection, model_id: int) -> tuple[Generation | None, bool]:
    """Return the published generation of a model, and whether the model is the active one."""
    row = connection.execute(_LIVE, [model_id]).fetchone()
    if row is None:
        return None, False
    generation, kind, parameters, rows, dim, active = row
    if generation is None:
        return None, active
    found = Generation(
        model_id=model_id,
        dim=dim,
        generation=generation,
        kind=kind,
        parameters=parameters,
        rows=rows or 0,
    )
    return found, active


def has_its_index(connection: Connection, target: Generation) -> bool:
    """Return whether the database has the similarity index of a generation, if its kind has one.

    A dump that was restored in part may lack it, or the table.
    """
    if index_kind(target.kind).index_statement(target) is None:
        return True
    name = tables.index_name(target.model_id, target.generation)
    [(found,)] = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid)",
        [name],
    )
    return bool(found)


def lock_for_writing(connection: Connection, model_id: int, video_id: int) -> None:
    """Make publishing, and other writers of the same video, wait until the transaction ends."""
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [LOCK_MODEL, model_id])
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_VIDEO, video_id])


def lock_for_publishing(connection: Connection, model_id: int) -> None:
    """Wait for the writers of a model, and make new ones wait until the transaction ends."""
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_MODEL, model_id])


def refresh_video(connection: Connection, target: Generation, video_id: int) -> None:
    """Update a generation with the current vectors of a video; the caller holds the lock."""
    kind = index_kind(target.kind)
    _forget(connection, target, [video_id])
    if kind.adds_changes:
        kind.add(connection, target, [video_id])
    connection.execute(_MARK_LATE, [target.generation, target.model_id, video_id])


def catch_up(connection: Connection, target: Generation) -> int:
    """Apply the loads and deletions since the generation was filled.

    The caller holds the lock for publishing.

    Returns:
        The number of deleted videos.
    """
    for video_id in changed_videos(connection, target):
        refresh_video(connection, target, video_id)
    gone = connection.execute(_DELETED, [target.model_id, target.generation]).fetchall()
    _drop_videos(connection, target, [video_id for (video_id,) in gone])
    return len(gone)


def changed_videos(connection: Connection, target: Generation) -> list[int]:
    """Return the ids of videos that were loaded since the generation was filled."""
    rows = connection.execute(_CHANGED, [target.generation, target.model_id]).fetchall()
    return [video_id for (video_id,) in rows]


def remove_video(connection: Connection, video_id: int) -> None:
    """Delete a video's vectors under every model, within the caller's transaction."""
    models = connection.execute("SELECT model_id FROM models ORDER BY model_id").fetchall()
    for (model_id,) in models:
        lock_for_writing(connection, model_id, video_id)
        delete_rows(connection, model_id, video_id)
        connection.execute(
            "DELETE FROM ingests WHERE model_id = %s AND video_id = %s", [model_id, video_id]
        )
        target = live(connection, model_id)
        if target is not None:
            _drop_videos(connection, target, [video_id])


def delete_rows(connection: Connection, model_id: int, video_id: int) -> None:
    """Delete a video's frames and moments under one model."""
    for table in (tables.frames(model_id), tables.moments(model_id)):
        connection.execute(sql.SQL("DELETE FROM {} WHERE video_id = %s").format(table), [video_id])


def changed_share(connection: Connection, target: Generation) -> float:
    """Return the share of frames that were added, replaced or deleted since the build."""
    [row] = connection.execute(_CHANGED_SHARE, [target.model_id, target.generation])
    return float(row[0] or 0)


def _drop_videos(connection: Connection, target: Generation, video_ids: Sequence[int]) -> None:
    _forget(connection, target, video_ids)
    connection.execute(
        """
        UPDATE generation_videos SET ingest_id = NULL, late = true
        WHERE model_id = %s AND generation = %s AND video_id = ANY(%s)
        """,
        [target.model_id, target.generation, list(video_ids)],
    )


def _forget(connection: Connection, target: Generation, video_ids: Sequence[int]) -> None:
    if video_ids and index_kind(target.kind).holds_vectors:
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE video_id = ANY(%s)").format(
                tables.index(target.model_id, target.generation)
            ),
            [list(video_ids)],
        )
