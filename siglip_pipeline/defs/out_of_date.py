"""The jobs that process some videos again: those out of date, and those that failed."""

import dagster as dg

from siglip_pipeline.defs.in_flight import partitions_in_flight, partitions_of_run
from siglip_pipeline.defs.partitions import SHARD, SHARD_TAGS, VIDEOS_PARTITIONS_NAME, partition_key
from siglip_pipeline.defs.resources import DatabaseResource
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.freshness import Wanted, out_of_date
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.uploads.upload_store import is_in_shard

MOST_LOOKED_AT = 500
"""Failed runs that `retry_failed` looks at, the newest first."""


@dg.op
def announce_what_is_out_of_date(
    context: dg.OpExecutionContext, database: DatabaseResource
) -> None:
    """Announce each video whose frames or vectors were made with other settings."""
    settings = Settings.load()
    with database.open() as db:
        stale = out_of_date(db, Wanted.from_settings(settings))
        videos = [video for video in stale.videos if is_in_shard(video, SHARD)]
        AnnouncedUploads(db).announce_again(videos)
    context.log.info(
        f"announced again: {counted(len(videos), 'video')}; out of date are the frames of "
        f"{len(stale.frames)} and the vectors of {len(stale.vectors)}"
    )
    context.add_output_metadata(
        {"videos": len(videos), "frames": len(stale.frames), "vectors": len(stale.vectors)}
    )


@dg.op
def announce_what_failed(context: dg.OpExecutionContext, database: DatabaseResource) -> None:
    """Announce each video whose last attempt failed, or whose run did before it was done."""
    with database.open() as db:
        failed = {failure.video for failure in VideoStore(db).failures()}
        failed |= _left_by_failed_runs(context.instance, VideoStore(db))
        videos = sorted(video for video in failed if is_in_shard(video, SHARD))
        AnnouncedUploads(db).announce_again(videos)
    context.log.info(f"taken up again: {counted(len(videos), 'failed video')}")
    context.add_output_metadata({"videos": len(videos)})


def _left_by_failed_runs(instance: dg.DagsterInstance, records: VideoStore) -> set[str]:
    """Return what failed runs have not done, for example as their model was missing.

    None while a backfill is active: it may be about to make them.
    """
    existing = instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
    busy = partitions_in_flight(instance, existing)
    if busy is None:
        return set()
    wanted = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])
    runs = instance.get_runs(wanted, limit=MOST_LOOKED_AT)
    left = {key for run in runs for key in partitions_of_run(run, existing)} - busy
    return {
        video
        for video, state in records.states().items()
        if state in ("pending", "frames") and partition_key(video) in left
    }


@dg.job(
    tags=SHARD_TAGS,
    description=(
        "Try again every video that failed, or whose run did, and no other. The sensor "
        "`new_uploads` starts the runs."
    ),
)
def retry_failed() -> None:
    """Announce the videos that failed."""
    announce_what_failed()


@dg.job(
    tags=SHARD_TAGS,
    description=(
        "Update frames of another sampling and vectors of another model. The sensor `new_uploads` "
        "starts the runs, over exactly those partitions."
    ),
)
def update_out_of_date() -> None:
    """Announce what is out of date."""
    announce_what_is_out_of_date()
