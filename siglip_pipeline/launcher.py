"""`siglip-pipeline up`: the database, Dagster's code server, webserver and daemon, and the page.

The children stay in this process's group. Leaving the context stops them all; a run that was
interrupted is marked so that Dagster starts it again the next time.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import psutil

from siglip_pipeline.errors import LaunchError
from siglip_pipeline.settings import Settings, child_environment, process_environment
from siglip_pipeline.store.database import embedded_server, open_database
from siglip_pipeline.store.embedded import EmbeddedPostgres
from siglip_pipeline.web.binding import check_exposure, url_host

logger = logging.getLogger(__name__)

_STOP_SECONDS: Final = 3.0
_READY_SECONDS: Final = 120.0
_RESTARTS: Final = 5
_STABLE_SECONDS: Final = 600.0
"""What ran for so long before it ended has its restarts forgiven."""
_LONGEST_WAIT_SECONDS: Final = 30.0
_LOG_TAIL_LINES: Final = 15


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where what runs can be reached."""

    dagster_url: str
    page_url: str
    code_port: int
    dagster_home: Path


@dataclass(slots=True)
class _Service:
    name: str
    command: list[str]
    log_path: Path
    process: "subprocess.Popen[bytes] | None" = None
    restarts: int = field(default=0)
    started_at: float = field(default=0.0)
    due_at: float | None = field(default=None)
    """When it is to be started again, once it has ended."""

    def start(self, environment: dict[str, str], folder: Path) -> None:
        self.started_at, self.due_at = time.monotonic(), None
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


class Launcher:
    """Runs the services of one SIGLIP_HOME; use it through :func:`launch`."""

    def __init__(
        self,
        settings: Settings,
        endpoints: Endpoints,
        services: list[_Service],
        *,
        server: EmbeddedPostgres | None = None,
    ) -> None:
        self.settings = settings
        self.endpoints = endpoints
        self._services = services
        self._server = server
        self._environment = {
            **child_environment(settings),
            "DAGSTER_HOME": str(endpoints.dagster_home),
        }

    def start(self) -> None:
        """Start every service and wait until the UI answers.

        Raises:
            LaunchError: a service ended, or did not answer in time; with the end of its log.
        """
        # The daemon takes up interrupted runs as it starts, and asks for them only once: the code
        # server has to be there by then.
        code_server, *others = self._services
        self._start(code_server)
        self._wait_for(lambda: _listens(self.endpoints.code_port), "the code server")
        for service in others:
            self._start(service)
        page, ui = f"{self.endpoints.page_url}/healthz", f"{self.endpoints.dagster_url}/server_info"
        self._wait_for(lambda: _answers(page), "the search page")
        self._wait_for(lambda: _answers(ui), "the Dagster UI")

    def _start(self, service: _Service) -> None:
        service.start(self._environment, self.endpoints.dagster_home)
        _write_state(self.settings.home, self.endpoints, self._services)

    def _wait_for(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not ready():
            for service in self._services:
                if service.process is not None and service.process.poll() is not None:
                    raise LaunchError(_ended(service))
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{what} did not answer within {_READY_SECONDS:.0f} s; "
                    f"see {self._services[0].log_path.parent}"
                )
            time.sleep(0.2)

    def watch(self) -> None:
        """Restart whatever ended; call it every second or so.

        A service that ends again is waited with, longer each time: what it misses may come back.

        Raises:
            LaunchError: a service keeps ending.
            EmbeddedDatabaseError: Postgres ended, and cannot be started.
        """
        if self._server is not None and not self._server.has_process():
            logger.warning("the embedded Postgres ended (%s); starting it again", self._server.log)
            self._server.start()
        for service in self._services:
            if service.process is None or service.process.poll() is None:
                continue
            now = time.monotonic()
            if service.due_at is None:
                if now - service.started_at > _STABLE_SECONDS:
                    service.restarts = 0
                if service.restarts >= _RESTARTS:
                    raise LaunchError(
                        f"{service.name} ended {_RESTARTS + 1} times: {_ended(service)}"
                    )
                wait_seconds = min(2.0**service.restarts - 1, _LONGEST_WAIT_SECONDS)
                again = f" in {wait_seconds:.0f} s" if wait_seconds else ""
                logger.warning("%s\nstarting %s again%s", _ended(service), service.name, again)
                service.restarts += 1
                service.due_at = now + wait_seconds
            if now >= service.due_at:
                self._start(service)

    def run(self) -> None:
        """Keep the services going until a KeyboardInterrupt.

        Raises:
            LaunchError: a service keeps ending.
            KeyboardInterrupt: as it came.
        """
        while True:
            time.sleep(1)
            self.watch()

    def stop(self) -> None:
        """End every service and every run, at the latest after a few seconds."""
        processes: list[psutil.Process] = []
        for service in self._services:
            if service.process is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(service.process.pid)
                    processes += [process, *process.children(recursive=True)]
        _end(processes)
        for service in self._services:
            if service.process is not None:
                service.process.wait()
        _state_path(self.settings.home).unlink(missing_ok=True)


