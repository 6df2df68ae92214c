"""The command line: `siglip-pipeline …`.

Exit codes: 0 done; 1 done, but some videos failed; 2 could not run, with the reason on stderr.
A command that ends by itself takes `--json` and then prints exactly one JSON document on stdout,
also when it could not run.
"""

import atexit
import contextlib
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from siglip_pipeline import __version__
from siglip_pipeline.cli import quality as quality_cli
from siglip_pipeline.cli import search as search_cli
from siglip_pipeline.cli import store as store_cli
from siglip_pipeline.cli import watch as watch_cli
from siglip_pipeline.cli.common import Json
from siglip_pipeline.cli.common import load_settings as _settings
from siglip_pipeline.cli.completion import complete_video
from siglip_pipeline.cli.interrupts import INTERRUPTED, end_after_interrupt, ending_soon
from siglip_pipeline.errors import NO_ROOM, SettingsError, SiglipPipelineError
from siglip_pipeline.files.private_files import keep_files_private, make_folders
from siglip_pipeline.services.signals import heed_interrupts
from siglip_pipeline.settings import Settings, bypass_proxies_on_this_machine, restart_in_utf8_mode
from siglip_pipeline.terminal import console

app = typer.Typer(
    name="siglip-pipeline",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Search videos by content. Drop files into the uploads folder; each is sampled, embedded "
        "with SigLIP 2, stored in Postgres with pgvector, and found again by text, by picture or "
        "by another moment.\n\n"
        "Settings come from the environment (SIGLIP_UPLOADS, SIGLIP_HOME, SIGLIP_MODEL_NAME, …); "
        "docs/settings.md lists them."
    ),
)
store_cli.register(app)
search_cli.register(app)
quality_cli.register(app)
watch_cli.register(app)


def _show_version(asked: bool) -> None:
    if asked:
        console.out.print(f"siglip-pipeline {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            is_eager=True,
            callback=_show_version,
        ),
    ] = False,
) -> None: ...


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(help="Port of the Dagster UI. Default: SIGLIP_DAGSTER_PORT.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address of the search page; Dagster's is SIGLIP_DAGSTER_HOST. "
            "Default: SIGLIP_HOST."
        ),
    ] = None,
    page_port: Annotated[
        int | None, typer.Option(help="Port of the search page. Default: SIGLIP_PAGE_PORT.")
    ] = None,
) -> None:
    """Run everything: database, Dagster UI and daemon, search page, sensors on. Ctrl-C stops it.

    New files in SIGLIP_UPLOADS are found and indexed automatically.
    """
    from siglip_pipeline.services.up import launch
    from siglip_pipeline.video.sandbox import sandbox_report

    settings = _settings(dagster_port=port, host=host, page_port=page_port)
    _make_uploads_folder(settings)
    console.err.print("Starting the database and Dagster …")
    with _terminating(), contextlib.suppress(KeyboardInterrupt), launch(settings) as launcher:
        console.err.print(f"  search page    {launcher.endpoints.page_url}")
        console.err.print(f"  Dagster UI     {launcher.endpoints.dagster_url}")
        console.err.print(f"  uploads        {settings.uploads}")
        console.err.print(f"  home           {settings.home}")
        console.err.print(f"  logs           {settings.home / 'logs'}")
        console.err.print(f"  model          {settings.model_name}")
        console.err.print(f"  decoding       held by {sandbox_report()}")
        console.err.print("Running. Put videos into the uploads folder; Ctrl-C stops everything.")
        launcher.run()
    console.err.print("Stopped. `siglip-pipeline up` continues the work.")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind. Default: SIGLIP_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port. Default: SIGLIP_PAGE_PORT.")] = None,
    load_model: Annotated[
        bool, typer.Option("--load-model", help="Load the text tower at once, not when needed.")
    ] = False,
    json_: Json = False,
) -> None:
    """Answer searches over HTTP, with a page for people; `up` starts this too.

    Other addresses than loopback need a key: set SIGLIP_API_KEY. docs/http.md has the API.
    """
    from siglip_pipeline.web.serve import serve as serve_http

    settings = _settings(host=host, page_port=port, load_model_at_start=load_model or None)

    def ready(url: str) -> None:
        if json_:
            console.print_json({"url": url})
            sys.stdout.flush()
        else:
            console.err.print(f"The search page is at {url}; Ctrl-C stops it.")

    with _terminating(), contextlib.suppress(KeyboardInterrupt):
        serve_http(settings, ready=ready)


