"""Score the moments in stretches of videos by an exact comparison of their frames with a query."""

from collections.abc import Sequence
from dataclasses import dataclass

from pgvector import HalfVector
from psycopg import sql

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Database

_SCORES = sql.SQL("""
SELECT m.video_id, m.moment, m.start_seconds, m.end_seconds, best.frame_index, best.time_seconds,
       greatest(-1, least(1, best.score))
FROM unnest(%(videos)s::integer[], %(starts)s::float8[], %(ends)s::float8[])
     AS stretch (video_id, start_seconds, end_seconds)
JOIN {moments} m ON m.video_id = stretch.video_id
 AND m.start_seconds < stretch.end_seconds AND m.end_seconds > stretch.start_seconds
CROSS JOIN LATERAL (
    SELECT f.frame_index, f.time_seconds, -(f.embedding <#> %(query)s) AS score
    FROM {frames} f
    WHERE f.video_id = m.video_id AND f.frame_index BETWEEN m.first_frame AND m.last_frame
      AND f.time_seconds >= %(from_seconds)s AND f.time_seconds < %(to_seconds)s
    ORDER BY f.embedding <#> %(query)s, f.frame_index LIMIT 1
) best
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of a video, in seconds."""

    video_id: int
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredMoment:
    """A moment by its best frame for one query."""

    video_id: int
    moment: int
    start_seconds: float
    end_seconds: float
    frame_index: int
    time_seconds: float
    score: float


def score_moments(
    database: Database,
    model_id: int,
    stretches: Sequence[Stretch],
    query_D: FloatArray,
    *,
    time_range: tuple[float, float] | None = None,
) -> list[ScoredMoment]:
    """Return every moment that overlaps one of the stretches, which do not overlap each other.

    Args:
        database: holds the vectors.
        model_id: the model of the vectors.
        stretches: disjoint within each video.
        query_D: a unit vector.
        time_range: only frames of these seconds, half-open; moments without one are left out.
    """
    start, end = time_range or (0.0, float("inf"))
    with database.connection() as connection:
        rows = connection.execute(
            _SCORES.format(moments=tables.moments(model_id), frames=tables.frames(model_id)),
            {
                "videos": [s.video_id for s in stretches],
                "starts": [s.start_seconds for s in stretches],
                "ends": [s.end_seconds for s in stretches],
                "query": HalfVector(query_D),
                "from_seconds": start,
                "to_seconds": end,
            },
        ).fetchall()
    # A moment that touches two stretches comes twice.
    found = {
        (row[0], row[1]): ScoredMoment(
            video_id=row[0],
            moment=row[1],
            start_seconds=row[2],
            end_seconds=row[3],
            frame_index=row[4],
            time_seconds=row[5],
            score=row[6],
        )
        for row in rows
    }
    return list(found.values())