@contextmanager
def launch(settings: Settings) -> Iterator[Launcher]:
    """Start the database and Dagster for ``settings``; stop them on leaving.

    Raises:
        LaunchError: the port is taken, or these services run already.
        StoreError: the database cannot be used.
    """
    home = settings.home
    (home / "logs").mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_only_one(home))
        _end_leftovers(home)
        check_exposure(settings)
        _check_port(settings.host, settings.dagster_port)
        _check_port(settings.host, settings.page_port, option="--page-port or SIGLIP_PAGE_PORT")
        external = settings.database_url and settings.dagster_postgres_url
        server = None if external else embedded_server(settings)
        settings = stack.enter_context(with_databases(settings))
        with open_database(settings):
            pass  # migrations: every child finds the schema in place
        dagster_home = prepare_dagster_home(
            home, runs=settings.celery_runs if settings.executor == "celery" else None
        )
        endpoints = Endpoints(
            dagster_url=f"http://{settings.host}:{settings.dagster_port}",
            page_url=f"http://{url_host(settings.host)}:{settings.page_port}",
            code_port=free_port(),
            dagster_home=dagster_home,
        )
        launcher = Launcher(settings, endpoints, _services(settings, endpoints), server=server)
        fail_interrupted_runs(settings, dagster_home)
        stack.callback(launcher.stop)
        launcher.start()
        yield launcher


@contextmanager
def with_databases(settings: Settings) -> Iterator[Settings]:
    """Settings with both database URLs filled in; the embedded server runs where one was unset."""
    if settings.database_url and settings.dagster_postgres_url:
        yield settings
        return
    server = embedded_server(settings)
    with server.lease() as url:
        yield settings.model_copy(
            update={
                "database_url": settings.database_url or url,
                "dagster_postgres_url": settings.dagster_postgres_url or server.dagster_url(),
            }
        )


def prepare_dagster_home(home: Path, *, runs: int | None = None) -> Path:
    """``SIGLIP_HOME/dagster`` with the project's dagster.yaml in it.

    Args:
        home: ``SIGLIP_HOME``.
        runs: so many runs at once, embedding ones included: how many steps really run is up to the
            workers. None: as dagster.yaml says, for runs on this machine.
    """
    folder = home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    package = Path(__file__).parent
    # In a wheel it lies in the package, in a checkout beside it.
    source = next(
        p for p in (package / "dagster.yaml", package.parent / "dagster.yaml") if p.exists()
    )
    text = source.read_text()
    if runs is not None:
        text = re.sub(r"(max_concurrent_runs|default_limit): \d+", rf"\1: {runs}", text)
    (folder / "dagster.yaml").write_text(text)
    return folder


@dataclass(frozen=True, slots=True)
class Running:
    """What another process's `up` has written down."""

    pid: int
    dagster_url: str
    page_url: str


def running(home: Path) -> Running | None:
    """The `up` that runs in this home now, if one does."""
    try:
        state = json.loads(_state_path(home).read_text())
        process = psutil.Process(int(state["pid"]))
        if _started(process) != float(state["created"]):
            return None
        return Running(
            pid=process.pid,
            dagster_url=str(state["dagster_url"]),
            page_url=str(state["page_url"]),
        )
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None


