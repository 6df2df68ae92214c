"""The definitions that Dagster loads. Loading makes no connection and reads no model."""

import dagster as dg

from siglip_pipeline.defs.alerts import run_failures
from siglip_pipeline.defs.assets import (
    frame_embeddings,
    similarity_index,
    uploads_asset,
    video_frames,
)
from siglip_pipeline.defs.code_references import with_code_references
from siglip_pipeline.defs.deleted_uploads import deleted_uploads
from siglip_pipeline.defs.executors import executor_for
from siglip_pipeline.defs.jobs import JOBS, SCHEDULES
from siglip_pipeline.defs.lost_runs import lost_runs
from siglip_pipeline.defs.reconciliation import reconciliation
from siglip_pipeline.defs.resources import (
    DatabaseResource,
    FrameStoreResource,
    SiglipResource,
    UploadsResource,
)
from siglip_pipeline.defs.sensors import automation, new_uploads
from siglip_pipeline.defs.video_similarity import video_similarity
from siglip_pipeline.defs.watch_hits import watch_hits, watch_messages
from siglip_pipeline.settings import Settings

defs = dg.Definitions(
    assets=[
        uploads_asset,
        *with_code_references(
            [
                *(video_frames, frame_embeddings, watch_hits),
                *(similarity_index, video_similarity, reconciliation),
            ],
            Settings.load().source_url,
        ),
    ],
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=[new_uploads, deleted_uploads, automation, run_failures, lost_runs, watch_messages],
    resources={
        "uploads": UploadsResource(),
        "frame_store": FrameStoreResource(),
        "database": DatabaseResource(),
        "siglip": SiglipResource(),
    },
    executor=executor_for(Settings.load()),
)
