"""Why videos wait although services run: a failed run, a sensor that is off, no worker …"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
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
from siglip_pipeline.uploads.upload_store import is_in_shard

_ANSWER_SECONDS: Final = 5.0
_WORKER_SECONDS: Final = 20.0
"""How long a step may wait for a worker without a word."""
_DAEMON_SECONDS: Final = 120.0
"""How long Dagster's daemon may be silent; it gives a sign of life every 30 s."""
_QUEUE_SECONDS: Final = 60.0
"""How long a run may wait in Dagster's queue while none is at work."""
_FIRST_LOOK_SECONDS: Final = 20.0
"""Services that have just been started take so long to give a sign of life."""
_LOOK_SECONDS: Final = 5.0
_TAKE_UP: Final = ("new_uploads", "automation")
"""The sensors without which nothing is made of an upload."""


class Standstill:
    """Says once, after some time, what keeps runs waiting although none has failed.

    Args:
        tell: shows a message.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._look_at = time.monotonic() + _FIRST_LOOK_SECONDS

    def look(self, api: DagsterApi) -> None:
        """Look now and then; to be called at any time.

        Raises:
            LaunchError: Dagster does not answer.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        if (why := _standstill(api)) is not None:
            self._tell(why)
            self._look_at = math.inf


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
    """Return what keeps videos waiting: a failed run of this home's services, sensors that are off,
    a daemon that is silent, or a step that no worker takes.

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
        mine = {v: state for v, state in states.items() if is_in_shard(v, settings.part)}
        for run, videos in left_undone(api, runs, mine):
            found.append(
                f"{api.failure(run.run_id, run.what)}; {len(videos):,} of the videos to come must "
                "wait for it: once the cause is mended, `siglip-pipeline materialize "
                "--all-missing` takes them up"
            )
            break
        if (why := _standstill(api)) is not None:
            found.append(why)
    return tuple(found)


def take_up_again(database: Database, settings: Settings, videos: Sequence[str]) -> None:
    """Have the sensor announce those of these videos again that earlier runs left undone."""
    with contextlib.suppress(LaunchError, RunFailedError):
        if (api := _dagster(settings)) is not None and (runs := api.failed_runs()):
            left = left_undone(api, runs, _states(database, videos))
            again = {video for _, undone in left for video in undone}
            AnnouncedUploads(database).announce_again(sorted(again))


def check_runs(
    database: Database,
    settings: Settings,
    videos: Sequence[str],
    *,
    since: float,
    standstill: Standstill,
) -> None:
    """Look whether something will still be made of these videos.

    Args:
        database: their states.
        settings: of the services' home.
        videos: paths.
        since: unix time of the beginning: earlier failures do not count.
        standstill: is asked to look, too.

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
                f"{api.failure(run.run_id, run.what)}; {len(undone):,} of the videos must wait "
                "for it"
            )
        standstill.look(api)


def _standstill(api: DagsterApi) -> str | None:
    return (
        api.silent_daemon(seconds=_DAEMON_SECONDS)
        or api.waits_for_worker(seconds=_WORKER_SECONDS)
        or api.waits_in_queue(seconds=_QUEUE_SECONDS)
    )


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
        shard=settings.part,
        api_key=settings.api_key,
        timeout_seconds=answer_seconds,
    )


def _states(database: Database, videos: Sequence[str]) -> dict[str, VideoState]:
    return {row.video: row.state for row in VideoStore(database).named(videos)}
