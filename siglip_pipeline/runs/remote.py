"""Materialize videos through a running Dagster, and wait for it.

Few videos become runs at once: the daemon's loop over backfills takes 30 s to make a run. Many
become a backfill, whose runs the daemon makes as the queue takes them.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from siglip_pipeline.errors import DagsterAwayError, LaunchError, RunFailedError
from siglip_pipeline.records import Stage
from siglip_pipeline.runs.dagster_api import FINISHED, DagsterApi, RunState
from siglip_pipeline.runs.waiting import Standstill
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.run_names import (
    EMBEDDINGS_PER_RUN,
    FRAMES_PER_RUN,
    JOB_OF,
    RANGE_END_TAG,
    RANGE_START_TAG,
    contiguous_ranges,
    keys_between,
)
from siglip_pipeline.stages.upload_registration import register_videos
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.names import partition_key, path_of_partition
from siglip_pipeline.uploads.upload_store import UploadStore

_T = TypeVar("_T")

MOST_DIRECT: Final = 256
"""Videos that are run at once; more become a backfill."""

_POLL_SECONDS: Final = (0.1, 1.0)
"""Shortest and longest pause between two looks at a run: a tenth of its time so far."""
_RETRY_SECONDS: Final = 300.0
"""Time within which Dagster, or the sensor `lost_runs`, restarts a lost run."""
_AWAY_SECONDS: Final = 60.0
"""Time within which a webserver that ended is started again."""
_PER_VIDEO: Final = {Stage.FRAMES: FRAMES_PER_RUN, Stage.VECTORS: EMBEDDINGS_PER_RUN}
"""Partitioned assets, in the order in which they are made, and the batch size of each."""
_OF_ALL_VIDEOS: Final = (Stage.INDEX, Stage.SIMILARITY)


def materialize_remotely(
    api: DagsterApi,
    settings: Settings,
    videos: Sequence[str],
    *,
    assets: Sequence[Stage],
    force: bool,
    standstill: Standstill,
) -> None:
    """Have a running Dagster make some assets of some uploads, and wait until it has.

    Args:
        api: the running Dagster.
        settings: where the uploads and the database are: the same ones that Dagster uses.
        videos: paths below UPLOADS.
        assets: those to materialize.
        force: do the work even where the result is current.
        standstill: says what keeps a run waiting.

    Raises:
        UploadNotFoundError: none of the paths is below UPLOADS.
        RunFailedError: Dagster could not do it, for another reason than single videos.
    """
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        keys = register_videos(api, database, _uploads(settings), videos, assets=assets)
        if len(keys) > MOST_DIRECT:
            for launch in _backfills(api, keys, assets=assets, force=force):
                _wait_for_backfill(api, launch(), standstill)
        else:
            for asset in _PER_VIDEO:
                if asset in assets:
                    red = _run_ranges(
                        api, database, asset, keys, force=force, standstill=standstill
                    )
                    keys = [key for key in keys if key not in red]
    for asset in _OF_ALL_VIDEOS:
        if asset in assets:
            # The automation does this too, some seconds later: the second finds nothing to do.
            state = _wait_for_run(api, api.launch_run(JOB_OF[asset]), standstill)
            if state.status != "SUCCESS":
                raise _failure(api, asset, state)


def start_backfills(
    api: DagsterApi,
    settings: Settings,
    videos: Sequence[str],
    *,
    assets: Sequence[Stage],
    force: bool,
) -> list[str]:
    """Have a running Dagster make some assets of some uploads, without waiting; gives backfill ids.

    A backfill makes one asset after the other by itself. Arguments and errors are those of
    :func:`materialize_remotely`.
    """
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        keys = register_videos(api, database, _uploads(settings), videos, assets=assets)
    return [launch() for launch in _backfills(api, keys, assets=assets, force=force)]


def _uploads(settings: Settings) -> UploadStore:
    return UploadStore(settings.uploads, shard=settings.part, settle_seconds=0)


def _backfills(
    api: DagsterApi, keys: Sequence[str], *, assets: Sequence[Stage], force: bool
) -> list[Callable[[], str]]:
    """Return what launches each backfill that is needed, to be called in order."""
    partitioned = [asset for asset in assets if asset in _PER_VIDEO]
    if not force:
        return [lambda: api.launch_backfill(partitioned, keys)] if partitioned else []

    def forced(asset: Stage) -> Callable[[], str]:
        # A run's config may name only what the run holds: an asset at a time.
        return lambda: api.launch_backfill([asset], keys, config=api.config_of(asset, force=True))

    return [forced(asset) for asset in partitioned]


def _wait_for_backfill(api: DagsterApi, backfill: str, standstill: Standstill) -> None:
    began = time.monotonic()
    while (status := _patiently(lambda: api.backfill_status(backfill))) not in FINISHED:
        _patiently(lambda: standstill.look(api))
        _pause(began)
    if status == "CANCELED":
        raise RunFailedError(f"the backfill was cancelled ({api.backfill_url(backfill)})")


def _run_ranges(
    api: DagsterApi,
    database: Database,
    asset: Stage,
    keys: Sequence[str],
    *,
    force: bool,
    standstill: Standstill,
) -> set[str]:
    """Run one asset over some partitions, each contiguous range of them by itself; wait for all.

    Returns:
        The failed partitions of runs that failed: nothing can be made of them downstream.

    Raises:
        LaunchError: Dagster does not have these partitions, or did not start a run.
        RunFailedError: a run failed as a whole.
    """
    existing = _patiently(lambda: api.partition_keys(asset))
    if missing := sorted({*keys} - {*existing}):
        raise LaunchError(
            f"Dagster has no partition {missing[0]!r} of {asset}: it was deleted meanwhile, or "
            "another code location has an asset of this name"
        )
    ranges = contiguous_ranges(existing, keys, most=_PER_VIDEO[asset])
    runs = [
        api.launch_run(
            JOB_OF[asset],
            asset=asset,
            tags={RANGE_START_TAG: first, RANGE_END_TAG: last},
            config=api.config_of(asset, force=True) if force else None,
        )
        for first, last in ranges
    ]
    red: set[str] = set()
    for run, (first, last) in zip(runs, ranges, strict=True):
        state = _wait_for_run(api, run, standstill)
        if state.status == "SUCCESS":
            continue
        of_videos = _failed(database, keys_between(existing, first, last), stage=asset)
        # Of a run that failed because of single videos, each has its reason in the database.
        if not (state.status == "FAILURE" and of_videos):
            raise _failure(api, asset, state)
        red |= of_videos
    return red


def _failure(api: DagsterApi, asset: Stage, state: RunState) -> RunFailedError:
    if state.status == "FAILURE":
        return RunFailedError(api.failure(state.run_id, asset))
    return RunFailedError(f"a run of {asset} ended as {state.status} (run {state.run_id})")


def _wait_for_run(api: DagsterApi, run: str, standstill: Standstill) -> RunState:
    """Wait until a run has ended, or the run that Dagster starts in its place."""
    deadline: float | None = None
    began = time.monotonic()
    while True:
        state = _patiently(partial(api.run_state, run))
        if state.retried_as is not None:
            run, deadline = state.retried_as, None
        elif state.has_ended:
            if not state.will_retry:
                return state
            deadline = deadline or time.monotonic() + _RETRY_SECONDS
            if time.monotonic() > deadline:
                raise RunFailedError(f"run {run} was lost, and nothing has started it again")
        _patiently(lambda: standstill.look(api))
        _pause(began)


def _patiently(ask: Callable[[], _T]) -> _T:
    """Ask a webserver that may be starting again: the runs go on without it.

    Raises:
        DagsterAwayError: it has not answered for a minute.
    """
    began = time.monotonic()
    while True:
        try:
            return ask()
        except DagsterAwayError:
            if time.monotonic() - began > _AWAY_SECONDS:
                raise
        time.sleep(1)


def _pause(began: float) -> None:
    shortest, longest = _POLL_SECONDS
    time.sleep(min(longest, max(shortest, (time.monotonic() - began) / 10)))


def _failed(database: Database, keys: Sequence[str], *, stage: Stage) -> set[str]:
    """Return keys of videos whose last try of a stage failed."""
    rows = VideoStore(database).named(map(path_of_partition, keys))
    return {partition_key(row.video) for row in rows if row.stage == stage}