@app.command()
def mcp() -> None:
    """Answer the Model Context Protocol on stdin and stdout, for assistants on this machine.

    Its tools search and look at frames; they only read. `serve` answers the same at /mcp.
    """
    from siglip_pipeline.web.serve import serve_mcp

    with _terminating(), contextlib.suppress(KeyboardInterrupt):
        serve_mcp(_settings())


@app.command()
def demo(
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Leave everything running until Ctrl-C.")
    ] = False,
    json_: Json = False,
) -> None:
    """Render sample videos, index them under Dagster, and search them: the main job in minutes.

    Uses a tiny model that ships with the package, and a home of its own (.siglip/demo).
    """
    from siglip_pipeline.demo.run import run_demo

    with _terminating():
        document = run_demo(_settings(), keep_running=keep_running, quiet=json_)
    if json_:
        console.print_json(document)
    raise typer.Exit(0 if document.correct == document.queries else 1)


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Video files, or folders of them.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when each is searchable or has failed.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite a different upload of the same name.")
    ] = False,
    json_: Json = False,
) -> None:
    """Copy videos into the uploads, and with --wait index them.

    If `siglip-pipeline up` runs, its sensor finds them; otherwise --wait indexes them in this
    process.
    """
    from siglip_pipeline.cli.indexing import ingest_videos

    document = ingest_videos(_settings(), paths, wait=wait, replace=replace, quiet=json_)
    if json_:
        console.print_json(document)
    raise typer.Exit(1 if document.failed or document.skipped else 0)


@app.command()
def materialize(
    more_videos: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VIDEO]...", help="As --videos.", autocompletion=complete_video),
    ] = None,
    videos: Annotated[
        list[str] | None,
        typer.Option(
            help="Uploads to index: paths below SIGLIP_UPLOADS.", autocompletion=complete_video
        ),
    ] = None,
    all_missing: Annotated[
        bool, typer.Option("--all-missing", help="Every upload that is not searchable yet.")
    ] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Every upload that failed.")] = False,
    stale: Annotated[
        bool,
        typer.Option(
            "--stale", help="Every video whose frames or vectors are of other settings than now."
        ),
    ] = False,
    assets: Annotated[
        list[str] | None,
        typer.Option(help="Only this asset, e.g. frame_embeddings; may be repeated."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Do the work even where the result is current.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the end, and show progress.")
    ] = True,
    dagster_url: Annotated[
        str | None,
        typer.Option(help="A running Dagster's address. Default: the `up` of SIGLIP_HOME."),
    ] = None,
    json_: Json = False,
) -> None:
    """Index uploads now: for CI and scripts.

    Starts runs, or for many videos a backfill, in a running Dagster (`siglip-pipeline up`, or
    --dagster-url); without one, does the work in this process. A running Dagster compares the
    videos (video_similarity) later, by its automation. Skips and names videos of --failed and
    --stale whose uploads are gone. Exits 1 when a video failed or was skipped, 2 when nothing could
    be run.
    """
    from siglip_pipeline.cli.indexing import Choice, materialize_uploads

    document = materialize_uploads(
        _settings(),
        Choice(
            videos=[*(videos or []), *(more_videos or [])],
            all_missing=all_missing,
            failed=failed,
            stale=stale,
        ),
        assets=assets or [],
        force=force,
        wait=wait,
        dagster_url=dagster_url,
        quiet=json_,
    )
    if json_:
        console.print_json(document)
    raise typer.Exit(1 if document.failed or document.skipped else 0)


@app.command()
def dagster_ui(
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", help="File that names the code locations.")
    ] = Path("workspace.yaml"),
) -> None:
    """Serve the Dagster UI of DAGSTER_HOME behind SIGLIP_API_KEY; `up` starts this too.

    Use it instead of `dagster-webserver`, which asks for no key and lets pages of any site start
    and delete runs. Listens on SIGLIP_DAGSTER_HOST and SIGLIP_DAGSTER_PORT.
    """
    from siglip_pipeline.web.dagster_ui import serve_dagster

    with _terminating(), contextlib.suppress(KeyboardInterrupt):
        serve_dagster(_settings(), workspace)


