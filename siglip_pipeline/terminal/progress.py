"""Show the progress of videos through the pipeline."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

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
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.terminal.console import err
from siglip_pipeline.text.in_words import counted

_POLL_SECONDS = 0.5
PATIENCE_SECONDS = 300.0
"""For how long a database may be away that restarts."""
LINE_SECONDS = 10.0
"""Between two lines of progress where nothing can be drawn."""


def watch_until(
    database: Database,
    settings: Settings,
    expected: int,
    done: Callable[[PipelineStatus], bool],
    *,
    videos: Sequence[str] | None = None,
    quiet: bool,
    tick: Callable[[], None] = lambda: None,
    pause: Callable[[float], object] = time.sleep,
) -> PipelineStatus:
    """Show progress until ``done(status)``; call ``tick`` at every poll.

    On a terminal the display is live, unless ``quiet``; else a line is written every ten seconds.
    With ``videos``, it counts these and not the whole collection.

    ``pause`` waits between two polls, or for less time if there is something to see.

    Waits for a database that restarts meanwhile: other processes do the work.

    Raises:
        DatabaseUnavailableError: it does not answer at first, or not for minutes.
    """
    options = StatusOptions.from_settings(settings)
    live = PipelineProgress() if err.is_terminal and not quiet else None
    lines = ProgressLines()
    answered = time.monotonic()

    def look(before: PipelineStatus | None) -> PipelineStatus:
        nonlocal answered
        try:
            status = collect_status(database, options)
            counts = StageCounts.of(database, status, expected, videos)
        except DatabaseUnavailableError:
            if before is None or time.monotonic() - answered > PATIENCE_SECONDS:
                raise
            return before
        answered = time.monotonic()
        (live or lines).show(counts, status)
        return status

    with live or nullcontext():
        status = look(None)
        while not done(status):
            tick()
            pause(_POLL_SECONDS)
            status = look(status)
        return look(status)


def write_progress(database: Database, settings: Settings, videos: Sequence[str]) -> None:
    """Write a line about videos that a thread works on; nothing while the database is away."""
    try:
        status = collect_status(database, StatusOptions.from_settings(settings))
        counts = StageCounts.of(database, status, len(videos), videos)
    except DatabaseUnavailableError:
        return
    ProgressLines(seconds=0).show(counts, status)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCounts:
    """How many videos have passed each stage."""

    expected: int
    known: int
    decoded: int
    """Decoded or failed to be."""
    embedded: int
    """Embedded or failed."""
    failed: int

    @classmethod
    def of(
        cls,
        database: Database,
        status: PipelineStatus,
        expected: int,
        videos: Sequence[str] | None,
    ) -> "StageCounts":
        """Return the numbers of some videos, or of the whole collection."""
        if videos is None:
            failed_to_decode = sum(f.stage == Stage.FRAMES for f in status.failures)
            return cls(
                expected=max(expected, status.total),
                known=status.total,
                decoded=status.decoded + failed_to_decode,
                embedded=status.embedded + status.failed,
                failed=status.failed,
            )
        states = [row.state for row in VideoStore(database).named(videos)]
        return cls(
            expected=expected,
            known=len(states),
            decoded=sum(state != "pending" for state in states),
            embedded=sum(state in ("embedded", "indexed", "failed") for state in states),
            failed=states.count("failed"),
        )


class ProgressLines:
    """Writes a line of progress every ten seconds, for logs and beside ``--json``."""

    def __init__(self, *, seconds: float = LINE_SECONDS) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def show(self, counts: StageCounts, status: PipelineStatus) -> None:
        """Write a line if it is time for one."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._seconds
        failed = f", {counts.failed} failed" if counts.failed else ""
        index = "" if status.is_index_current else "; the index is not up to date yet"
        err.print(
            f"frames of {counts.decoded} of {counted(counts.expected, 'video')}, vectors of "
            f"{counts.embedded}{failed}{index}"
        )


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

    def show(self, counts: StageCounts, status: PipelineStatus) -> None:
        """Update the display."""
        self._update("uploads", counts.known, counts.expected, "")
        self._update(Stage.FRAMES, counts.decoded, counts.expected, counted(status.frames, "frame"))
        failed = f", {counts.failed} failed" if counts.failed else ""
        note = f"{counted(status.vectors, 'vector')}{failed}"
        self._update(Stage.VECTORS, counts.embedded, counts.expected, note)
        kind = status.index.kind if status.index else ""
        self._update(Stage.INDEX, int(status.is_index_current), 1, kind)

    def _update(self, stage: str, completed: int, total: int, note: str) -> None:
        self._progress.update(
            self._tasks[stage], completed=min(completed, total), total=total, note=note
        )
