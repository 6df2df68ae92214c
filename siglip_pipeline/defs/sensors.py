"""The sensor that registers uploads and starts their runs, and the automation sensor."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from siglip_pipeline.defs.assets import GPU_POOL, frame_embeddings, similarity_index, video_frames
from siglip_pipeline.defs.internals import RUN_KEY_TAG
from siglip_pipeline.defs.jobs import sample_frames
from siglip_pipeline.defs.partitions import (
    SHARD,
    VIDEOS_PARTITIONS_NAME,
    partition_key,
    path_of_partition,
)
from siglip_pipeline.defs.registration import InstanceRegistry
from siglip_pipeline.defs.resources import DatabaseResource, UploadsResource
from siglip_pipeline.defs.video_similarity import video_similarity
from siglip_pipeline.defs.watch_hits import watch_hits
from siglip_pipeline.records import Refused, Upload
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.partition_limit import partition_warning
from siglip_pipeline.stages.run_names import (
    FRAMES_PER_RUN,
    RANGE_END_TAG,
    RANGE_START_TAG,
    contiguous_ranges,
    keys_between,
)
from siglip_pipeline.stages.upload_registration import register_uploads
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.uploads.names import shown

# Dagster ends a tick after 60 s, and its daemon looks up each new partition separately. So a tick
# takes at most this many uploads, which is eight full runs, and fewer if listing took long.
UPLOADS_PER_TICK = 256
TICK_BUDGET_SECONDS = 12.0

# The daemon evaluates no tick before it has made the runs of the previous one, or given up.
RUNS_EXIST_AFTER = timedelta(minutes=1)

# At most this many refused files are named in a warning.
REFUSED_NAMED = 20


@dataclass(frozen=True, slots=True)
class UploadChanges:
    """The differences between a listing and the uploads reported before, each sorted by path."""

    new: tuple[Upload, ...]
    changed: tuple[Upload, ...]
    deleted: tuple[str, ...]
    restated: tuple[Upload, ...]
    """Unchanged, but known by the fingerprint of an earlier version."""


def upload_changes(
    listing: Iterable[Upload], reported: Mapping[str, str], partitions: frozenset[str]
) -> UploadChanges:
    """Compare a listing with the fingerprints reported before and the partitions that exist.

    Args:
        listing: the files in UPLOADS now.
        reported: fingerprint by path, as reported by earlier ticks.
        partitions: partition keys that exist; an upload without one is always new.
    """
    new: list[Upload] = []
    changed: list[Upload] = []
    restated: list[Upload] = []
    present: set[str] = set()
    for upload in listing:
        present.add(upload.path)
        known = reported.get(upload.path)
        if known is None or partition_key(upload.path) not in partitions:
            new.append(upload)
        elif known != upload.fingerprint:
            (restated if upload.has_fingerprint(known) else changed).append(upload)
    return UploadChanges(
        new=tuple(sorted(new, key=lambda upload: upload.path)),
        changed=tuple(sorted(changed, key=lambda upload: upload.path)),
        deleted=tuple(sorted(set(reported) - present)),
        restated=tuple(restated),
    )


def frame_runs(
    announcements: Mapping[str, str], partitions: Sequence[str]
) -> Iterator[dg.RunRequest]:
    """Yield runs of `video_frames` over a batch of uploads: as few ranges as their order allows.

    Args:
        announcements: the name of each new or changed upload's announcement, by path.
        partitions: every partition key in insertion order, those of the batch included.
    """
    names = {partition_key(path): name for path, name in announcements.items()}
    for first, last in contiguous_ranges(partitions, names, most=FRAMES_PER_RUN):
        # Dagster launches a run key only once, so the key depends on the announcements.
        keys = keys_between(partitions, first, last)
        identity = "\n".join(f"{key} {names[key]}" for key in keys)
        yield dg.RunRequest(
            run_key=hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest(),
            tags={RANGE_START_TAG: first, RANGE_END_TAG: last},
            # The only asset of the job; named because a worker tells a run's shard by its assets.
            asset_selection=[video_frames.key],
        )


@dg.sensor(
    job=sample_frames,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Lists the uploads, gives every new file a partition, and samples the frames of new and "
        f"changed files, in sorted order; at most {UPLOADS_PER_TICK} per tick, fewer if it takes "
        "long."
    ),
)
def new_uploads(
    context: dg.SensorEvaluationContext, uploads: UploadsResource, database: DatabaseResource
) -> dg.SensorResult | dg.SkipReason:
    """Turn new and changed files below UPLOADS into partitions, events and runs.

    The table of videos and Dagster's partitions record what was announced, so the next tick
    continues the work of one that was ended.
    """
    began = time.monotonic()
    _limit_gpu_pool(context.instance)
    existing = context.instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
    with database.open() as db:
        records = AnnouncedUploads(db)
        records.note_shard(SHARD)
        _ask_again_for_lost_runs(context, records)
        reported = records.listed_fingerprints(shard=SHARD)
        refused: list[Refused] = []
        # An iterator: of 100,000 uploads only the new and changed ones are held in memory.
        listing = uploads.store().scan(refused)
        changes = upload_changes(listing, reported, frozenset(existing))
        if changes.restated:
            records.restate(changes.restated)
        _warn_of(context, sorted(refused, key=lambda file: file.path))
        _note_missing(context, records, changes.deleted, known=len(reported))
        waiting = [*changes.new, *changes.changed]
        if not waiting:
            return dg.SkipReason("no new or changed upload")
        announcements = register_uploads(
            InstanceRegistry(context.instance),
            records,
            waiting[:UPLOADS_PER_TICK],
            until=began + TICK_BUDGET_SECONDS,
        )
        partitions = context.instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
        runs = [*frame_runs(announcements, partitions)]
        records.note_runs(_run_keys(runs, partitions))
    left = len(waiting) - len(announcements)
    context.log.info(
        f"{counted(len(announcements), 'upload')} announced, {left} left for the next tick"
    )
    limit = Settings.load().partition_limit
    if (warning := partition_warning(len(partitions), shard=SHARD, limit=limit)) is not None:
        context.log.warning(warning)
    return dg.SensorResult(run_requests=runs)


def _note_missing(
    context: dg.SensorEvaluationContext,
    records: AnnouncedUploads,
    missing: Sequence[str],
    *,
    known: int,
) -> None:
    """Mark missing uploads as deleted, unless all are missing."""
    if known > 1 and len(missing) == known:
        context.log.warning(
            f"all {known} known uploads are missing: nothing is marked as deleted, because the "
            "storage is probably not mounted"
        )
    else:
        records.note_missing(missing, shard=SHARD)


def _run_keys(runs: Sequence[dg.RunRequest], partitions: Sequence[str]) -> dict[str, str | None]:
    """Return the key of the run of each video."""
    return {
        path_of_partition(key): run.run_key
        for run in runs
        for key in keys_between(partitions, run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG])
    }


def _ask_again_for_lost_runs(
    context: dg.SensorEvaluationContext, records: AnnouncedUploads
) -> None:
    """Announce uploads again whose run was requested, but never made.

    Dagster's daemon writes the partitions of a tick, then its runs. If the database fails in
    between, it never makes the runs. Nor does it after a test evaluation of the sensor in the UI.
    """
    asked = records.unconfirmed_runs(older_than=RUNS_EXIST_AFTER, shard=SHARD)
    if not asked:
        return
    wanted = dg.RunsFilter(tags={RUN_KEY_TAG: sorted(set(asked.values()))})
    made = {run.tags[RUN_KEY_TAG] for run in context.instance.get_runs(wanted)}
    lost = [video for video, run in asked.items() if run not in made]
    if lost:
        context.log.warning(f"no run was made for {counted(len(lost), 'upload')}: announced again")
        records.announce_again(lost)
    records.note_runs(dict.fromkeys(asked))


def _warn_of(context: dg.SensorEvaluationContext, refused: Sequence[Refused]) -> None:
    """Warn of refused files: once, and again when the list changes."""
    named = "; ".join(
        f"{shown(file.path)[:200]}: {file.reason}" for file in refused[:REFUSED_NAMED]
    )
    digest = hashlib.sha256(named.encode()).hexdigest()[:16] if refused else None
    if refused and digest != context.cursor:
        context.log.warning(f"{counted(len(refused), 'file')} cannot be used: {named}")
    if digest != context.cursor:
        context.update_cursor(digest or "")


def _limit_gpu_pool(instance: dg.DagsterInstance) -> None:
    """Give the pool its limit before the first run requests a slot.

    Dagster's queue gives a new pool the default limit in its first iteration, but applies it only
    from the second one on: two runs could start at once.
    """
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits and not any(
        limit.name == GPU_POOL for limit in storage.get_pool_limits()
    ):
        storage.initialize_concurrency_limit_to_default(GPU_POOL)


automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.assets(
        frame_embeddings, watch_hits, similarity_index, video_similarity
    ),
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Makes the vectors of new frames once no video is in work, then the index.",
)