@app.command()
def worker(
    queue: Annotated[
        list[str] | None,
        typer.Option(
            help="Queue to take steps from, dagster or siglip; may be repeated. Default: dagster."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in logs, before @host.")] = None,
) -> None:
    """Take steps from a Celery queue and run them here; one process, one step at a time.

    `--queue siglip` on machines with a GPU (one worker per GPU; the model stays loaded), `--queue
    dagster` on machines that decode. Needs SIGLIP_CELERY_BROKER_URL. SIGTERM ends it and returns
    the current step to the queue; finished videos of the step are not repeated.
    """
    try:
        import celery  # noqa: F401
        import dagster_celery  # noqa: F401
    except ImportError as error:
        from siglip_pipeline.defs.queues import INSTALL
        from siglip_pipeline.errors import LaunchError

        raise LaunchError(f"workers need Celery, which is not installed: {INSTALL}") from error
    from siglip_pipeline.defs.queues import DEFAULT_QUEUE, EMBEDDING_QUEUE
    from siglip_pipeline.workers.celery_worker import run_worker

    for name_of_queue in queue or ():
        if name_of_queue not in (DEFAULT_QUEUE, EMBEDDING_QUEUE):
            raise typer.BadParameter(
                f"--queue {name_of_queue}: no step goes there. Steps go to {DEFAULT_QUEUE} and "
                f"{EMBEDDING_QUEUE}; for both give --queue twice"
            )
    raise typer.Exit(run_worker(_settings(), queue or [DEFAULT_QUEUE], name=name))


@app.command()
def status(json_: Json = False) -> None:
    """Show what is searchable, what failed and why, and what is pending."""
    from siglip_pipeline.stages.status import StatusOptions, collect_status
    from siglip_pipeline.store.database import DatabaseOptions, open_database

    settings = _settings()
    with open_database(DatabaseOptions.from_settings(settings), vectors=False) as database:
        report = collect_status(database, StatusOptions.from_settings(settings))
        if report.pending:
            from siglip_pipeline.runs.waiting import with_reasons

            report = with_reasons(report, database, settings)
    if json_:
        console.print_json(report.document())
    else:
        console.out.print(console.status_table(report))


def main() -> None:
    """Run a command; turn an error of this package into one message and exit code 2."""
    if sys.stdout is None:  # `>&-`: the next file that is opened would take its place
        console.err.print("error: stdout is closed; redirect it, e.g. with > /dev/null")
        sys.exit(2)
    restart_in_utf8_mode()
    heed_interrupts()
    keep_files_private()
    bypass_proxies_on_this_machine()
    # Or imports spend a sixth of their CPU time on the search for garbage among what stays: torch,
    # transformers and Dagster are half a million objects.
    gc.set_threshold(10_000)
    # Or the interpreter looks for garbage as it ends: seconds where torch and Dagster are loaded.
    atexit.register(gc.freeze)
    try:
        with ending_soon():
            app()
    except SiglipPipelineError as error:
        _tell(type(error).__name__, str(error))
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        place = f" for {error.filename}" if error.filename else ""
        _tell(
            "NoRoomError",
            f"no room left{place} ({error.strerror}); free some on that disk, or set SIGLIP_HOME "
            "to another one",
        )
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as ended:
        if (wrong := getattr(ended.__context__, "format_message", None)) is not None:
            _print_error("UsageError", wrong())  # Typer has shown it to people
        # Typer makes the one of the other.
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        end_after_interrupt()


def _tell(kind: str, message: str) -> None:
    _print_error(kind, message)
    console.err.print("error:", style="red", end=" ")
    console.err.print(message)


def _print_error(kind: str, message: str) -> None:
    """Print the document of a command that could not run, if `--json` asks for one."""
    arguments = sys.argv[1:]
    if "--" in arguments:  # what follows is text
        arguments = arguments[: arguments.index("--")]
    if "--json" in arguments:
        console.print_json({"error": {"type": kind, "message": message}})


def _make_uploads_folder(settings: Settings) -> None:
    if (folder := settings.uploads.folder) is None:
        return
    try:
        make_folders(folder / (settings.part or ""))
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise SettingsError(
            f"SIGLIP_UPLOADS={settings.uploads} cannot be made ({error.strerror}); name a folder "
            "below one that you may write to"
        ) from error
    if not folder.is_dir():
        raise SettingsError(
            f"SIGLIP_UPLOADS={settings.uploads} is no folder; name the one around it"
        )


@contextmanager
def _terminating() -> Iterator[None]:
    """Unwind at the first SIGINT or SIGTERM; ignore further ones during the clean-up."""
    import signal

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
