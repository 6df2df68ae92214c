"""The commands that index: `ingest` and `materialize`, and the progress they show."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from siglip_pipeline.errors import (
    DatabaseUnavailableError,
    LaunchError,
    QueryError,
    SiglipPipelineError,
    UploadNotFoundError,
)
from siglip_pipeline.files.private_files import make_folders
from siglip_pipeline.records import Stage
from siglip_pipeline.services.home import pipeline_environment, with_databases
from siglip_pipeline.services.state import running
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.stages.freshness import (
    Wanted,
    changed_uploads,
    known_by_earlier_form,
    out_of_date,
)
from siglip_pipeline.stages.status import PipelineStatus
from siglip_pipeline.stages.status_document import FailedVideo
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.terminal import console
from siglip_pipeline.terminal.progress import (
    LINE_SECONDS,
    PATIENCE_SECONDS,
    watch_until,
    write_progress,
)
from siglip_pipeline.text.in_words import duration_in_words
from siglip_pipeline.text.json_form import Given
from siglip_pipeline.uploads.ingest import Ingested, bring_in
from siglip_pipeline.uploads.names import shown, unusable
from siglip_pipeline.uploads.upload_store import UploadStore, is_in_shard

_POLL_SECONDS = 0.3
_LOOK_SECONDS = 5.0
"""Time between two looks for a run that failed as a whole."""
_RESTART_SECONDS = 60.0
"""Time in which services that have ended may be started again."""
LEFT_TO_AUTOMATION = Stage.SIMILARITY
"""A running Dagster updates it by its automation; commands wait for it only if asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedSource:
    """A file that was not copied into the uploads, and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedVideo:
    """A video that was not indexed because its upload is gone, with the reason."""

    video: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the videos that were indexed."""

    indexed: tuple[str, ...] = ()
    failed: tuple[FailedVideo, ...] = ()
    backfills: tuple[str, ...] | None = None
    """Addresses of the backfills that were started and not waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestDocument:
    """What ``ingest --json`` prints."""

    ingested: tuple[str, ...]
    skipped: tuple[SkippedSource, ...]
    indexed: tuple[str, ...] = ()
    failed: tuple[FailedVideo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializeDocument:
    """What ``materialize --json`` prints."""

    videos: tuple[str, ...]
    indexed: tuple[str, ...] = ()
    failed: tuple[FailedVideo, ...] = ()
    skipped: tuple[SkippedVideo, ...] = ()
    """Videos chosen by their state whose upload is gone."""
    backfills: Given[tuple[str, ...]] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which uploads ``materialize`` indexes: the named ones, and all that match a flag."""

    videos: Sequence[str]
    all_missing: bool = False
    failed: bool = False
    stale: bool = False

    @property
    def is_empty(self) -> bool:
        """Return whether neither names nor flags were given."""
        return not (self.videos or self.all_missing or self.failed or self.stale)


def ingest_videos(
    settings: Settings, paths: Sequence[Path], *, wait: bool, replace: bool, quiet: bool
) -> IngestDocument:
    """Copy files into the uploads; with ``wait``, wait until they are indexed."""
    if (folder := settings.uploads.folder) is not None:
        make_folders(folder / (settings.part or ""))
    uploads = UploadStore(settings.uploads, shard=settings.part, settle_seconds=0)
    outcomes = []
    for outcome in bring_in(paths, uploads, shard=settings.part, replace=replace):
        outcomes.append(outcome)
        if not quiet:
            console.err.print(f"{outcome.outcome:>9}  {shown(outcome.video)}")
    if not outcomes:
        named = ", ".join(shown(str(path)) for path in paths)
        raise QueryError(f"{named}: no files are there; name videos, or folders that hold some")
    videos = sorted({outcome.video for outcome in outcomes if outcome.is_upload})
    skipped = tuple(
        SkippedSource(source=outcome.source, reason=_skip_reason(outcome))
        for outcome in outcomes
        if not outcome.is_upload
    )
    if not quiet:
        for file in skipped:
            console.err.print(f"skipped {shown(file.source)}: {file.reason}", style="yellow")
    result = Outcome()
    if wait and videos:
        began = time.monotonic()
        index = _index_here if running(settings.home) is None else _wait_for_services
        result = index(settings, videos, quiet=quiet)
        if not quiet:
            _tell(result, time.monotonic() - began)
    elif videos and not quiet and running(settings.home) is None:
        console.err.print("`siglip-pipeline up` indexes them; or run this again with --wait.")
    return IngestDocument(
        ingested=tuple(videos), skipped=skipped, indexed=result.indexed, failed=result.failed
    )


