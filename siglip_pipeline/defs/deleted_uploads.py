"""The sensor that removes videos whose uploads were deleted."""

from datetime import timedelta

import dagster as dg

from siglip_pipeline.defs.in_flight import partitions_in_flight
from siglip_pipeline.defs.partitions import (
    SHARD,
    VIDEOS_PARTITIONS_NAME,
    partition_key,
    videos_partitions,
)
from siglip_pipeline.defs.resources import DatabaseResource, FrameStoreResource
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.removal import forget_video
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.text.in_words import counted

VIDEOS_PER_TICK = 500


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Removes the partition, frames and vectors of videos whose uploads have been gone for "
        "`SIGLIP_REMOVE_GRACE_HOURS`. Skips videos that an unfinished run covers. "
        "`SIGLIP_REMOVE_DELETED=false` turns it off."
    ),
)
def deleted_uploads(
    context: dg.SensorEvaluationContext,
    frame_store: FrameStoreResource,
    database: DatabaseResource,
) -> dg.SensorResult | dg.SkipReason:
    """Remove partitions, frames and vectors of uploads that have been gone for long enough."""
    settings = Settings.load()
    if not settings.remove_deleted:
        return dg.SkipReason("SIGLIP_REMOVE_DELETED is off")
    with database.open() as db:
        grace = timedelta(hours=settings.remove_grace_hours)
        gone = AnnouncedUploads(db).missing_for(grace, shard=SHARD)
        if not gone:
            return dg.SkipReason("no upload is gone for long enough")
        existing = context.instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
        # Dagster cannot start a run if the first or last key of its range was deleted.
        busy = partitions_in_flight(context.instance, existing)
        if busy is None:
            return dg.SkipReason(
                f"{counted(len(gone), 'video')} to remove, once the backfill has ended"
            )
        free = [video for video in gone if partition_key(video) not in busy][:VIDEOS_PER_TICK]
        if not free:
            return dg.SkipReason(f"{counted(len(gone), 'video')} to remove, once no run needs them")
        frames = frame_store.store()
        for video in free:
            forget_video(db, frames, video)
            context.log.info(f"{video}: removed, because its upload is gone")
    keys = [partition_key(video) for video in free]
    return dg.SensorResult(
        dynamic_partitions_requests=[videos_partitions.build_delete_request(keys)]
    )
