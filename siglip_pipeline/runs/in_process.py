"""Materialize videos from this process, without a webserver or daemon.

The runs are real ones: they are recorded in the same Dagster instance, appear in its UI, and
behave as they would under the daemon.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import dagster as dg
import psycopg2

from siglip_pipeline.definitions import defs
from siglip_pipeline.defs.assets import frame_embeddings, similarity_index, video_frames
from siglip_pipeline.defs.internals import keep_connections
from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME
from siglip_pipeline.defs.registration import InstanceRegistry
from siglip_pipeline.defs.video_similarity import video_similarity
from siglip_pipeline.defs.watch_hits import watch_hits
from siglip_pipeline.errors import (
    DatabaseFullError,
    DatabaseUnavailableError,
    RunFailedError,
    UploadNotFoundError,
    with_causes,
)
from siglip_pipeline.records import Stage
from siglip_pipeline.services.instance import open_instance
from siglip_pipeline.services.storage_errors import STORAGE_ERRORS
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG, contiguous_ranges
from siglip_pipeline.stages.upload_registration import register_videos
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.store.watches import WatchStore
from siglip_pipeline.text.in_words import in_one_line
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.uploads.upload_store import UploadStore

PER_VIDEO = (video_frames, frame_embeddings)
OF_ALL_VIDEOS = (similarity_index, video_similarity)

MOST_PER_RUN: Final = 256
"""With each check that is planned for a video, Dagster stores the keys of all videos of the run."""


def materialize_videos(
    settings: Settings,
    videos: Sequence[str],
    *,
    assets: Sequence[Stage] = tuple(Stage),
    force: bool = False,
) -> bool:
    """Run some stages for some uploads, here.

    Args:
        settings: with both database URLs set, as
            :func:`~siglip_pipeline.services.home.pipeline_environment` yields them.
        videos: paths below UPLOADS.
        assets: names of those to run.
        force: do the work even where the result is current.

    Returns:
        Whether every run succeeded; failures of single videos are in the database.

    Raises:
        UploadNotFoundError: none of the paths is below UPLOADS.
        RunFailedError: a run failed for another reason than single videos.
        DatabaseUnavailableError: Dagster's own storage cannot be used, or was lost on the way.
        DatabaseFullError: Dagster's own storage has no room left.
    """
    if not videos:
        raise UploadNotFoundError(f"no uploads were named; put videos below {settings.uploads}")
    with (
        _translated_storage_errors(settings.dagster_postgres_url or SecretUrl("")),
        open_instance(settings) as instance,
    ):
        keep_connections(instance)
        with open_database(DatabaseOptions.from_settings(settings)) as database:
            uploads = UploadStore(settings.uploads, shard=settings.part, settle_seconds=0)
            registry = InstanceRegistry(instance)
            keys = register_videos(registry, database, uploads, videos, assets=assets)
            watched = bool(WatchStore(database).all())
        ok = True
        for asset in PER_VIDEO:
            if asset.key.path[-1] not in assets:
                continue
            done = _materialized(instance, video_frames.key, keys)
            wanted = keys if asset is video_frames else [key for key in keys if key in done]
            ok &= _run_ranges(instance, asset.key, wanted, force=force)
        _release_model()
        if Stage.VECTORS in assets and watched:
            done = _materialized(instance, frame_embeddings.key, keys)
            ok &= _run_ranges(instance, watch_hits.key, [key for key in keys if key in done])
        for asset in OF_ALL_VIDEOS:
            if asset.key.path[-1] in assets:
                ok &= _run(instance, asset.key, {}, {})
        return ok


def _release_model() -> None:
    """Release the image tower before the recall check loads the text tower: they need not be there
    at once. A process that has embedded nothing does not import torch for it.
    """
    if "siglip_pipeline.siglip.model" in sys.modules:
        from siglip_pipeline.siglip.model import release_model

        release_model()


@contextmanager
def _translated_storage_errors(url: SecretUrl) -> Iterator[None]:
    """Say plainly that Dagster lost its storage: a run cannot record what it did, and ends."""
    try:
        yield
    except STORAGE_ERRORS as error:
        causes = [*with_causes(error)]
        text = in_one_line(url.masked(causes[-1]))
        if any(isinstance(cause, psycopg2.errors.DiskFull) for cause in causes):
            raise DatabaseFullError(
                f"Dagster's storage has no room left: {text}; free some on the server's disk, and "
                "run this again"
            ) from url.masked_error(error)
        raise DatabaseUnavailableError(
            f"Dagster's storage was lost during the run: {text}; run this again, what is done is "
            "not done again"
        ) from url.masked_error(error)


def _materialized(
    instance: dg.DagsterInstance, asset_key: dg.AssetKey, keys: Sequence[str]
) -> set[str]:
    return instance.get_materialized_partitions(asset_key) & set(keys)


def _run_ranges(
    instance: dg.DagsterInstance,
    asset_key: dg.AssetKey,
    keys: Sequence[str],
    **config: bool,
) -> bool:
    ok = True
    existing = instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
    for first, last in contiguous_ranges(existing, keys, most=MOST_PER_RUN):
        tags = {RANGE_START_TAG: first, RANGE_END_TAG: last}
        ops = {asset_key.to_python_identifier(): {"config": config}} if config else {}
        ok &= _run(instance, asset_key, tags, ops)
    return ok


def _run(
    instance: dg.DagsterInstance,
    asset_key: dg.AssetKey,
    tags: dict[str, str],
    op_config: Mapping[str, object],
) -> bool:
    job = defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance,
        asset_selection=[asset_key],
        tags=tags,
        run_config={
            "ops": dict(op_config),
            # What concerns single videos is in the database; the rest is raised below.
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        raise_on_error=False,
    )
    if not result.success:
        _raise_unless_videos_failed(result, asset_key)
    return bool(result.success)


def _raise_unless_videos_failed(result: dg.ExecuteInProcessResult, asset_key: dg.AssetKey) -> None:
    name = asset_key.to_user_string()
    failure = result.failure_data_for_node(asset_key.to_python_identifier())
    if failure is None:
        raise RunFailedError(f"the run of {name} could not be started; run id {result.run_id}")
    if failure.user_failure_data is not None:
        return  # raised by PartitionOutcomes: each video has its reason
    error = failure.error
    cause = error.cause if error is not None and error.cause is not None else error
    message = cause.message.strip() if cause is not None else "no reason was given"
    raise RunFailedError(f"{name} failed: {message} (run {result.run_id} in the Dagster UI)")
