"""Sensors: uploads become partitions; automation conditions become runs."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from siglip_pipeline.defs.assets import (
    FRAMES_PER_RUN,
    GPU_POOL,
    frame_embeddings,
    similarity_index,
    video_frames,
)
from siglip_pipeline.defs.internals import RUN_KEY_TAG
from siglip_pipeline.defs.jobs import sample_frames
from siglip_pipeline.defs.partitions import (
    PART,
    RANGE_END_TAG,
    RANGE_START_TAG,
    VIDEOS_PARTITIONS_NAME,
    contiguous_ranges,
    keys_between,
    partition_key,
    path_of_partition,
)
from siglip_pipeline.defs.registration import InstanceRegistry, register_uploads
from siglip_pipeline.defs.resources import DatabaseResource, UploadsResource
from siglip_pipeline.defs.video_similarity import video_similarity
from siglip_pipeline.records import Refused, Upload
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.partition_limit import partition_warning
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.uploads.names import shown

# A tick is ended after 60 s, and the daemon looks each new partition up by itself: take so many at
# a time, which is eight full runs, and fewer where listing took long.
UPLOADS_PER_TICK = 256
TICK_BUDGET_SECONDS = 12.0

# No tick is looked at before the runs of the one before it are made, or given up.
RUNS_EXIST_AFTER = timedelta(minutes=1)

# A warning that nobody can read through is none.
REFUSED_NAMED = 20


@dataclass(frozen=True, slots=True)
class UploadChanges:
    """What differs between a listing and what was reported before, each sorted by path."""

    new: tuple[Upload, ...]
    changed: tuple[Upload, ...]
    deleted: tuple[str, ...]


def upload_changes(
    listing: Iterable[Upload], reported: Mapping[str, str], partitions: frozenset[str]
) -> UploadChanges:
    """Compare a listing with the fingerprints reported before and the partitions that exist.

    Args:
        listing: what lies in UPLOADS now.
        reported: fingerprint by path, as reported by earlier ticks.
        partitions: partition keys that exist; an upload without one is new whatever else is known.
    """
    new: list[Upload] = []
    changed: list[Upload] = []
    present: set[str] = set()
    for upload in listing:
        present.add(upload.path)
        if upload.path not in reported or partition_key(upload.path) not in partitions:
            new.append(upload)
        elif reported[upload.path] != upload.fingerprint:
            changed.append(upload)
    return UploadChanges(
        new=tuple(sorted(new, key=lambda upload: upload.path)),
        changed=tuple(sorted(changed, key=lambda upload: upload.path)),
        deleted=tuple(sorted(set(reported) - present)),
    )


def frame_runs(
    announcements: Mapping[str, str], partitions: Sequence[str]
) -> Iterator[dg.RunRequest]:
    """Runs of `video_frames` over a batch of uploads: as few ranges as their order allows.

    Args:
        announcements: by path of each new or changed upload, the name of its announcement.
        partitions: every partition key in insertion order, those of the batch included.
    """
    names = {partition_key(path): name for path, name in announcements.items()}
    for first, last in contiguous_ranges(partitions, names, most=FRAMES_PER_RUN):
        # A used run key is never launched again: a changed file has to make another one.
        keys = keys_between(partitions, first, last)
        identity = "\n".join(f"{key} {names[key]}" for key in keys)
        yield dg.RunRequest(
            run_key=hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest(),
            tags={RANGE_START_TAG: first, RANGE_END_TAG: last},
            # Named, though there is no other: a worker tells a run's part by its assets.
            asset_selection=[video_frames.key],
        )


@dg.sensor(
    job=sample_frames,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Lists the uploads, gives every new file a partition, and samples the frames of new and "
        f"changed files, in sorted order; at most {UPLOADS_PER_TICK} in a tick, fewer where it "
        "takes long."
    ),
)
def new_uploads(
    context: dg.SensorEvaluationContext, uploads: UploadsResource, database: DatabaseResource
) -> dg.SensorResult | dg.SkipReason:
    """Turn new and changed files below UPLOADS into partitions, events and runs.

    What was announced is known from the table of videos and from Dagster's partitions: whatever a
    tick that was ended left undone, the next one does.
    """
    began = time.monotonic()
    _limit_gpu_pool(context.instance)
    existing = context.instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
    with database.open() as db:
        records = AnnouncedUploads(db)
        records.note_shard(PART)
        _ask_again_for_lost_runs(context, records)
        reported = records.listed_fingerprints(shard=PART)
        refused: list[Refused] = []
        # Not sorted, and so not kept: of 100,000 uploads only what is new or changed stays.
        listing = uploads.store().scan(refused)
        changes = upload_changes(listing, reported, frozenset(existing))
        _warn_of(context, sorted(refused, key=lambda file: file.path))
        if len(reported) > 1 and len(changes.deleted) == len(reported):
            context.log.warning(
                f"all {len(reported)} known uploads are gone: taken for storage that is not "
                "mounted, and nothing is marked as deleted"
            )
        else:
            records.note_missing(changes.deleted, shard=PART)
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
        records.note_runs(
            {
                path_of_partition(key): run.run_key
                for run in runs
                for key in keys_between(
                    partitions, run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG]
                )
            }
        )
    left = len(waiting) - len(announcements)
    context.log.info(f"{len(announcements)} uploads taken up, {left} left for the next tick")
    limit = Settings.load().partition_limit
    if (warning := partition_warning(len(partitions), shard=PART, limit=limit)) is not None:
        context.log.warning(warning)
    return dg.SensorResult(run_requests=runs)


def _ask_again_for_lost_runs(
    context: dg.SensorEvaluationContext, records: AnnouncedUploads
) -> None:
    """Have uploads taken up anew whose run was asked for, and never made.

    Dagster's daemon writes the partitions of a tick, then its runs: where the database goes away in
    between, nobody comes back to the runs. The same holds for a tick that a person only tries out.
    """
    asked = records.unconfirmed_runs(older_than=RUNS_EXIST_AFTER, shard=PART)
    if not asked:
        return
    wanted = dg.RunsFilter(tags={RUN_KEY_TAG: sorted(set(asked.values()))})
    made = {run.tags[RUN_KEY_TAG] for run in context.instance.get_runs(wanted)}
    lost = [video for video, run in asked.items() if run not in made]
    if lost:
        context.log.warning(f"no run was made of {len(lost)} uploads: they are taken up anew")
        records.announce_again(lost)
    records.note_runs(dict.fromkeys(asked))


def _warn_of(context: dg.SensorEvaluationContext, refused: Sequence[Refused]) -> None:
    """Name the files that cannot be taken up: once, and again when there are others."""
    named = "; ".join(
        f"{shown(file.path)[:200]}: {file.reason}" for file in refused[:REFUSED_NAMED]
    )
    digest = hashlib.sha256(named.encode()).hexdigest()[:16] if refused else None
    if refused and digest != context.cursor:
        context.log.warning(f"{len(refused)} files cannot be taken up: {named}")
    if digest != context.cursor:
        context.update_cursor(digest or "")


def _limit_gpu_pool(instance: dg.DagsterInstance) -> None:
    """Give the pool its limit before the first run asks for a slot.

    Dagster's queue gives a new pool the default limit at its first look, but heeds it from its
    second look on: two runs could start at once.
    """
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits and not any(
        limit.name == GPU_POOL for limit in storage.get_pool_limits()
    ):
        storage.initialize_concurrency_limit_to_default(GPU_POOL)


automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.assets(frame_embeddings, similarity_index, video_similarity),
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Runs what is out of date: the vectors of new frames, then the index.",
)
