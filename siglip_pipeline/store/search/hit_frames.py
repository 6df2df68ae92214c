"""Score the frames of hits, and the frames beside them, by an exact comparison with a query.

Shapes: F frames of one hit, Q vectors of the query.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pgvector import HalfVector
from psycopg import sql

from siglip_pipeline.hits import Hit
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Database

_FRAMES = sql.SQL("""
WITH biases AS MATERIALIZED ({biases})
SELECT hit.place, f.frame_index < span.first_frame, f.frame_index > span.last_frame,
       {score}, biases.bias
FROM unnest(%(videos)s::integer[], %(starts)s::float8[], %(ends)s::float8[])
     WITH ORDINALITY AS hit (video_id, start_seconds, end_seconds, place)
CROSS JOIN LATERAL (
    SELECT min(first_frame) AS first_frame, max(last_frame) AS last_frame FROM {moments} m
    WHERE m.video_id = hit.video_id
      AND m.start_seconds < hit.end_seconds AND m.end_seconds > hit.start_seconds
) span
CROSS JOIN LATERAL (
    SELECT * FROM {frames} own
    WHERE own.video_id = hit.video_id
      AND own.frame_index BETWEEN span.first_frame AND span.last_frame
    UNION ALL
    (
        SELECT * FROM {frames} before
        WHERE before.video_id = hit.video_id AND before.frame_index < span.first_frame
        ORDER BY before.frame_index DESC LIMIT %(beside)s
    )
    UNION ALL
    (
        SELECT * FROM {frames} after
        WHERE after.video_id = hit.video_id AND after.frame_index > span.last_frame
        ORDER BY after.frame_index LIMIT %(beside)s
    )
) f
LEFT JOIN biases ON (biases.video_id, biases.frame_index) = (f.video_id, f.frame_index)
WHERE f.time_seconds >= %(from_seconds)s AND f.time_seconds < %(to_seconds)s
ORDER BY hit.place, f.frame_index
""")

# Those of a load of the video that is no longer stored do not count.
_BIASES = sql.SQL("""
SELECT b.video_id, each.frame_index, each.bias
FROM frame_biases b JOIN ingests i USING (model_id, video_id, ingest_id)
CROSS JOIN LATERAL unnest(b.frame_index, b.bias) AS each (frame_index, bias)
WHERE b.model_id = %(model)s AND b.video_id = ANY(%(videos)s::integer[])
""")
_NO_BIASES = sql.SQL("SELECT 0 AS video_id, 0 AS frame_index, NULL::real AS bias WHERE false")


@dataclass(frozen=True, slots=True, kw_only=True)
class HitFrames:
    """The frames of one hit and those beside it, in order."""

    scores_F: FloatArray
    biases_F: FloatArray
    """NaN for a frame without one."""
    own: slice
    """Those of the hit itself."""


def score_of_frame(query_QD: FloatArray) -> tuple[sql.Composed, dict[str, HalfVector]]:
    """Return SQL for the score of a frame ``f``, that of the nearest vector; its parameters."""
    vectors = {f"query_{row}": HalfVector(query_D) for row, query_D in enumerate(query_QD)}
    products = [sql.SQL("-(f.embedding <#> {})").format(sql.Placeholder(name)) for name in vectors]
    return sql.SQL("greatest({})").format(sql.SQL(", ").join(products)), vectors


def score_hit_frames(
    database: Database,
    model_id: int,
    hits: Sequence[Hit],
    query_QD: FloatArray,
    *,
    beside: int = 0,
    with_biases: bool = False,
    time_range: tuple[float, float] | None = None,
) -> list[HitFrames]:
    """Return the frames of each hit with their scores.

    Args:
        database: holds the vectors.
        model_id: the model of the vectors.
        hits: of one search.
        query_QD: the query; a frame's score is that of the nearest vector.
        beside: how many frames before and after the hit to add.
        with_biases: also read the biases of the frames.
        time_range: only frames of these seconds, half-open.

    Returns:
        No frame for a hit whose video was removed or replaced meanwhile.
    """
    start, end = time_range or (0.0, float("inf"))
    score, vectors = score_of_frame(query_QD)
    statement = _FRAMES.format(
        score=score,
        biases=_BIASES if with_biases else _NO_BIASES,
        moments=tables.moments(model_id),
        frames=tables.frames(model_id),
    )
    values = {
        "videos": [hit.video_id for hit in hits],
        "starts": [hit.start_seconds for hit in hits],
        "ends": [hit.end_seconds for hit in hits],
        "model": model_id,
        "beside": beside,
        "from_seconds": start,
        "to_seconds": end,
        **vectors,
    }
    with database.connection() as connection:
        rows = connection.execute(statement, values).fetchall()
    found: list[list[tuple[bool, bool, float, float | None]]] = [[] for _ in hits]
    for place, *frame in rows:
        found[place - 1].append(tuple(frame))
    return [
        HitFrames(
            scores_F=np.array([frame[2] for frame in frames], np.float32),
            biases_F=np.array([frame[3] for frame in frames], np.float32),
            own=slice(
                sum(frame[0] for frame in frames), len(frames) - sum(frame[1] for frame in frames)
            ),
        )
        for frames in found
    ]
