"""Find all hits in one video by an exact comparison of its frames; no index is needed."""

from dataclasses import dataclass
from math import inf

from siglip_pipeline.hits import Hit
from siglip_pipeline.records import FloatArray
from siglip_pipeline.siglip.similarity import probability
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.moment_scores import ScoredMoment, Stretch, score_moments

_VIDEO = """
SELECT v.path, i.video_id, i.source_sha256, v.media_offset_seconds
FROM ingests i JOIN videos v USING (video_id)
WHERE v.path = %s AND i.model_id = %s AND i.source_sha256 <> ''
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedVideo:
    """A video with vectors of a model."""

    path: str
    video_id: int
    source_sha256: str
    """Of the content that the vectors are of."""
    media_offset_seconds: float


def embedded_video(database: Database, model_id: int, video: str) -> EmbeddedVideo | None:
    """Return a video with vectors of a model; None if it has none, or they are to be made anew."""
    with database.connection() as connection:
        row = connection.execute(_VIDEO, [video, model_id]).fetchone()
    if row is None:
        return None
    return EmbeddedVideo(
        path=row[0], video_id=row[1], source_sha256=row[2], media_offset_seconds=row[3]
    )


def hits_in_video(
    database: Database,
    model: ModelRow,
    video: EmbeddedVideo,
    query_D: FloatArray,
    *,
    within: float,
    min_score: float,
) -> list[Hit]:
    """Return all hits in one video, best first, grouped as those of a search.

    The statement of a search (``near_moments``) finds the best few of many videos: its time grows
    with the cube of the hits.

    Args:
        database: holds the vectors.
        model: the model of the query.
        video: where to look.
        query_D: a unit vector.
        within: neighbouring moments whose scores differ by at most this are one hit.
        min_score: moments that score less are no hits.
    """
    whole = Stretch(video_id=video.video_id, start_seconds=0.0, end_seconds=inf)
    free = {
        scored.moment: scored
        for scored in score_moments(database, model.model_id, [whole], query_D)
        if scored.score >= min_score
    }
    hits = []
    for peak in sorted(free.values(), key=lambda m: (-m.score, m.frame_index)):
        if peak.moment in free:
            first, last = _reach(free, peak, within)
            hits.append(_hit(video, model, peak, free[first], free[last]))
            for moment in range(first, last + 1):
                del free[moment]
    return hits


def _reach(free: dict[int, ScoredMoment], peak: ScoredMoment, within: float) -> tuple[int, int]:
    """Return the first and the last moment of a hit: neighbours that score enough and are free."""
    floor = peak.score - within
    first = last = peak.moment
    while (before := free.get(first - 1)) is not None and before.score >= floor:
        first -= 1
    while (after := free.get(last + 1)) is not None and after.score >= floor:
        last += 1
    return first, last


def _hit(
    video: EmbeddedVideo,
    model: ModelRow,
    peak: ScoredMoment,
    first: ScoredMoment,
    last: ScoredMoment,
) -> Hit:
    return Hit(
        video=video.path,
        video_id=video.video_id,
        time_seconds=peak.time_seconds,
        frame_index=peak.frame_index,
        score=peak.score,
        probability=float(probability(peak.score, model.logit_scale, model.logit_bias)),
        start_seconds=first.start_seconds,
        end_seconds=last.end_seconds,
        media_time_seconds=peak.time_seconds + video.media_offset_seconds,
    )
