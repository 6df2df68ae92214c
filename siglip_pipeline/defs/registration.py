"""Register uploads with Dagster and the database. No other module does this."""

import math
import time
from collections.abc import Sequence
from typing import Final, Protocol

import dagster as dg

from siglip_pipeline.defs.assets import uploads_asset
from siglip_pipeline.defs.internals import DATA_VERSION_TAG, store_materializations
from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME, partition_key
from siglip_pipeline.records import Upload
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.uploads.upload_store import UploadStore

UPLOADS_PER_WRITE: Final = 32


class Registry(Protocol):
    """What registration needs of Dagster: a local instance, or one behind a webserver."""

    def add_partitions(self, partitions_def: str, keys: Sequence[str]) -> None:
        """Add dynamic partitions, in this order; existing ones stay."""
        ...

    def report(self, events: Sequence[dg.AssetMaterialization]) -> None:
        """Store materializations that belong to no run."""
        ...


class InstanceRegistry:
    """The registry of a local Dagster instance."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance

    def add_partitions(self, partitions_def: str, keys: Sequence[str]) -> None:
        """Add dynamic partitions in one write."""
        self._instance.add_dynamic_partitions(partitions_def, [*keys])

    def report(self, events: Sequence[dg.AssetMaterialization]) -> None:
        """Store the events in one write."""
        store_materializations(self._instance, events)


def register_uploads(
    registry: Registry,
    announced: AnnouncedUploads,
    uploads: Sequence[Upload],
    *,
    until: float = math.inf,
) -> dict[str, str]:
    """Give each upload a partition and an event, then record it as announced.

    The order matters: after an interruption an upload is registered again, and never omitted.

    Args:
        registry: where Dagster keeps partitions and events.
        announced: the record with which the sensor compares a listing.
        uploads: new or changed ones.
        until: no further write begins after this ``time.monotonic()``; the first always does.

    Returns:
        The name of each registered upload's announcement, by path.
    """
    registered: list[Upload] = []
    for start in range(0, len(uploads), UPLOADS_PER_WRITE):
        if registered and time.monotonic() > until:
            break
        chunk = uploads[start : start + UPLOADS_PER_WRITE]
        registry.add_partitions(
            VIDEOS_PARTITIONS_NAME, [partition_key(upload.path) for upload in chunk]
        )
        registry.report([upload_event(upload) for upload in chunk])
        registered += chunk
    return announced.register(registered)


def register_videos(
    registry: Registry, database: Database, settings: Settings, videos: Sequence[str]
) -> list[str]:
    """Register uploads that a person named, and return their partition keys.

    Args:
        registry: where Dagster keeps partitions and events.
        database: the database of videos.
        settings: where the uploads are.
        videos: paths below UPLOADS.

    Raises:
        UploadNotFoundError: a path is not below UPLOADS.
    """
    store = UploadStore(settings.uploads, part=settings.part, settle_seconds=0)
    uploads = [store.get(video) for video in videos]
    register_uploads(registry, AnnouncedUploads(database), uploads)
    return [partition_key(upload.path) for upload in uploads]


def upload_event(upload: Upload) -> dg.AssetMaterialization:
    """Return the event that records a new or changed upload."""
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
