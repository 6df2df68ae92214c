"""The jobs that people start by name, and the schedules."""

import dagster as dg

from siglip_pipeline.defs.assets import frame_embeddings, similarity_index, video_frames
from siglip_pipeline.defs.cleaning import daily_cleaning, remove_old_logs
from siglip_pipeline.defs.out_of_date import retry_failed, update_out_of_date
from siglip_pipeline.defs.partitions import SHARD_TAGS
from siglip_pipeline.defs.reconciliation import reconciliation
from siglip_pipeline.defs.video_similarity import video_similarity
from siglip_pipeline.defs.watch_hits import watch_hits
from siglip_pipeline.records import Stage
from siglip_pipeline.stages.run_names import JOB_OF

sample_frames = dg.define_asset_job(
    JOB_OF[Stage.FRAMES],
    selection=[video_frames],
    tags=SHARD_TAGS,
    description="Decode videos and store their sampled frames. Choose partitions in the launchpad.",
)

embed_frames = dg.define_asset_job(
    JOB_OF[Stage.VECTORS],
    selection=[frame_embeddings],
    tags=SHARD_TAGS,
    description="Embed stored frames with the model in SIGLIP_MODEL_NAME. Decodes nothing.",
)

match_watches = dg.define_asset_job(
    "match_watches",
    selection=[watch_hits],
    tags=SHARD_TAGS,
    description="Match videos with the queries of `siglip-pipeline watch`, and send new hits.",
)

rebuild_index = dg.define_asset_job(
    JOB_OF[Stage.INDEX],
    selection=[similarity_index],
    tags=SHARD_TAGS,
    description="Rebuild the similarity index if enough vectors have changed, measure its recall, "
    "and publish it.",
)

compare_videos = dg.define_asset_job(
    JOB_OF[Stage.SIMILARITY],
    selection=[video_similarity],
    tags=SHARD_TAGS,
    description="Find videos that are copies of each other, and segments that two videos share.",
)

reconcile_collection = dg.define_asset_job(
    "reconcile_collection",
    selection=[reconciliation],
    tags=SHARD_TAGS,
    description="Count uploads, partitions, frames and vectors, and request what is missing again.",
)

daily_reconciliation = dg.ScheduleDefinition(
    name="daily_reconciliation",
    job=reconcile_collection,
    cron_schedule="30 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 03:30 UTC: compare uploads, partitions, frames and vectors.",
)


@dg.schedule(
    job=rebuild_index,
    cron_schedule="0 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=(
        "Every night at 03:00 UTC: update the similarity index once there are vectors, so that its "
        "freshness policy also holds for a collection in which nothing changes."
    ),
)
def daily_index(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request a run of `rebuild_index`, unless there is nothing to index."""
    made = context.instance.get_latest_materialization_event
    if made(similarity_index.key) is None and made(frame_embeddings.key) is None:
        return dg.SkipReason("no vectors have been made yet")
    return dg.RunRequest()


JOBS = (
    *(sample_frames, embed_frames, match_watches),
    *(rebuild_index, compare_videos, reconcile_collection),
    update_out_of_date,
    retry_failed,
    remove_old_logs,
)
SCHEDULES = (daily_index, daily_reconciliation, daily_cleaning)