def materialize_uploads(
    settings: Settings,
    choice: Choice,
    *,
    assets: Sequence[str],
    force: bool,
    wait: bool,
    dagster_url: str | None,
    quiet: bool,
) -> MaterializeDocument:
    """Index the chosen uploads: through a running Dagster, or in this process if there is none.

    Videos chosen by their state whose upload is gone are named and left out, and so are those
    without frames where ``assets`` has none made.

    Raises:
        QueryError: nothing was chosen, or an asset is unknown.
        UploadNotFoundError: no upload has a name that was given.
        LaunchError: no Dagster answers, or ``wait`` is off and none runs that would do the work.
        RunFailedError: a run failed for another reason than single videos.
    """
    unknown = set(assets) - set(Stage)
    if unknown:
        raise QueryError(f"no such asset: {', '.join(sorted(unknown))}; one of {', '.join(Stage)}")
    if choice.is_empty:
        raise QueryError("name uploads, or use --all-missing, --failed or --stale")
    uploads = UploadStore(settings.uploads, shard=settings.part, settle_seconds=0)
    named = tuple(upload.path for upload in uploads.find(choice.videos))
    choice = replace(choice, videos=named)  # before anything is started for them
    other = running(settings.home)
    url = dagster_url or (other.dagster_url if other else None)
    if url is None and not wait:
        raise LaunchError(
            "--no-wait needs a running Dagster that goes on: start `siglip-pipeline up`, or name "
            "one with --dagster-url"
        )
    wanted = [stage for stage in Stage if stage in (assets or Stage)]
    videos, skipped = _chosen_videos(
        settings, uploads, choice, need_frames=Stage.FRAMES not in wanted
    )
    for entry in () if quiet else skipped:
        console.err.print(f"skipped {shown(entry.video)}: {entry.reason}", style="yellow")
    began = time.monotonic()
    if not videos:
        result = Outcome()
    elif url is None:
        result = _index_here(settings, videos, assets=wanted, force=force, quiet=quiet)
    else:
        if not assets:
            wanted.remove(LEFT_TO_AUTOMATION)
        result = _index_through_dagster(
            url, settings, videos, assets=wanted, force=force, wait=wait, quiet=quiet
        )
    if not quiet and result.backfills is None:
        _tell(result, time.monotonic() - began)
    return MaterializeDocument(
        videos=tuple(videos),
        indexed=result.indexed,
        failed=result.failed,
        skipped=skipped,
        backfills=result.backfills,
    )


def _chosen_videos(
    settings: Settings, uploads: UploadStore, choice: Choice, *, need_frames: bool
) -> tuple[list[str], tuple[SkippedVideo, ...]]:
    """Return the chosen uploads, sorted, and those of which nothing can be made.

    These are the ones chosen by state whose upload is gone, and with ``need_frames`` those that
    have none yet.

    The named ones were looked up, and a listing shows what exists: only the others are looked up.
    """
    existing, by_state = set(choice.videos), set[str]()
    listing = [*uploads.scan()] if choice.all_missing or choice.stale else []
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        videos = VideoStore(database)
        states = {v: s for v, s in videos.states().items() if is_in_shard(v, settings.part)}
        if listing:
            known = videos.fingerprints()
            AnnouncedUploads(database).restate(known_by_earlier_form(known, listing))
            if choice.all_missing:
                existing |= changed_uploads(known, listing)
        if choice.stale:
            stale = out_of_date(database, Wanted.from_settings(settings), listing=listing).videos
            by_state |= states.keys() & set(stale)
    if choice.all_missing:
        existing |= {u.path for u in listing if states.get(u.path) not in ("indexed", "failed")}
    if choice.failed:
        by_state |= {path for path, state in states.items() if state == "failed"}
    skipped = []
    for video in sorted(by_state - existing):
        try:
            uploads.get(video)
        except UploadNotFoundError as error:
            skipped.append(SkippedVideo(video=video, reason=str(error)))
        else:
            existing.add(video)
    if need_frames:
        early = {video for video in existing if states.get(video, "pending") == "pending"}
        existing -= early
        reason = "it has no frames yet: leave out --assets, or name video_frames too"
        skipped += [SkippedVideo(video=video, reason=reason) for video in sorted(early)]
    return sorted(existing), tuple(skipped)


