"""Telling Dagster what lies in UPLOADS: one event per upload, many in one write."""

import logging
import time
from collections.abc import Iterable

import dagster as dg
from dagster._core.events import DagsterEventType, StepMaterializationData
from dagster._core.instance.utils import RUNLESS_JOB_NAME, RUNLESS_RUN_ID

from siglip_pipeline.defs.assets import uploads_asset
from siglip_pipeline.defs.outcomes import DATA_VERSION_TAG
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
    """Report that uploads are there, or have changed.

    As `report_runless_asset_event` does it, but in one write: that call costs a connection or two
    and some five queries for each event.
    """
    instance.event_log_storage.store_event_batch([_log_entry(upload) for upload in uploads])


def _log_entry(upload: Upload) -> dg.EventLogEntry:
    event = dg.DagsterEvent(
        event_type_value=DagsterEventType.ASSET_MATERIALIZATION.value,
        event_specific_data=StepMaterializationData(upload_event(upload)),
        job_name=RUNLESS_JOB_NAME,
    )
    return dg.EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None,
        user_message="",
        level=logging.INFO,
        run_id=RUNLESS_RUN_ID,
        timestamp=time.time(),
        job_name=RUNLESS_JOB_NAME,
        dagster_event=event,
    )
