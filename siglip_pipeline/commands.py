"""What the commands do, as functions that return the documents they print with `--json`."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from siglip_pipeline import console
from siglip_pipeline.errors import EmbeddedDatabaseError, LaunchError, QueryError
from siglip_pipeline.ingest import Ingested, bring_in
from siglip_pipeline.launcher import prepare_dagster_home, running, with_databases
from siglip_pipeline.search import SearchResult, SearchService, parse_moment
from siglip_pipeline.settings import Settings
from siglip_pipeline.status import PipelineStatus, collect_status
from siglip_pipeline.store.database import (
    Database,
    embedded_server,
    migrate,
    open_database,
    where,
)
from siglip_pipeline.store.models import Coverage, ModelRow, ModelStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads import UploadStore

_POLL_SECONDS = 0.5
_TUNED = (
    *("shared_buffers", "effective_cache_size", "maintenance_work_mem", "work_mem"),
    *("wal_level", "wal_buffers", "min_wal_size", "max_wal_size", "checkpoint_timeout"),
    *("max_connections", "max_parallel_workers", "max_parallel_maintenance_workers", "jit"),
)


def pipeline_status(settings: Settings) -> PipelineStatus:
    """The state of everything, as `status` shows it."""
    with open_database(settings) as database:
        return collect_status(database, settings)


def search_moments(
    settings: Settings, *, text: str | None, image: Path | None, like: str | None, k: int
) -> SearchResult:
    """One search; exactly one of ``text``, ``image`` and ``like`` is given.

    Raises:
        SearchError: the query is wrong, or nothing is indexed.
    """
    with open_database(settings) as database:
        service = SearchService(database, settings)
        if text is not None:
            return service.by_text(text, k=k)
        if image is not None:
            return service.by_image(image, k=k)
        video, seconds = parse_moment(like or "")
        return service.by_moment(video, seconds, k=k)


def ingest_videos(
    settings: Settings, paths: Sequence[Path], *, wait: bool, replace: bool, quiet: bool
) -> dict[str, Any]:
    """Copy files into the uploads; with ``wait``, see them through.

    Returns:
        ``{"ingested": [...], "skipped": [{"source", "reason"}], "indexed": [...], "failed":
        [{"video", "stage", "reason"}]}``
    """
    if "://" not in settings.uploads:
        Path(settings.uploads).mkdir(parents=True, exist_ok=True)
    uploads = UploadStore(settings.uploads, settle_seconds=0)
    outcomes = []
    for outcome in bring_in(paths, uploads, replace=replace):
        outcomes.append(outcome)
        if not quiet:
            console.err.print(f"{outcome.outcome:>9}  {outcome.video}", highlight=False)
    videos = sorted({outcome.video for outcome in outcomes if outcome.is_upload})
    document: dict[str, Any] = {
        "ingested": videos,
        "skipped": [
            {"source": outcome.source, "reason": _skip_reason(outcome)}
            for outcome in outcomes
            if not outcome.is_upload
        ],
        "indexed": [],
        "failed": [],
    }
    if not quiet:
        for skipped in document["skipped"]:
            console.err.print(f"skipped {skipped['source']}: {skipped['reason']}", style="yellow")
    if wait and videos:
        document.update(_see_through(settings, videos, quiet=quiet))
    elif videos and not quiet and running(settings.home) is None:
        console.err.print("`siglip-pipeline up` indexes them; or run this again with --wait.")
    return document


def materialize_uploads(
    settings: Settings,
    videos: Sequence[str],
    *,
    all_missing: bool,
    failed: bool,
    force: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Index the chosen uploads in this process.

    Returns:
        ``{"videos": [...], "indexed": [...], "failed": [{"video", "stage", "reason"}]}``

    Raises:
        QueryError: nothing was chosen.
        LaunchError: `up` runs in this home and does this by itself.
    """
    other = running(settings.home)
    if other is not None:
        raise LaunchError(
            f"`siglip-pipeline up` runs here (process {other.pid}): start a backfill at "
            f"{other.dagster_url}/assets, or stop it first"
        )
    chosen = set(videos)
    with open_database(settings) as database:
        states = {row.video: row.state for row in VideoStore(database).list()}
    if all_missing:
        listing = UploadStore(settings.uploads, settle_seconds=0).list()
        chosen |= {u.path for u in listing if states.get(u.path) not in ("indexed", "failed")}
    if failed:
        chosen |= {path for path, state in states.items() if state == "failed"}
    if not (videos or all_missing or failed):
        raise QueryError("name uploads, or use --all-missing or --failed")
    document: dict[str, Any] = {"videos": sorted(chosen), "indexed": [], "failed": []}
    if chosen:
        document.update(_see_through(settings, sorted(chosen), quiet=quiet, force=force))
    return document


def _see_through(
    settings: Settings, videos: Sequence[str], *, quiet: bool, force: bool = False
) -> dict[str, Any]:
    """Wait for the running services to index the videos, or do it here; then say what became."""
    # Dagster takes a second to import; searching and status do without it.
    from siglip_pipeline.materialize import materialize_videos, pipeline_environment

    if running(settings.home) is not None:
        with open_database(settings) as database:
            watch_until(
                database, settings, len(videos), lambda: _settled(database, videos), quiet=quiet
            )
            return _outcome(database, videos)
    with pipeline_environment(settings) as complete, open_database(complete) as database:
        work = _InBackground(lambda: materialize_videos(complete, videos, force=force))
        watch_until(database, complete, len(videos), work.is_done, quiet=quiet)
        work.finish()
        return _outcome(database, videos)


