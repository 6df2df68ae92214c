"""Which videos resemble each other, as the last comparison found it; it is only read here."""

from dataclasses import dataclass
from typing import Annotated

from psycopg.rows import class_row

from siglip_pipeline.store.database import Database
from siglip_pipeline.text.json_form import Rounded3, Rounded6, rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSegment:
    """A stretch that two videos share; ``a`` is the one that was known first."""

    video_a: str
    video_b: str
    video_a_id: int
    video_b_id: int
    start_a_seconds: Rounded3
    end_a_seconds: Rounded3
    start_b_seconds: Rounded3
    end_b_seconds: Rounded3
    speed: Annotated[float, rounded(4)]
    """Seconds of b that pass in a second of a."""
    score: Rounded6
    """Mean cosine of the frames that meet."""
    evidence: Annotated[float, rounded(2)]
    """How many different frames it has; 1 for a picture that stands still."""
    duplicate: bool
    """The videos are copies, or one is a copy of a part of the other."""
    covered: Annotated[float, rounded(4)]
    """Share of what the shorter video shows that is in the other one, all stretches together."""


_SEGMENTS = """
SELECT a.path AS video_a, b.path AS video_b, s.video_a AS video_a_id, s.video_b AS video_b_id,
       s.start_a AS start_a_seconds, s.end_a AS end_a_seconds,
       s.start_b AS start_b_seconds, s.end_b AS end_b_seconds,
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
    """What :func:`~siglip_pipeline.similarity.compare.compare_videos` found last."""

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
        """Stretches that videos share: copies first, then by covered share, path and time.

        Args:
            model_id: under which model; None: the active one.
            video: only with this one, on either side.
            duplicates_only: only of pairs that are copies.
            limit: at most so many.
        """
        with (
            self._database.connection() as connection,
            connection.cursor(row_factory=class_row(SharedSegment)) as cursor,
        ):
            return cursor.execute(
                _SEGMENTS,
                {"model": model_id, "video": video, "only": duplicates_only, "limit": limit},
            ).fetchall()