def _index_here(
    settings: Settings,
    videos: Sequence[str],
    *,
    assets: Sequence[Stage] = tuple(Stage),
    force: bool = False,
    quiet: bool,
) -> Outcome:
    """Do the work in this process; return each video's outcome."""
    # Dagster takes seconds to import, in which a new database is made and started.
    with _importing("siglip_pipeline.runs.in_process") as runs, with_databases(settings) as ready:
        runs.finish()  # the definitions read the environment, which changes from here on
        return _run_here(ready, videos, assets=assets, force=force, quiet=quiet)


def _run_here(
    settings: Settings, videos: Sequence[str], *, assets: Sequence[Stage], force: bool, quiet: bool
) -> Outcome:
    from siglip_pipeline.runs.in_process import materialize_videos

    with (
        pipeline_environment(settings) as complete,
        open_database(DatabaseOptions.from_settings(complete)) as database,
    ):
        work = _InBackground(
            lambda: materialize_videos(complete, videos, assets=assets, force=force)
        )
        if {Stage.FRAMES, Stage.VECTORS} <= set(assets) and (force or _pending(database, videos)):
            loading = _InBackground(lambda: _load_model(complete))
        else:
            loading = None
        work.watch(database, complete, videos, quiet=quiet)
        if loading is not None:
            loading.finish()  # a thread that imports must not outlive the interpreter
        return _outcome(database, videos)


def _index_through_dagster(
    url: str,
    settings: Settings,
    videos: Sequence[str],
    *,
    assets: Sequence[Stage],
    force: bool,
    wait: bool,
    quiet: bool,
) -> Outcome:
    """Have a running Dagster do the work; return each video's outcome, if waited for."""
    from siglip_pipeline.runs.dagster_api import DagsterApi
    from siglip_pipeline.runs.remote import materialize_remotely, start_backfills
    from siglip_pipeline.runs.waiting import Standstill

    api = DagsterApi(url, shard=settings.part, api_key=settings.api_key)
    if not wait:
        # The automation does what follows from a backfill, such as the index.
        ids = start_backfills(api, settings, videos, assets=assets, force=force)
        backfills = tuple(api.backfill_url(backfill) for backfill in ids)
        if not quiet:
            for address in backfills:
                console.err.print(f"started {address}")
        return Outcome(backfills=backfills)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        work = _InBackground(
            lambda: materialize_remotely(
                api, settings, videos, assets=assets, force=force, standstill=Standstill(_warn)
            )
        )
        work.watch(database, settings, videos, quiet=quiet)
        return _outcome(database, videos)


def _wait_for_services(settings: Settings, videos: Sequence[str], *, quiet: bool) -> Outcome:
    """Wait until the services that run here have indexed the videos; return each one's outcome."""
    from siglip_pipeline.runs.waiting import take_up_again

    with open_database(DatabaseOptions.from_settings(settings)) as database:
        take_up_again(database, settings, videos)
        before = _tries_of_earlier_files(database, settings, videos)
        waiting = _InBackground(lambda: _await_settled(database, settings, videos, before=before))
        waiting.watch(database, settings, videos, quiet=quiet)
        return _outcome(database, videos)


def _tries_of_earlier_files(
    database: Database, settings: Settings, videos: Sequence[str]
) -> Mapping[str, object]:
    """Return the last tries of the videos whose files have changed since, and announce these again.

    Until the next try, the state of such a video is that of its earlier file.
    """
    store = VideoStore(database)
    known = store.fingerprints(videos)
    uploads = UploadStore(settings.uploads, shard=settings.part, settle_seconds=0)
    files = []
    for video in known:
        with contextlib.suppress(UploadNotFoundError):  # deleted meanwhile: the run says so
            files.append(uploads.get(video))
    changed = changed_uploads(known, files)
    AnnouncedUploads(database).announce_again(changed)
    return store.last_tries(changed)


