"""Why videos wait although services run: a run has failed for good, or a sensor is off."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from siglip_pipeline.errors import LaunchError, RunFailedError
from siglip_pipeline.runs.dagster_api import DagsterApi
from siglip_pipeline.runs.left_undone import left_undone
from siglip_pipeline.services.state import running
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.status import PipelineStatus
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import VideoState, VideoStore
from siglip_pipeline.uploads.upload_store import is_in_part

_ANSWER_SECONDS: Final = 5.0
_WORKER_SECONDS: Final = 20.0
"""How long a step may wait for a worker without a word."""
_TAKE_UP: Final = ("new_uploads", "automation")
"""The sensors without which nothing is made of an upload."""


def with_reasons(
    status: PipelineStatus,
    database: Database,
    settings: Settings,
    *,
    answer_seconds: float = _ANSWER_SECONDS,
) -> PipelineStatus:
    """Return a status whose warnings also say why videos wait, if some do.

    Args:
        status: of the pipeline.
        database: the states of its videos.
        settings: of the services' home.
        answer_seconds: how long each answer of Dagster may take.
    """
    if not status.pending:
        return status
    why = why_videos_wait(database, settings, answer_seconds=answer_seconds)
    return replace(status, warnings=(*status.warnings, *why))


def why_videos_wait(
    database: Database, settings: Settings, *, answer_seconds: float = _ANSWER_SECONDS
) -> tuple[str, ...]:
    """Return what keeps videos waiting: a failed run of this home's services, sensors that are off.

    Nothing if no services run here, or if their Dagster does not answer.
    """
    found: list[str] = []
    with contextlib.suppress(LaunchError, RunFailedError):
        if (api := _dagster(settings, answer_seconds)) is None:
            return ()
        if (off := _sensors_are_off(api)) is not None:
            found.append(off)
        runs = api.failed_runs()
        states = VideoStore(database).states() if runs else {}
        mine = {video: state for video, state in states.items() if is_in_part(video, settings.part)}
        for run, videos in left_undone(api, runs, mine):
            found.append(
                f"{api.failure(run)}; {len(videos):,} of the videos to come must wait for it: once "
                "the cause is mended, `siglip-pipeline materialize --all-missing` takes them up"
            )
            break
    return tuple(found)


def take_up_again(database: Database, settings: Settings, videos: Sequence[str]) -> None:
    """Have the sensor announce those of these videos again that earlier runs left undone."""
    with contextlib.suppress(LaunchError, RunFailedError):
        if (api := _dagster(settings)) is not None and (runs := api.failed_runs()):
            left = left_undone(api, runs, _states(database, videos))
            again = {video for _, undone in left for video in undone}
            AnnouncedUploads(database).announce_again(sorted(again))


def check_runs(
    database: Database, settings: Settings, videos: Sequence[str], *, since: float
) -> None:
    """Look whether something will still be made of these videos.

    Args:
        database: their states.
        settings: of the services' home.
        videos: paths.
        since: unix time of the beginning: earlier failures do not count.

    Raises:
        RunFailedError: a run over one of them has failed as a whole, or a sensor is off.
    """
    with contextlib.suppress(LaunchError):
        if (api := _dagster(settings)) is None:
            return
        if (off := _sensors_are_off(api)) is not None:
            raise RunFailedError(off)
        runs = [run for run in api.failed_runs(since=since) if not run.was_lost]
        for run, undone in left_undone(api, runs, _states(database, videos) if runs else {}):
            raise RunFailedError(
                f"{api.failure(run)}; {len(undone):,} of the videos must wait for it"
            )


def waits_for_worker(settings: Settings) -> str | None:
    """Return which run of this home's services waits for a Celery worker; None if none does."""
    if settings.executor != "celery":
        return None
    with contextlib.suppress(LaunchError):
        if (api := _dagster(settings)) is not None:
            return api.waits_for_worker(seconds=_WORKER_SECONDS)
    return None


def _sensors_are_off(api: DagsterApi) -> str | None:
    stopped = [name for name in api.stopped_sensors() if name in _TAKE_UP]
    if not stopped:
        return None
    return (
        f"switched off in Dagster: {' and '.join(stopped)}. Switch it on under Automation there, "
        "or take up new videos with `siglip-pipeline materialize --all-missing`"
    )


def _dagster(settings: Settings, answer_seconds: float = _ANSWER_SECONDS) -> DagsterApi | None:
    services = running(settings.home)
    if services is None:
        return None
    return DagsterApi(
        services.dagster_url,
        part=settings.part,
        api_key=settings.api_key,
        timeout_seconds=answer_seconds,
    )


def _states(database: Database, videos: Sequence[str]) -> dict[str, VideoState]:
    return {row.video: row.state for row in VideoStore(database).named(videos)}
