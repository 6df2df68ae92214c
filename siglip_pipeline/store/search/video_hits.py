"""Find the hits in one video by an exact comparison of its frames; no index is needed."""

from dataclasses import dataclass

from siglip_pipeline.hits import Hit, SearchRequest
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.kinds import Generation, Scope, index_kind
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.near_moments import near_moments
from siglip_pipeline.store.search.search_run import as_hits

_VIDEO = """
SELECT i.video_id, i.source_sha256, i.frames FROM ingests i JOIN videos v USING (video_id)
WHERE v.path = %s AND i.model_id = %s AND i.source_sha256 <> ''
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedVideo:
    """A video with vectors of a model."""

    video_id: int
    source_sha256: str
    """Of the content that the vectors are of."""
    frames: int


def embedded_video(database: Database, model_id: int, video: str) -> EmbeddedVideo | None:
    """Return a video with vectors of a model; None if it has none, or they are to be made anew."""
    with database.connection() as connection:
        row = connection.execute(_VIDEO, [video, model_id]).fetchone()
    if row is None:
        return None
    return EmbeddedVideo(video_id=row[0], source_sha256=row[1], frames=row[2])


def hits_in_video(
    database: Database, model: ModelRow, video: EmbeddedVideo, request: SearchRequest
) -> list[Hit]:
    """Return the hits of a request in one video, grouped as those of a search.

    Args:
        database: holds the vectors.
        model: the model of the query; it needs no index.
        video: where to look; the filter of the request is not read.
        request: the query vectors and the limits.
    """
    # The exact kind reads the vectors themselves, so no generation has to be there.
    target = Generation(model_id=model.model_id, dim=model.dim, generation=0, kind="exact")
    scope = Scope(video_ids=[video.video_id], frames=video.frames)
    with database.connection() as connection:
        near = near_moments(
            connection,
            target,
            index_kind("exact"),
            scope,
            request,
            rows=video.frames,
            kept=video.frames,
        )
    return as_hits(near, model)
