"""Read which videos share segments, according to the last comparison."""

from dataclasses import dataclass
from typing import Annotated

from psycopg.rows import class_row

from siglip_pipeline.store.database import Database
from siglip_pipeline.text.json_form import DOCUMENTED, Rounded3, Rounded6, rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSegment:
    """A segment that two videos share; ``a`` is the video that was registered first."""

    __pydantic_config__ = DOCUMENTED

    video_a: str
    video_b: str
    video_a_id: int
    video_b_id: int
    start_a_seconds: Rounded3
    end_a_seconds: Rounded3
    start_b_seconds: Rounded3
    end_b_seconds: Rounded3
    media_offset_a_seconds: Rounded3
    """What a player's clock shows at the first frame of ``a``."""
    media_offset_b_seconds: Rounded3
    speed: Annotated[float, rounded(4)]
    """Seconds of b per second of a."""
    score: Rounded6
    """Mean cosine of the matched frames."""
    evidence: Annotated[float, rounded(2)]
    """The number of different frames; 1 for a still picture."""
    duplicate: bool
    """The videos are copies, or one is a copy of a section of the other."""
    covered: Annotated[float, rounded(4)]
    """Share of the frame weights of the shorter video that all shared segments hold."""


_SEGMENTS = """
SELECT a.path AS video_a, b.path AS video_b, s.video_a AS video_a_id, s.video_b AS video_b_id,
       s.start_a AS start_a_seconds, s.end_a AS end_a_seconds,
       s.start_b AS start_b_seconds, s.end_b AS end_b_seconds,
       a.media_offset_seconds AS media_offset_a_seconds,
       b.media_offset_seconds AS media_offset_b_seconds,
       s.speed, s.score, s.evidence, s.duplicate, s.covered
FROM shared_segments s
JOIN videos a ON a.video_id = s.video_a
JOIN videos b ON b.video_id = s.video_b
WHERE s.model_id = coalesce(%(model)s::integer, (SELECT model_id FROM models WHERE is_active))
  AND (%(video)s::text IS NULL OR %(video)s IN (a.path, b.path))
  AND (s.duplicate OR NOT %(only)s)
ORDER BY s.duplicate DESC, s.covered DESC, a.path, b.path, s.start_a
LIMIT %(limit)s
"""


class VideoSimilarityStore:
    """The last results of :func:`~siglip_pipeline.similarity.compare.compare_videos`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def segments(
        self,
        *,
        model_id: int | None = None,
        video: str | None = None,
        duplicates_only: bool = False,
        limit: int | None = None,
    ) -> list[SharedSegment]:
        """Return shared segments: copies first, then by covered share, path and time.

        Args:
            model_id: the model; None for the active one.
            video: only segments of this video.
            duplicates_only: only segments of copies.
            limit: the largest number of segments.
        """
        with (
            self._database.connection() as connection,
            connection.cursor(row_factory=class_row(SharedSegment)) as cursor,
        ):
            return cursor.execute(
                _SEGMENTS,
                {"model": model_id, "video": video, "only": duplicates_only, "limit": limit},
            ).fetchall()