class _InBackground:
    """Runs a function in a thread; its exception is raised by :meth:`finish`."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._error: BaseException | None = None

        def run() -> None:
            try:
                function()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="materialize", daemon=True)
        self._thread.start()

    def watch(
        self, database: Database, settings: Settings, videos: Sequence[str], *, quiet: bool
    ) -> None:
        """Show progress until the function has returned; ask for it only where a line is due."""
        if console.err.is_terminal and not quiet:
            watch_until(
                database,
                settings,
                len(videos),
                self._is_done,
                videos=videos,
                quiet=False,
                pause=self._wait,
            )
        while self._thread.is_alive():
            self._wait(LINE_SECONDS)
            if self._thread.is_alive():
                write_progress(database, settings, videos)
        self.finish()

    def _is_done(self, status: PipelineStatus) -> bool:
        return not self._thread.is_alive()

    def _wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def finish(self) -> None:
        # Not one long wait, which Ctrl-C would not end.
        while self._thread.is_alive():
            self._thread.join(0.5)
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def _importing(module: str) -> Iterator[_InBackground]:
    """Import a module while this block runs."""
    work = _InBackground(lambda: import_module(module))
    try:
        yield work
    finally:
        work.finish()  # a thread that imports must not outlive the interpreter


def _pending(database: Database, videos: Sequence[str]) -> bool:
    """Return whether a video is not indexed yet."""
    rows = VideoStore(database).named(videos)
    return len(rows) < len(set(videos)) or any(row.state != "indexed" for row in rows)


def _load_model(settings: Settings) -> None:
    """Load the model while the first videos are decoded, in processes of their own."""
    from siglip_pipeline.siglip.model import get_model

    with contextlib.suppress(SiglipPipelineError):  # the run that needs it says what is wrong
        get_model(ModelOptions.from_settings(settings), tower="image")


def _await_settled(
    database: Database,
    settings: Settings,
    videos: Sequence[str],
    *,
    before: Mapping[str, object],
) -> None:
    """Return when each video is indexed or has failed; wait for a database that restarts.

    Asks for these videos alone: the state of the whole collection takes its time if it is large.

    Args:
        database: their states.
        settings: of the services' home.
        videos: paths.
        before: last tries of videos that are to be tried again.

    Raises:
        RunFailedError: a run over some of them failed as a whole: nothing takes them up.
        LaunchError: the services have ended.
    """
    from siglip_pipeline.runs.waiting import Standstill, check_runs

    began = time.time()
    standstill = Standstill(_warn)
    answered = look_at = served = time.monotonic()
    while True:
        try:
            if _settled(database, videos, before):
                return
            answered = time.monotonic()
            if running(settings.home) is not None:
                served = answered
            elif answered - served > _RESTART_SECONDS:
                raise LaunchError(
                    f"the services of SIGLIP_HOME={settings.home} have ended: start "
                    "`siglip-pipeline up` again, which indexes what is in the uploads, or run this "
                    "command again"
                )
            if answered >= look_at:
                check_runs(database, settings, videos, since=began, standstill=standstill)
                look_at = time.monotonic() + _LOOK_SECONDS
        except DatabaseUnavailableError:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise
        time.sleep(_POLL_SECONDS)


def _warn(message: str) -> None:
    console.err.print(message, style="yellow")


def _settled(database: Database, videos: Sequence[str], before: Mapping[str, object]) -> bool:
    store = VideoStore(database)
    rows = store.named(videos)
    if len(rows) < len(set(videos)) or any(r.state not in ("indexed", "failed") for r in rows):
        return False
    return not before or before.items().isdisjoint(store.last_tries(before).items())


def _outcome(database: Database, videos: Sequence[str]) -> Outcome:
    chosen = VideoStore(database).named(videos)
    return Outcome(
        indexed=tuple(row.video for row in chosen if row.state == "indexed"),
        failed=tuple(
            # The state stands on a failure, which has both.
            FailedVideo(video=row.video, stage=str(row.stage), reason=str(row.reason))
            for row in chosen
            if row.state == "failed"
        ),
    )


def _tell(result: Outcome, seconds: float) -> None:
    """Say how many videos are searchable now, and why each of the others is not."""
    for video in result.failed:
        console.err.print(
            f"failed {shown(video.video)} at {video.stage}: {video.reason}", style="yellow"
        )
    failed = f", {len(result.failed):,} failed" if result.failed else ""
    console.err.print(f"{len(result.indexed):,} indexed{failed}, in {duration_in_words(seconds)}.")


def _skip_reason(outcome: Ingested) -> str:
    if outcome.outcome == "missing":
        return "no such file or folder"
    if outcome.outcome == "refused":
        return unusable(outcome.video) or (
            "its path leads out of the folder that was named or out of UPLOADS, or something that "
            "is no file is there; put the file itself there"
        )
    return f"another file is at {outcome.video} already; --replace overwrites it"
