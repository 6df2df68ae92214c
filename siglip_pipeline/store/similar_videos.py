"""Which videos resemble each other, as the last comparison found it; it is only read here."""

from dataclasses import dataclass
from typing import Any

from psycopg.rows import class_row

from siglip_pipeline.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSegment:
    """A stretch that two videos share; ``a`` is the one that was known first."""

    video_a: str
    video_b: str
    video_a_id: int
    video_b_id: int
    start_a: float
    end_a: float
    start_b: float
    end_b: float
    speed: float
    """Seconds of b that pass in a second of a."""
    score: float
    """Mean cosine of the frames that meet."""
    evidence: float
    """How many different frames it has; 1 for a picture that stands still."""
    duplicate: bool
    """The videos are copies, or one is a copy of a part of the other."""
    covered: float
    """Share of what the shorter video shows that is in the other one, all stretches together."""

    def to_json(self) -> dict[str, Any]:
        """For ``duplicates --json`` and HTTP."""
        return {
            "video_a": self.video_a,
            "video_b": self.video_b,
            "video_a_id": self.video_a_id,
            "video_b_id": self.video_b_id,
            "start_a_seconds": round(self.start_a, 3),
            "end_a_seconds": round(self.end_a, 3),
            "start_b_seconds": round(self.start_b, 3),
            "end_b_seconds": round(self.end_b, 3),
            "speed": round(self.speed, 4),
            "score": round(self.score, 6),
            "evidence": round(self.evidence, 2),
            "duplicate": self.duplicate,
            "covered": round(self.covered, 4),
        }


class VideoSimilarityStore:
    """What :func:`~siglip_pipeline.store.video_similarity.compare_videos` found last."""

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
                "SELECT a.path AS video_a, b.path AS video_b, s.video_a AS video_a_id,"
                " s.video_b AS video_b_id, s.start_a, s.end_a, s.start_b, s.end_b, s.speed,"
                " s.score, s.evidence, s.duplicate, s.covered FROM shared_segments s"
                " JOIN videos a ON a.video_id = s.video_a JOIN videos b ON b.video_id = s.video_b"
                " WHERE s.model_id = coalesce(%(model)s::integer,"
                " (SELECT model_id FROM models WHERE is_active))"
                " AND (%(video)s::text IS NULL OR %(video)s IN (a.path, b.path))"
                " AND (s.duplicate OR NOT %(only)s)"
                " ORDER BY s.duplicate DESC, s.covered DESC, a.path, b.path, s.start_a"
                " LIMIT %(limit)s",
                {"model": model_id, "video": video, "only": duplicates_only, "limit": limit},
            ).fetchall()
