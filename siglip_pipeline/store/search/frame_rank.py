"""Rank one stored frame among all frames by an exact comparison with a query."""

from dataclasses import dataclass

from psycopg import sql

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.search.hit_frames import score_of_frame

_RANK = sql.SQL("""
WITH own AS MATERIALIZED (
    SELECT {score} AS score FROM {frames} f WHERE video_id = %(video)s AND frame_index = %(frame)s
)
SELECT own.score, counted.better + 1, counted.frames
FROM own, LATERAL (
    SELECT count(*) FILTER (WHERE {score} > own.score) AS better, count(*) AS frames
    FROM {frames} f
) counted
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRank:
    """How well a frame fits a query, compared with all others."""

    score: float
    """Cosine similarity with the nearest vector of the query."""
    rank: int
    """1 for the best frame; equal frames share a rank."""
    frames: int
    """Frames that were compared."""


def rank_frame(
    database: Database, model_id: int, place: tuple[int, int], query_QD: FloatArray
) -> FrameRank | None:
    """Compare a query with every frame of a model; None if the frame is gone.

    Args:
        database: holds the vectors.
        model_id: the model of the vectors.
        place: video_id and frame_index of the frame.
        query_QD: unit vectors; a frame's score is that of the nearest.
    """
    score, vectors = score_of_frame(query_QD)
    with database.connection() as connection:
        row = connection.execute(
            _RANK.format(score=score, frames=tables.frames(model_id)),
            {"video": place[0], "frame": place[1], **vectors},
        ).fetchone()
    if row is None:
        return None
    # The product of vectors in half precision may exceed 1.
    return FrameRank(score=max(-1.0, min(1.0, row[0])), rank=row[1], frames=row[2])
