"""Index generations: which one is live, and how it keeps up with videos that change.

A load or a deletion brings the live generation up to date in its own transaction: what is stale
leaves the index at once, and what is new is either added (moments are few) or looked up beside
the index until the next generation (frames are many; ``late`` marks their videos).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from psycopg import sql

from siglip_pipeline.store import tables
from siglip_pipeline.store.copy import copy_rows
from siglip_pipeline.store.database import LOCK_MODEL, LOCK_VIDEO, Connection
from siglip_pipeline.store.moments import Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One index over the vectors of one model."""

    model_id: int
    dim: int
    generation: int
    kind: str
    parameters: dict[str, Any] = field(default_factory=dict)


def live(connection: Connection, model_id: int) -> Generation | None:
    """The published generation of a model."""
    row = connection.execute(
        "SELECT g.generation, g.kind, g.parameters, m.dim FROM models m JOIN generations g"
        " ON g.model_id = m.model_id AND g.generation = m.active_generation"
        " WHERE m.model_id = %s",
        [model_id],
    ).fetchone()
    if row is None:
        return None
    generation, kind, parameters, dim = row
    return Generation(
        model_id=model_id, dim=dim, generation=generation, kind=kind, parameters=parameters
    )


def lock_for_writing(connection: Connection, model_id: int, video_id: int) -> None:
    """Hold off publishing, and other writers of the same video, until the transaction ends."""
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [LOCK_MODEL, model_id])
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_VIDEO, video_id])


def replace_video(
    connection: Connection, target: Generation, video_id: int, ingest_id: int, moments: Moments
) -> None:
    """Make what a video holds now searchable in a generation."""
    _forget(connection, target, video_id)
    if target.kind == "moments":
        add_moments(connection, target, video_id, moments)
    connection.execute(
        "INSERT INTO generation_videos (model_id, generation, video_id, ingest_id, frames, late)"
        " VALUES (%s, %s, %s, %s, %s, true) ON CONFLICT (model_id, generation, video_id)"
        " DO UPDATE SET ingest_id = excluded.ingest_id, frames = excluded.frames, late = true",
        [target.model_id, target.generation, video_id, ingest_id, moments.frames],
    )


def add_moments(
    connection: Connection, target: Generation, video_id: int, moments: Moments
) -> None:
    """Append a video's moments to a generation of that kind."""
    copy_rows(
        connection,
        tables.index(target.model_id, target.generation),
        {
            "video_id": ("int4", video_id),
            "moment": ("int4", np.arange(len(moments))),
            "first_frame": ("int4", moments.first_frame_M),
            "last_frame": ("int4", moments.last_frame_M),
            "start_seconds": ("float8", moments.start_seconds_M),
            "end_seconds": ("float8", moments.end_seconds_M),
        },
        vector=("embedding", moments.means_MD),
    )


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
            _forget(connection, target, video_id)
            connection.execute(
                "UPDATE generation_videos SET ingest_id = NULL, late = true"
                " WHERE model_id = %s AND generation = %s AND video_id = %s",
                [model_id, target.generation, video_id],
            )


def delete_rows(connection: Connection, model_id: int, video_id: int) -> None:
    """Delete a video's frames and moments under one model."""
    for table in (tables.frames(model_id), tables.moments(model_id)):
        connection.execute(sql.SQL("DELETE FROM {} WHERE video_id = %s").format(table), [video_id])


def _forget(connection: Connection, target: Generation, video_id: int) -> None:
    if target.kind != "exact":
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE video_id = %s").format(
                tables.index(target.model_id, target.generation)
            ),
            [video_id],
        )
