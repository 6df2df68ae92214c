"""Each service of `siglip-pipeline up` is killed in turn while videos arrive."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from siglip_pipeline.embedded_postgres import postmaster
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.faults.conftest import Reference
from siglip_pipeline_tests.faults.harness import FILMS, Stored, read_stored, settings_for
from siglip_pipeline_tests.processes import command_of
from siglip_pipeline_tests.runs.test_daemon import Services
from siglip_pipeline_tests.services.test_up import Up, _up

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

SERVICES = {
    "webserver": "dagster-ui",
    "page": "serve",
    "daemon": "dagster._daemon",
    "code-server": "siglip_pipeline.services.code_server",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "uploads").mkdir()
    return settings_for(
        tmp_path,
        tmp_path / "uploads",
        dagster_port=free_port(),
        page_port=free_port(),
        uploads_settle_seconds=0.2,
        remove_deleted=False,
    )


def arrive(films: Path, settings: Settings, *names: str) -> None:
    """As a copying tool does it: under another name first."""
    for name in names:
        target = Path(settings.uploads) / name
        target.parent.mkdir(exist_ok=True)
        draft = target.with_name(f".{target.name}.part")
        shutil.copyfile(films / name, draft)
        draft.replace(target)


def processes(up: Up, word: str) -> list[psutil.Process]:
    """Live processes of `up` with this word on their command line."""
    return [process for process in up.family() if word in command_of(process).split()]


def runs(up: Up) -> list[psutil.Process]:
    """Processes of runs: forked, each with the command line of the process it is forked from."""
    found = []
    for process in up.family():
        try:
            parent = process.parent()
            if parent is not None and _is_fork_server(process) and _is_fork_server(parent):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _is_fork_server(process: psutil.Process) -> bool:
    return "multiprocessing.forkserver" in command_of(process)


def replaced(up: Up, word: str, pid: int) -> bool:
    """Whether another process has this word on its command line."""
    return any(process.pid != pid for process in processes(up, word))


def kill_service(services: Services, name: str) -> None:
    """End a service; `up` says so and starts it again."""
    up = services.up
    (victim,) = processes(up, SERVICES[name])
    victim.kill()
    services.wait(partial(replaced, up, SERVICES[name], victim.pid))
    assert f"{name} ended with status -9: starting it again" in up.log.read_text()


def everything(settings: Settings) -> Stored:
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        return read_stored(database, FrameStore(settings.frame_store_url))


def test_every_process_of_up_is_killed_and_nothing_is_lost(
    settings: Settings, films: Path, tmp_path: Path, reference: Reference
) -> None:
    names = list(FILMS)
    log = tmp_path / "up.log"
    with _up(settings, log) as up:
        services = Services(up)
        arrive(films, settings, names[0], names[1])
        (worker,) = services.wait(lambda: runs(up)[:1])
        worker.kill()
        for name in ("webserver", "page", "daemon"):
            kill_service(services, name)
        services.wait(lambda: services.settled(indexed=2), seconds=400)
        # Now that nothing runs: Dagster tries a lost run again once, and needs this one for it.
        kill_service(services, "code-server")
        arrive(films, settings, names[2])
        services.wait(lambda: runs(up))
        server = EmbeddedPostgres(settings.home)
        running = postmaster.find(server.data)
        assert running is not None
        psutil.Process(running.pid).send_signal(signal.SIGKILL)
        services.wait(lambda: "the embedded Postgres ended" in log.read_text())
        arrive(films, settings, names[3])
        services.wait(lambda: server.is_running())
        services.wait(lambda: services.settled(indexed=len(FILMS)), seconds=600)
        services.wait(lambda: up.status()["index"]["rows"] == len(reference.stored.vectors))
        assert everything(settings) == reference.stored
        assert up.interrupt() < 15


@contextmanager
def _second_daemon(settings: Settings, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """What happens when somebody also runs `dagster-daemon run` on the same instance."""
    home = settings.home / "dagster"
    server = EmbeddedPostgres(settings.home)
    complete = settings.model_copy(
        update={"database_url": server.url(), "dagster_postgres_url": server.dagster_url()}
    )
    with log.open("ab") as output:
        daemon = subprocess.Popen(
            [
                *(sys.executable, "-m", "dagster._daemon", "run"),
                *("--workspace", str(home / "workspace.yaml")),
            ],
            env={**child_environment(complete), "DAGSTER_HOME": str(home)},
            cwd=home,
            stdout=output,
            stderr=output,
        )
    try:
        yield daemon
    finally:
        daemon.terminate()
        daemon.wait(60)


def test_two_daemons_by_mistake_do_everything_once(
    settings: Settings, films: Path, tmp_path: Path, reference: Reference
) -> None:
    log = tmp_path / "second.log"
    with _up(settings, tmp_path / "up.log") as up, _second_daemon(settings, log) as daemon:
        services = Services(up)
        services.wait(lambda: "Instance is configured with" in log.read_text())
        arrive(films, settings, *list(FILMS)[:2])
        services.wait(lambda: services.settled(indexed=2), seconds=400)
        arrive(films, settings, *list(FILMS)[2:])
        services.wait(lambda: services.settled(indexed=len(FILMS)), seconds=400)
        services.wait(lambda: up.status()["index"]["rows"] == len(reference.stored.vectors))
        services.wait(lambda: not runs(up))
        assert daemon.poll() is None
        said = log.read_text() + (settings.home / "logs" / "daemon.log").read_text()
        assert "Another" in said, said[-3000:]
        assert everything(settings) == reference.stored