def free_port(preferred: int | None = None, *, host: str = "127.0.0.1") -> int:
    """``preferred`` when nothing listens there, else a port that the system picks."""
    if preferred is not None:
        with contextlib.suppress(LaunchError):
            _check_port(host, preferred)
            return preferred
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def fail_interrupted_runs(settings: Settings, dagster_home: Path) -> int:
    """Mark runs whose worker died with an earlier `up` as failed, so that Dagster retries them.

    Only runs that this machine's code server started are looked at, and only while no `up` runs
    here: their workers cannot be alive.

    Returns:
        How many runs were marked.
    """
    # Dagster takes a second to import; most commands of the CLI do without it.
    from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
    from dagster._core.events import JobFailureData, RunFailureReason

    marked = 0
    with (
        process_environment(settings, DAGSTER_HOME=str(dagster_home)),
        DagsterInstance.get() as instance,
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
            instance.report_run_failed(
                run,
                "its worker ended when the services stopped; it is started again",
                JobFailureData(error=None, failure_reason=RunFailureReason.UNEXPECTED_TERMINATION),
            )
    return marked


def _worker_is_gone(tags: Mapping[str, str]) -> bool:
    """Whether the code server that started a run was on this machine and is not there any more."""
    from dagster._core.storage.tags import GRPC_INFO_TAG

    try:
        server: dict[str, Any] = json.loads(tags[GRPC_INFO_TAG])
    except (KeyError, ValueError):
        return False
    host, port = server.get("host"), server.get("port")
    if host not in ("127.0.0.1", "localhost") or port is None:
        return False
    return not _listens(int(port))


def _services(settings: Settings, endpoints: Endpoints) -> list[_Service]:
    """The services in the order in which they are started, the code server first."""
    workspace = endpoints.dagster_home / "workspace.yaml"
    workspace.write_text(
        "load_from:\n  - grpc_server:\n      host: 127.0.0.1\n"
        f"      port: {endpoints.code_port}\n      location_name: siglip_pipeline\n"
    )
    logs = settings.home / "logs"

    def service(name: str, *arguments: str) -> _Service:
        return _Service(name, [sys.executable, "-m", *arguments], logs / f"{name}.log")

    return [
        service(
            "code-server",
            *("dagster", "api", "grpc", "--module-name", "siglip_pipeline.definitions"),
            *("--host", "127.0.0.1", "--port", str(endpoints.code_port)),
            *("--location-name", "siglip_pipeline"),
        ),
        service(
            "webserver",
            *("dagster_webserver", "--workspace", str(workspace)),
            *("--host", settings.host, "--port", str(settings.dagster_port)),
        ),
        service("daemon", "dagster._daemon", "run", "--workspace", str(workspace)),
        service(
            "page",
            *("siglip_pipeline.cli", "serve"),
            *("--host", settings.host, "--port", str(settings.page_port)),
        ),
    ]


def _state_path(home: Path) -> Path:
    return home / "up.json"


def _write_state(home: Path, endpoints: Endpoints, services: list[_Service]) -> None:
    children = []
    for service in services:
        if service.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                created = _started(psutil.Process(service.process.pid))
                children.append({"pid": service.process.pid, "created": created})
    state = {
        "pid": os.getpid(),
        "created": _started(psutil.Process()),
        "dagster_url": endpoints.dagster_url,
        "page_url": endpoints.page_url,
        "page_port": int(endpoints.page_url.rpartition(":")[2]),
        "children": children,
    }
    temporary = _state_path(home).with_suffix(".tmp")
    temporary.write_text(json.dumps(state))
    temporary.replace(_state_path(home))


def _started(process: psutil.Process) -> float:
    """When a process was started, by a clock that nobody sets.

    ``create_time`` is reckoned from the wall clock: for a process that is there already it changes
    when that clock is set, and then tells two processes apart that are one.
    """
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text()
        return float(text.rpartition(")")[2].split()[19])  # starttime of proc_pid_stat(5), ticks
    except (OSError, IndexError, ValueError):  # not Linux, or gone: then this says so
        return float(process.create_time())


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the home's lock; the kernel lets go of it when this process ends, however it ends."""
    lock: IO[str]
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = running(home)
            where = f" as process {other.pid}, at {other.dagster_url}" if other else ""
            raise LaunchError(
                f"the services of SIGLIP_HOME={home} are running already{where}; stop them there, "
                "or set another SIGLIP_HOME"
            ) from error
        yield


def _end_leftovers(home: Path) -> None:
    """End children of an `up` that was killed. They are known by process id and start time."""
    try:
        children = json.loads(_state_path(home).read_text())["children"]
    except (OSError, ValueError, KeyError):
        return
    processes: list[psutil.Process] = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(child["pid"]))
            if _started(process) == float(child["created"]):
                processes += [process, *process.children(recursive=True)]
    if processes:
        logger.warning("ending %d processes that a killed `up` left behind", len(processes))
        _end(processes)


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=2)


def _check_port(host: str, port: int, *, option: str = "--port or SIGLIP_DAGSTER_PORT") -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another with "
                f"{option}"
            ) from error


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def _ended(service: _Service) -> str:
    code = service.process.returncode if service.process else None
    lines = service.log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    return f"{service.name} ended with status {code} ({service.log_path}):\n" + "\n".join(lines)
