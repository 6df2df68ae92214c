"""Register uploads with a local Dagster instance."""

import time
from collections.abc import Sequence

import dagster as dg

from siglip_pipeline.defs.assets import uploads_asset
from siglip_pipeline.defs.internals import DATA_VERSION_TAG, store_materializations
from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME, partition_key
from siglip_pipeline.records import Upload


class InstanceRegistry:
    """The :class:`.upload_registration.Registry` of a local Dagster instance."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance

    def add_partitions(self, keys: Sequence[str]) -> None:
        """Add partitions in one write."""
        self._instance.add_dynamic_partitions(VIDEOS_PARTITIONS_NAME, [*keys])

    def report(self, uploads: Sequence[Upload]) -> None:
        """Store the events in one write."""
        store_materializations(self._instance, map(_event, uploads))


def _event(upload: Upload) -> dg.AssetMaterialization:
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
