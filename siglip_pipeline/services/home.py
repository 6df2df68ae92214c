"""Prepare what Dagster needs: databases, its dagster.yaml, no orphaned runs."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siglip_pipeline.files.private_files import private_home
from siglip_pipeline.files.replacing import replacing
from siglip_pipeline.services.instance import open_instance
from siglip_pipeline.services.ports import SOCKET_PREFIX, listens
from siglip_pipeline.settings import Settings, process_environment
from siglip_pipeline.store.database import DatabaseOptions, embedded_server


@contextmanager
def with_databases(settings: Settings) -> Iterator[Settings]:
    """Yield settings with both database URLs set; run the embedded server where one was unset."""
    if settings.database_url and settings.dagster_postgres_url:
        yield settings
        return
    server = embedded_server(DatabaseOptions.from_settings(settings))
    with server.lease() as url:
        yield settings.model_copy(
            update={
                "database_url": settings.database_url or url,
                "dagster_postgres_url": settings.dagster_postgres_url or server.dagster_url(),
            }
        )


@contextmanager
def pipeline_environment(settings: Settings) -> Iterator[Settings]:
    """Run the databases, prepare Dagster's home, and set both in this process's environment.

    Dagster and the decoding processes read their configuration from the environment.
    """
    with with_databases(settings) as complete:
        dagster_home = prepare_dagster_home(complete)
        with process_environment(complete, DAGSTER_HOME=str(dagster_home)):
            yield complete


def prepare_dagster_home(settings: Settings) -> Path:
    """Make ``SIGLIP_HOME/dagster`` with the project's dagster.yaml in it, and return it.

    With Celery it limits all runs, embedding ones included, to ``celery_runs``: the workers decide
    how many steps run.
    """
    folder = settings.home / "dagster"
    private_home(settings.home)
    folder.mkdir(mode=0o700, exist_ok=True)
    package = Path(__file__).parents[1]
    # A wheel has it in the package, a checkout beside it.
    source = next(
        p for p in (package / "dagster.yaml", package.parent / "dagster.yaml") if p.exists()
    )
    text = source.read_text()
    if settings.executor == "celery":
        limit = rf"\1: {settings.celery_runs}"
        text = re.sub(r"(max_concurrent_runs|default_limit): \d+", limit, text)
    # Runs, and workers that share a home, may be reading it.
    with replacing(folder / "dagster.yaml") as file:
        file.write(text.encode())
    return folder


def fail_interrupted_runs(settings: Settings, dagster_home: Path) -> int:
    """Mark runs whose worker died with an earlier `up` as failed, so that Dagster retries them.

    Only runs that this machine's code server started are examined, and only while no `up` runs
    here: their workers cannot be alive.

    Returns:
        How many runs were marked.

    Raises:
        DatabaseUnavailableError: there is no connection to Dagster's storage.
    """
    # Dagster takes a second to import, and most commands do not need it.
    from dagster import DagsterRunStatus, RunsFilter

    from siglip_pipeline.defs.internals import report_lost_run

    marked = 0
    with (
        process_environment(settings, DAGSTER_HOME=str(dagster_home)),
        open_instance(settings) as instance,
    ):
        statuses = [
            DagsterRunStatus.STARTING,
            DagsterRunStatus.STARTED,
            DagsterRunStatus.CANCELING,
        ]
        for run in instance.get_runs(RunsFilter(statuses=statuses)):
            if not _worker_is_gone(run.tags):
                continue
            marked += 1
            if run.status == DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, "its worker ended when the services stopped")
                continue
            report_lost_run(
                instance, run, "its worker ended when the services stopped; it is started again"
            )
    return marked


def _worker_is_gone(tags: Mapping[str, str]) -> bool:
    """Return whether the code server that started a run was on this machine and has ended."""
    from siglip_pipeline.defs.internals import GRPC_INFO_TAG

    try:
        server: dict[str, Any] = json.loads(tags[GRPC_INFO_TAG])
    except (KeyError, ValueError):
        return False
    if server.get("host") not in ("127.0.0.1", "localhost"):
        return False
    if server.get("socket"):
        path = Path(server["socket"])  # others are those of `dagster dev`
        return path.parent.name.startswith(SOCKET_PREFIX) and not listens(path)
    # An earlier version's code server listened on a port.
    return server.get("port") is not None and not listens(int(server["port"]))
