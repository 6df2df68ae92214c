"""Sensors: uploads become partitions; automation conditions become runs."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import dagster as dg

from siglip_pipeline.defs.assets import (
    frame_embeddings,
    similarity_index,
    uploads_asset,
    video_frames,
)
from siglip_pipeline.defs.outcomes import DATA_VERSION_TAG
from siglip_pipeline.defs.partitions import (
    VIDEOS_PARTITIONS_NAME,
    partition_key,
    videos_partitions,
)
from siglip_pipeline.defs.resources import DatabaseResource, UploadsResource
from siglip_pipeline.records import Upload
from siglip_pipeline.store.videos import VideoStore

# A tick is ended after 60 s, and each new key costs a query: take so many at a time.
UPLOADS_PER_TICK = 500


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


def upload_event(upload: Upload) -> dg.AssetMaterialization:
    """The event that tells Dagster that an upload is there, or has changed."""
    return dg.AssetMaterialization(
        uploads_asset.key,
        partition=partition_key(upload.path),
        metadata={
            "path": upload.path,
            "size_bytes": upload.size_bytes,
            "modified": dg.MetadataValue.timestamp(upload.modified_at or time.time()),
        },
        tags={DATA_VERSION_TAG: upload.fingerprint},
    )


@dg.sensor(
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Lists the uploads, gives every new file a partition, and reports new and changed files "
        f"as `uploads`; at most {UPLOADS_PER_TICK} in a tick, in sorted order."
    ),
)
def new_uploads(
    context: dg.SensorEvaluationContext, uploads: UploadsResource, database: DatabaseResource
) -> dg.SensorResult | dg.SkipReason:
    """Turn new and changed files below UPLOADS into partitions and events."""
    with database.open() as db:
        records = VideoStore(db)
        changes = upload_changes(
            uploads.store().list(),
            records.listed_fingerprints(),
            frozenset(context.instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)),
        )
        batch = [*changes.new, *changes.changed][:UPLOADS_PER_TICK]
        if not batch:
            return dg.SkipReason("no new or changed upload")
        records.register(batch)
    waiting = len(changes.new) + len(changes.changed) - len(batch)
    context.log.info(f"{len(batch)} uploads taken up, {waiting} left for the next tick")
    return dg.SensorResult(
        dynamic_partitions_requests=[
            videos_partitions.build_add_request([partition_key(upload.path) for upload in batch])
        ],
        asset_events=[upload_event(upload) for upload in batch],
    )


automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.assets(video_frames, frame_embeddings, similarity_index),
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Runs what is out of date: frames of new uploads, their vectors, the index.",
)
