"""Show the progress of videos through the pipeline."""

import time
from collections.abc import Callable
from contextlib import nullcontext

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from siglip_pipeline.errors import DatabaseUnavailableError
from siglip_pipeline.records import Stage
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.status import PipelineStatus, StatusOptions, collect_status
from siglip_pipeline.store.database import Database
from siglip_pipeline.terminal.console import err

_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 300.0


def watch_until(
    database: Database,
    settings: Settings,
    expected: int,
    done: Callable[[PipelineStatus], bool],
    *,
    quiet: bool,
    tick: Callable[[], None] = lambda: None,
    pause: Callable[[float], object] = time.sleep,
) -> PipelineStatus:
    """Show live progress until ``done(status)``; call ``tick`` at every poll.

    ``pause`` waits between two polls, or for less time if there is something to see.

    Waits for a database that restarts meanwhile: other processes do the work.

    Raises:
        DatabaseUnavailableError: it does not answer at first, or not for minutes.
    """
    options = StatusOptions.from_settings(settings)
    progress = PipelineProgress()
    answered = time.monotonic()

    def look(before: PipelineStatus | None) -> PipelineStatus:
        nonlocal answered
        try:
            status = collect_status(database, options)
        except DatabaseUnavailableError:
            if before is None or time.monotonic() - answered > _PATIENCE_SECONDS:
                raise
            return before
        answered = time.monotonic()
        if not quiet:
            progress.show(status, max(expected, status.total))
        return status

    with nullcontext() if quiet else progress:
        status = look(None)
        while not done(status):
            tick()
            pause(_POLL_SECONDS)
            status = look(status)
        return look(status)


class PipelineProgress:
    """A live display of videos in the stages."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<17}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=err,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "PipelineProgress":
        self._progress.start()
        for stage in ("uploads", Stage.FRAMES, Stage.VECTORS, Stage.INDEX):
            self._tasks[stage] = self._progress.add_task(stage, total=None, note="")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, status: PipelineStatus, expected: int) -> None:
        """Update the display.

        Args:
            expected: videos that will pass through the stages.
        """
        self._update("uploads", status.total, expected, "")
        failed_to_decode = sum(f.stage == Stage.FRAMES for f in status.failures)
        frames = status.decoded + failed_to_decode
        self._update(Stage.FRAMES, frames, expected, f"{status.frames} frames")
        vectors = status.embedded + status.failed
        note = f"{status.vectors} vectors" + (f", {status.failed} failed" if status.failed else "")
        self._update(Stage.VECTORS, vectors, expected, note)
        kind = status.index.kind if status.index else ""
        self._update(Stage.INDEX, int(status.is_index_current), 1, kind)

    def _update(self, stage: str, completed: int, total: int, note: str) -> None:
        self._progress.update(
            self._tasks[stage], completed=min(completed, total), total=total, note=note
        )