def watch_until(
    database: Database,
    settings: Settings,
    expected: int,
    done: Callable[[], bool],
    *,
    quiet: bool,
    tick: Callable[[], None] = lambda: None,
) -> PipelineStatus:
    """Show live progress until ``done``; ``tick`` is called at every look."""
    progress = console.PipelineProgress()
    with nullcontext() if quiet else progress:
        while True:
            finished = done()
            status = collect_status(database, settings)
            if not quiet:
                progress.show(status, max(expected, status.total))
            if finished:
                return status
            tick()
            time.sleep(_POLL_SECONDS)


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

    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def finish(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def _settled(database: Database, videos: Sequence[str]) -> bool:
    states = {row.video: row.state for row in VideoStore(database).list()}
    return all(states.get(video) in ("indexed", "failed") for video in videos)


def _outcome(database: Database, videos: Sequence[str]) -> dict[str, Any]:
    rows = {row.video: row for row in VideoStore(database).list()}
    chosen = [rows[video] for video in videos if video in rows]
    return {
        "indexed": [row.video for row in chosen if row.state == "indexed"],
        "failed": [
            {"video": row.video, "stage": row.stage, "reason": row.reason}
            for row in chosen
            if row.state == "failed"
        ],
    }


def _skip_reason(outcome: Ingested) -> str:
    if outcome.outcome == "missing":
        return "no such file or folder"
    return f"another file is at {outcome.video} already; --replace overwrites it"


def list_models(settings: Settings) -> dict[str, Any]:
    """Every model with its coverage, oldest first."""
    with open_database(settings) as database:
        models = ModelStore(database)
        return {
            "models": [_model_json(row, models.coverage(row.model_id)) for row in models.list()]
        }


def _model_json(row: ModelRow, coverage: Coverage) -> dict[str, Any]:
    return {
        "name": row.name,
        "revision": row.revision,
        "key": row.key,
        "dim": row.dim,
        "active": row.is_active,
        "generation": row.active_generation,
        "embedded": coverage.embedded,
        "missing": coverage.missing,
        "failed": coverage.failed,
        "vectors": coverage.frames,
    }


def promote_model(settings: Settings, key: str, *, force: bool) -> dict[str, Any]:
    """Make searches use a model."""
    with open_database(settings) as database:
        row = ModelStore(database).promote(key, force=force)
        return {"key": row.key, "name": row.name, "active": True}


def drop_model(settings: Settings, key: str) -> dict[str, Any]:
    """Delete a model's vectors."""
    with open_database(settings) as database:
        ModelStore(database).drop(key)
        return {"key": key, "dropped": True}


def migrate_database(settings: Settings) -> dict[str, Any]:
    """Apply what is missing of the schema."""
    with open_database(settings, migrate=False) as database:
        return {"applied": migrate(database)}


def database_urls(settings: Settings, *, start: bool) -> dict[str, str]:
    """The URLs of both databases; the embedded server is started for good when asked to.

    Raises:
        EmbeddedDatabaseError: the embedded server does not run.
    """
    server = embedded_server(settings)
    external = settings.database_url and settings.dagster_postgres_url
    if start and not external:
        server.keep()
    if not external and not server.is_running():
        raise EmbeddedDatabaseError(
            f"the embedded database of {settings.home} is not running; "
            "`siglip-pipeline db start` starts it"
        )
    return {
        "database_url": settings.database_url or server.url(),
        "dagster_postgres_url": settings.dagster_postgres_url or server.dagster_url(),
    }


def database_status(settings: Settings) -> dict[str, Any]:
    """Where the database is, what it runs, how it is tuned, how large it is.

    Returns:
        ``{"where", "embedded", "postgres", "pgvector", "size_bytes", "settings": {name: value}}``
    """
    with open_database(settings) as database, database.connection() as connection:
        version, size_bytes = connection.execute(
            "SELECT current_setting('server_version'), pg_database_size(current_database())"
        ).fetchone() or ("", 0)
        tuned = connection.execute(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)"
            " ORDER BY name",
            [list(_TUNED)],
        ).fetchall()
        return {
            "where": where(database.url),
            "embedded": settings.database_url is None,
            "postgres": version,
            "pgvector": ".".join(map(str, database.pgvector_version)),
            "size_bytes": size_bytes,
            "settings": dict(tuned),
        }


def stop_database(settings: Settings, *, force: bool) -> dict[str, Any]:
    """Stop the embedded server."""
    return {"stopped": embedded_server(settings).stop(force=force)}


def dagster_environment(settings: Settings) -> dict[str, str]:
    """What a shell needs for `dagster dev`: databases started, every setting pinned."""
    urls = database_urls(settings, start=True)
    complete = settings.model_copy(update=urls)
    with with_databases(complete) as final, open_database(final):
        pass
    return {
        **complete.environment(),
        "DAGSTER_HOME": str(prepare_dagster_home(settings.home)),
    }
