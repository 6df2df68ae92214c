"""Score query vectors against the frames of each video, in one pass over the frames in scope."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pgvector import HalfVector
from psycopg import sql

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.kinds import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class FitInVideo:
    """How well one vector fits the frames of one video."""

    video: str
    video_id: int
    frames: int
    """Frames in scope."""
    fitting: int
    """Frames with at least the requested score."""
    best_score: float
    """Cosine similarity of the best frame."""
    best_seconds: float
    """Time of the best frame; the earliest among equals."""
    media_offset_seconds: float
    """What the clock of a player shows at the first frame of the video."""


# Arrays compare from the left: the highest score, then the earliest time.
_FIT = """
SELECT v.path, v.video_id, s.frames, s.fitting, s.best, v.media_offset_seconds
FROM (
    SELECT f.video_id, count(*) AS frames, count(*) FILTER (WHERE f.score >= %(least)s) AS fitting,
           max(ARRAY[f.score, -f.time_seconds]) AS best
    FROM (
        SELECT video_id, time_seconds, -(embedding <#> %(query)b) AS score
        FROM {frames} row WHERE {scope}
    ) f
    GROUP BY f.video_id
) s
JOIN videos v USING (video_id)
ORDER BY v.path
"""

_FRAMES = """
SELECT w.place, f.embedding
FROM unnest(%s::integer[], %s::integer[]) WITH ORDINALITY AS w (video_id, frame_index, place)
JOIN {} f USING (video_id, frame_index)
"""


def fit_in_videos(
    connection: Connection, model_id: int, vector_D: FloatArray, *, scope: Scope, min_score: float
) -> list[FitInVideo]:
    """Compare a unit vector with every frame in scope; return videos by path."""
    query = sql.SQL(_FIT).format(frames=tables.frames(model_id), scope=scope.frame_condition("row"))
    values = scope.parameters() | {"query": HalfVector(vector_D), "least": min_score}
    rows = connection.execute(query, values).fetchall()
    return [
        FitInVideo(
            video=path,
            video_id=video_id,
            frames=frames,
            fitting=fitting,
            best_score=max(-1.0, min(1.0, best[0])),
            best_seconds=-best[1],
            media_offset_seconds=offset,
        )
        for path, video_id, frames, fitting, best, offset in rows
    ]


def score_frames(
    database: Database,
    model_id: int,
    frames: Sequence[tuple[int, int]],
    vectors_QD: FloatArray,
) -> FloatArray:
    """Return the cosines [N, Q] of stored frames and unit vectors; NaN where a frame is gone.

    Args:
        database: holds the vectors.
        model_id: the model of the vectors.
        frames: (video_id, frame_index) of each frame.
        vectors_QD: unit vectors.
    """
    scores_NQ = np.full((len(frames), len(vectors_QD)), np.nan, np.float32)
    query = sql.SQL(_FRAMES).format(tables.frames(model_id))
    values = [[video_id for video_id, _ in frames], [index for _, index in frames]]
    with database.connection() as connection:
        rows = connection.cursor(binary=True).execute(query, values).fetchall()
    for place, embedding in rows:
        scores_NQ[place - 1] = vectors_QD @ embedding.to_numpy().astype(np.float32)
    return scores_NQ
