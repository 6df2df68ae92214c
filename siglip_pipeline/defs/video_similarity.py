"""The asset `video_similarity`: videos that are copies of each other, or share a segment."""

from typing import Any

import dagster as dg

from siglip_pipeline.defs.assets import MODEL_TAGS, OWNERS, frame_embeddings
from siglip_pipeline.defs.automation_conditions import VECTORS_CHANGED
from siglip_pipeline.defs.metadata import table
from siglip_pipeline.defs.outcomes import retrying_temporary_errors
from siglip_pipeline.defs.partitions import GROUP, KEY_PREFIX
from siglip_pipeline.defs.resources import DatabaseResource, SiglipResource
from siglip_pipeline.similarity.compare import compare_videos
from siglip_pipeline.similarity.similar_videos import VideoSimilarityStore
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.text.timecode import timecode

SEGMENTS_SHOWN = 100


@dg.asset(
    key_prefix=KEY_PREFIX,
    deps=[frame_embeddings],
    automation_condition=VECTORS_CHANGED,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres"},
    op_tags=MODEL_TAGS,
)
def video_similarity(
    context: dg.AssetExecutionContext, database: DatabaseResource, siglip: SiglipResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster looks for the bare class
    """Find videos that are copies of each other, and segments that two videos share.

    The frames of all videos are matched, and the matches aligned in time. This finds re-encoded,
    scaled, cut and sped-up copies; a black opening, or an intro that many videos have, does not
    make a copy. `siglip-pipeline duplicates` lists the copies.
    """
    with retrying_temporary_errors(context), database.open() as db:
        model_id = ModelStore(db).register(siglip.spec())
        report = compare_videos(db, model_id, progress=context.log.info)
        segments = VideoSimilarityStore(db).segments(model_id=model_id, limit=SEGMENTS_SHOWN)
    metadata: dict[str, Any] = {
        "videos": report.videos,
        "frames": report.frames,
        "videos_compared_now": report.changed,
        "pairs_compared": report.pairs_compared,
        "duplicates": report.duplicates,
        "shared_segments": report.segments,
        "seconds": report.seconds,
        "model": report.model,
    }
    if segments:
        metadata["segments"] = table(
            {
                "duplicate": s.duplicate,
                "video_a": s.video_a,
                "part_a": f"{timecode(s.start_a_seconds)} – {timecode(s.end_a_seconds)}",
                "video_b": s.video_b,
                "part_b": f"{timecode(s.start_b_seconds)} – {timecode(s.end_b_seconds)}",
                "speed": round(s.speed, 2),
                "covered": round(s.covered, 3),
                "score": round(s.score, 4),
                "evidence": round(s.evidence, 1),
            }
            for s in segments
        )
    return dg.MaterializeResult(metadata=metadata)
