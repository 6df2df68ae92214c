"""Telling Dagster what lies in UPLOADS: one event per upload, many in one write."""

import time
from collections.abc import Iterable

import dagster as dg

from siglip_pipeline.defs.assets import uploads_asset
from siglip_pipeline.defs.internals import DATA_VERSION_TAG, store_materializations
from siglip_pipeline.defs.partitions import partition_key
from siglip_pipeline.records import Upload


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


def report_uploads(instance: dg.DagsterInstance, uploads: Iterable[Upload]) -> None:
    """Report that uploads are there, or have changed."""
    store_materializations(instance, map(upload_event, uploads))
