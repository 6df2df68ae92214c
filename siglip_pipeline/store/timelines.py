"""Read the times of a video's stored frames and moments, for a player."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from psycopg import sql
from psycopg.rows import class_row

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection, Database


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTime:
    """A stored frame that has a vector."""

    frame_index: int
    time_seconds: float
    embedding_D: FloatArray | None = None
    """Its vector under the active model, if it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentSpan:
    """A moment as a half-open range of seconds."""

    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTimes:
    """Frames of a part of a video; none if it has no vectors."""

    frames: tuple[FrameTime, ...] = ()
    """In order of time: all frames, or as many as requested, evenly spaced."""
    total: int = 0
    """How many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoName:
    """What identifies a video's file and the pictures of its frames."""

    video_id: int
    video: str
    frames_version: str | None
    """Changes when the stored frames change; None while there are none."""
    media_offset_seconds: float
    """What the clock of a player shows at the first frame."""


# Of n rows in most - 1 steps: each row that is the first of a new step; or those from an offset on.
# The first row is always there, as it knows n.
_FRAMES = """
SELECT frame_index, time_seconds, row, n, {columns}
FROM (
    SELECT f.*, row_number() OVER (ORDER BY frame_index) - 1 AS row,
           count(*) OVER () AS n
    FROM {frames} f WHERE video_id = %(video)s
      AND time_seconds >= %(start)s AND time_seconds < %(end)s
) f
WHERE row = 0 OR CASE
    WHEN %(offset)s::integer IS NOT NULL
    THEN row >= %(offset)s AND row - %(offset)s < %(most)s
    ELSE n <= %(most)s
      OR row * %(steps)s / greatest(n - 1, 1) <> (row - 1) * %(steps)s / greatest(n - 1, 1)
    END
ORDER BY frame_index
"""

_FRAMES_AT = """
SELECT f.frame_index
FROM unnest(%s::integer[], %s::float8[]) WITH ORDINALITY p (video_id, seconds, place)
LEFT JOIN LATERAL (
    SELECT frame_index FROM {} f
    WHERE f.video_id = p.video_id
    ORDER BY abs(f.time_seconds - p.seconds), frame_index LIMIT 1
) f ON true
ORDER BY p.place
"""

_NAME = """
SELECT video_id, path AS video,
       left(md5(source_sha256 || ' ' || sampling || ' ' || extract(epoch FROM decoded_at)), 12)
           AS frames_version,
       media_offset_seconds
FROM videos WHERE video_id = %s
"""


class TimelineStore:
    """Read the times of frames and moments."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def frames(
        self,
        video_id: int,
        *,
        start_seconds: float = 0.0,
        end_seconds: float = math.inf,
        max_frames: int,
        offset: int | None = None,
        vectors: bool = False,
    ) -> FrameTimes:
        """Return the frames of a part of a video under the active model.

        Args:
            video_id: the database's number of the video.
            start_seconds: from this time.
            end_seconds: before this time.
            max_frames: most frames to return, evenly spaced, the first and the last included.
            offset: skip so many frames, and return those that follow instead.
            vectors: also return their vectors.
        """
        column = sql.Identifier("embedding") if vectors else sql.SQL("NULL")
        with self._database.connection() as connection:
            model_id = _active_model(connection)
            if model_id is None:
                return FrameTimes()
            rows = connection.execute(
                sql.SQL(_FRAMES).format(columns=column, frames=tables.frames(model_id)),
                {
                    "video": video_id,
                    "start": start_seconds,
                    "end": end_seconds,
                    "most": max_frames,
                    "steps": max_frames - 1,
                    "offset": offset,
                },
            ).fetchall()
        frames = tuple(
            FrameTime(
                frame_index=index,
                time_seconds=time,
                embedding_D=vector and vector.to_numpy().astype(np.float32),
            )
            for index, time, row, _, vector in rows
            if row >= (offset or 0)
        )
        return FrameTimes(frames=frames, total=rows[0][3] if rows else 0)

    def moments(self, video_id: int) -> tuple[MomentSpan, ...]:
        """Return the moments of a video under the active model, in order of time."""
        with self._database.connection() as connection:
            model_id = _active_model(connection)
            if model_id is None:
                return ()
            moments = connection.cursor(row_factory=class_row(MomentSpan)).execute(
                sql.SQL(
                    "SELECT start_seconds, end_seconds FROM {} WHERE video_id = %s ORDER BY moment"
                ).format(tables.moments(model_id)),
                [video_id],
            )
            return tuple(moments.fetchall())

    def frames_at(self, places: Sequence[tuple[int, float]]) -> list[int | None]:
        """Return the frame nearest to each place (video id, seconds) under the active model.

        Returns:
            ``frame_index`` in the order of ``places``; None where a video has no vectors.
        """
        with self._database.connection() as connection:
            model_id = _active_model(connection)
            if model_id is None:
                return [None] * len(places)
            rows = connection.execute(
                sql.SQL(_FRAMES_AT).format(tables.frames(model_id)),
                [[video_id for video_id, _ in places], [seconds for _, seconds in places]],
            ).fetchall()
        return [frame_index for (frame_index,) in rows]

    def name(self, video_id: int) -> VideoName | None:
        """Return a video by id; None if unknown."""
        with (
            self._database.connection() as connection,
            connection.cursor(row_factory=class_row(VideoName)) as cursor,
        ):
            return cursor.execute(_NAME, [video_id]).fetchone()


def _active_model(connection: Connection) -> int | None:
    row = connection.execute("SELECT model_id FROM models WHERE is_active").fetchone()
    return None if row is None else int(row[0])
