"""Materialize videos through a running Dagster, and wait for it."""

import time
from collections.abc import Callable, Sequence

from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME, asset_key, partition_key
from siglip_pipeline.errors import RunFailedError
from siglip_pipeline.records import Stage
from siglip_pipeline.runs.dagster_api import FINISHED, DagsterApi
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.uploads.upload_store import UploadStore

_POLL_SECONDS = 1.0
_JOBS = {Stage.INDEX: "rebuild_index", Stage.SIMILARITY: "compare_videos"}
"""Assets without partitions, in the order in which they are made, and the job of each."""


def start_backfills(
    api: DagsterApi,
    settings: Settings,
    videos: Sequence[str],
    *,
    assets: Sequence[str],
    force: bool,
) -> list[Callable[[], str]]:
    """Register the uploads; give the steps to take, in order, each launching a backfill.

    Args:
        api: the running Dagster.
        settings: where the uploads and the database are: the same ones that Dagster uses.
        videos: paths below UPLOADS.
        assets: names of the assets to materialize.
        force: do the work even where the result is current.

    Raises:
        UploadNotFoundError: a path is not below UPLOADS.
    """
    store = UploadStore(settings.uploads, part=settings.part, settle_seconds=0)
    uploads = [store.get(video) for video in videos]
    keys = [partition_key(video) for video in videos]
    api.add_partitions(VIDEOS_PARTITIONS_NAME, keys)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        AnnouncedUploads(database).register(uploads)  # or the sensor would start them once more
    partitioned = [asset for asset in assets if asset not in _JOBS]
    if not force:
        return [lambda: api.launch_backfill(partitioned, keys)] if partitioned else []

    def forced(asset: str) -> Callable[[], str]:
        # A run's config may name only what the run holds: an asset at a time.
        config = {"ops": {asset_key(asset).to_python_identifier(): {"config": {"force": True}}}}
        return lambda: api.launch_backfill([asset], keys, config=config)

    return [forced(asset) for asset in partitioned]


def wait_for_backfills(
    api: DagsterApi, steps: Sequence[Callable[[], str]], *, assets: Sequence[str]
) -> None:
    """Start and wait for each step in turn, then for the assets that are made of all videos.

    Raises:
        RunFailedError: Dagster could not do it, for another reason than single videos.
    """
    for step in steps:
        backfill = step()
        while (status := api.backfill_status(backfill)) not in FINISHED:
            time.sleep(_POLL_SECONDS)
        if status == "CANCELED":
            raise RunFailedError(f"the backfill was cancelled ({api.backfill_url(backfill)})")
    for asset, job in _JOBS.items():
        if asset in assets:
            _wait_for_job(api, asset, job)


def _wait_for_job(api: DagsterApi, asset: str, job: str) -> None:
    # The automation does this too, some seconds later; the second run finds nothing to do.
    run = api.launch_job(job)
    while (status := api.run_status(run)) not in ("SUCCESS", "FAILURE", "CANCELED"):
        time.sleep(_POLL_SECONDS)
    if status != "SUCCESS":
        raise RunFailedError(f"the run of {asset} ended as {status} (run {run})")
