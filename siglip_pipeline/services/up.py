"""`siglip-pipeline up`: the database, Dagster's code server, webserver and daemon, and the page.

The children stay in this process's group. Leaving the context stops them all; a run that was
interrupted is marked so that Dagster starts it again the next time.
"""

import contextlib
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.errors import DatabaseUnavailableError, LaunchError
from siglip_pipeline.files.log_rotation import shorten
from siglip_pipeline.files.private_files import private_home
from siglip_pipeline.services.binding import check_exposure
from siglip_pipeline.services.clock import ClockWatch, reset_future_times
from siglip_pipeline.services.home import (
    fail_interrupted_runs,
    prepare_dagster_home,
    with_databases,
)
from siglip_pipeline.services.ports import answers, check_port, listens, socket_folder
from siglip_pipeline.services.state import (
    end_leftovers,
    end_processes,
    forget_state,
    only_one,
    write_state,
)
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.store.database import DatabaseOptions, embedded_server, open_database
from siglip_pipeline.text.in_words import duration_in_words
from siglip_pipeline.text.url_host import url_host
from siglip_pipeline.video.sandbox import sandbox_warning

logger = logging.getLogger(__name__)

_READY_SECONDS: Final = 120.0
_RESTARTS: Final = 5
_STABLE_SECONDS: Final = 600.0
"""A service that ran this long before it ended starts again with a restart count of 0."""
_LONGEST_WAIT_SECONDS: Final = 30.0
_REAP_SECONDS: Final = 5.0
_LOG_TAIL_LINES: Final = 15
_LINES_SHOWN: Final = 3
"""Log lines shown of a service that is restarted. If `up` gives up, it shows all of the tail."""
_LINE_WIDTH: Final = 300
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses of the running services."""

    dagster_url: str
    page_url: str
    code_socket: Path
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
    """Time of the restart, once it has ended."""

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
        self._clock = ClockWatch()
        self._environment = {
            **child_environment(settings),
            "DAGSTER_HOME": str(endpoints.dagster_home),
        }

    def start(self) -> None:
        """Start every service and wait until the UI answers.

        Raises:
            LaunchError: a service ended, or did not answer in time; with the end of its log.
        """
        # The daemon resumes interrupted runs when it starts, and tries only once: the code
        # server must answer by then.
        code_server, *others = self._services
        self._start(code_server)
        self._wait_for(lambda: listens(self.endpoints.code_socket), "the code server")
        for service in others:
            self._start(service)
        page, ui = f"{self.endpoints.page_url}/healthz", f"{self.endpoints.dagster_url}/server_info"
        self._wait_for(lambda: answers(page), "the search page")
        key = self.settings.api_key
        self._wait_for(lambda: answers(ui, api_key=key), "the Dagster UI")

    def _start(self, service: _Service) -> None:
        service.start(self._environment, self.endpoints.dagster_home)
        write_state(
            self.settings.home,
            dagster_url=self.endpoints.dagster_url,
            page_url=self.endpoints.page_url,
            children=[s.process.pid for s in self._services if s.process is not None],
            sockets=self.endpoints.code_socket.parent,
        )

    def _wait_for(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not ready():
            for service in self._services:
                if service.process is not None and service.process.poll() is not None:
                    raise LaunchError(_ended(service))
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{what} did not answer within {duration_in_words(_READY_SECONDS)}; "
                    f"see {self._services[0].log_path.parent}"
                )
            time.sleep(0.2)

    def watch(self) -> None:
        """Restart services that ended, and rotate long logs; call it about every second.

        Each further restart of a service waits longer: what it depends on may recover.

        Raises:
            LaunchError: a service keeps ending.
            EmbeddedDatabaseError: Postgres ended, and cannot be started.
        """
        if self._server is not None and not self._server.has_process():
            logger.warning("the embedded Postgres ended (%s); starting it again", self._server.log)
            self._server.start()
        if self._server is not None:
            self._server.shorten_log()
        if seconds := self._clock.set_back_seconds():
            self._start_daemon_anew(seconds)
        for service in self._services:
            shorten(service.log_path)
            if service.process is not None and service.process.poll() is not None:
                self._restart(service)

    def _restart(self, service: _Service) -> None:
        """Restart a service that ended, once its waiting time is over."""
        now = time.monotonic()
        if service.due_at is None:
            service.due_at = now + self._wait_seconds(service, now)
        if now >= service.due_at:
            self._start(service)

    def _wait_seconds(self, service: _Service, now: float) -> float:
        """Log the end of a service, and return how long to wait before its restart.

        Raises:
            LaunchError: it keeps ending.
        """
        assert service.process is not None
        if now - service.started_at > _STABLE_SECONDS:
            service.restarts = 0
        if service.restarts >= _RESTARTS:
            raise LaunchError(f"{service.name} ended {_RESTARTS + 1} times: {_ended(service)}")
        wait_seconds = min(2.0**service.restarts - 1, _LONGEST_WAIT_SECONDS)
        again = f" in {duration_in_words(wait_seconds)}" if wait_seconds else ""
        code = service.process.returncode
        logger.warning("%s ended with status %d: starting it again%s", service.name, code, again)
        for line in _log_tail(service)[-_LINES_SHOWN:]:
            logger.warning("%s: %s", service.log_path, line)
        service.restarts += 1
        return wait_seconds

    def _start_daemon_anew(self, seconds: float) -> None:
        (daemon,) = (service for service in self._services if service.name == "daemon")
        if daemon.process is not None:
            logger.warning("the clock was set back by %.0f s; starting the daemon again", seconds)
            end_processes([psutil.Process(daemon.process.pid)])
            _reap(daemon.process)
            daemon.process = None
        try:
            reset_future_times(self.settings, self.endpoints.dagster_home)
        except DatabaseUnavailableError as error:
            logger.warning("%s", error)
            return
        self._clock.heeded()
        self._start(daemon)

    def run(self) -> None:
        """Keep the services running until a KeyboardInterrupt.

        Raises:
            LaunchError: a service keeps ending.
            KeyboardInterrupt: as it came.
        """
        while True:
            time.sleep(1)
            self.watch()

    def stop(self) -> None:
        """Stop every service and every run within a few seconds."""
        processes: list[psutil.Process] = []
        for service in self._services:
            if service.process is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(service.process.pid)
                    processes += [process, *process.children(recursive=True)]
        end_processes(processes)
        for service in self._services:
            if service.process is not None:
                _reap(service.process)
        forget_state(self.settings.home)


@contextmanager
def launch(settings: Settings) -> Iterator[Launcher]:
    """Start the database and Dagster for ``settings``; stop them on leaving.

    Raises:
        LaunchError: the port is taken, or these services run already.
        SettingsError: Dagster could not load the definitions with these settings.
        StoreError: the database cannot be used.
    """
    home = settings.home
    private_home(home)
    (home / "logs").mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(only_one(home))
        end_leftovers(home)
        check_exposure(settings)
        option = "--port or SIGLIP_DAGSTER_PORT"
        check_port(settings.dagster_host, settings.dagster_port, option=option)
        check_port(settings.host, settings.page_port, option="--page-port or SIGLIP_PAGE_PORT")
        external = settings.database_url and settings.dagster_postgres_url
        server = None if external else embedded_server(DatabaseOptions.from_settings(settings))
        settings = stack.enter_context(with_databases(settings))
        _check_definitions(settings)
        if (warning := sandbox_warning()) is not None:
            logger.warning("%s", warning)
        with open_database(DatabaseOptions.from_settings(settings)):
            pass  # migrations: every child finds the schema in place
        dagster_home = prepare_dagster_home(settings)
        endpoints = Endpoints(
            dagster_url=f"http://{url_host(settings.dagster_host)}:{settings.dagster_port}",
            page_url=f"http://{url_host(settings.host)}:{settings.page_port}",
            code_socket=stack.enter_context(socket_folder()) / "code-server",
            dagster_home=dagster_home,
        )
        launcher = Launcher(settings, endpoints, _services(settings, endpoints), server=server)
        fail_interrupted_runs(settings, dagster_home)
        reset_future_times(settings, dagster_home)
        stack.callback(launcher.stop)
        launcher.start()
        yield launcher


def _check_definitions(settings: Settings) -> None:
    """Read the settings that the definitions are made of: the code server's log is a traceback.

    Raises:
        SettingsError: with the remedy.
    """
    from siglip_pipeline.defs.executors import executor_for  # Dagster takes a second to import

    FramesOptions.from_settings(settings)
    executor_for(settings)


def _services(settings: Settings, endpoints: Endpoints) -> list[_Service]:
    """Return the services in the order of their start, the code server first."""
    workspace = endpoints.dagster_home / "workspace.yaml"
    workspace.write_text(
        f"load_from:\n  - grpc_server:\n      socket: {endpoints.code_socket}\n"
        "      location_name: siglip_pipeline\n"
    )
    logs = settings.home / "logs"

    def service(name: str, *arguments: str) -> _Service:
        return _Service(name, [sys.executable, "-m", *arguments], logs / f"{name}.log")

    return [
        service(
            "code-server",
            *_code_server(settings),
            *("--module-name", "siglip_pipeline.definitions"),
            *("--socket", str(endpoints.code_socket)),
            *("--location-name", "siglip_pipeline"),
        ),
        service(
            "webserver", "siglip_pipeline.cli.main", "dagster-ui", "--workspace", str(workspace)
        ),
        service("daemon", "dagster._daemon", "run", "--workspace", str(workspace)),
        service(
            "page",
            *("siglip_pipeline.cli.main", "serve"),
            *("--host", settings.host, "--port", str(settings.page_port)),
        ),
    ]


def _reap(process: "subprocess.Popen[bytes]") -> None:
    """Reap a process that was killed."""
    try:
        process.wait(timeout=_REAP_SECONDS)
    except subprocess.TimeoutExpired:
        logger.warning("process %d was killed and hangs in the kernel; left as it is", process.pid)


def _ended(service: _Service) -> str:
    code = service.process.returncode if service.process else None
    lines = "\n".join(_log_tail(service))
    return f"{service.name} ended with status {code} ({service.log_path}):\n{lines}"


def _log_tail(service: _Service) -> list[str]:
    """Return the last lines of a service's log, cut to a width, without a terminal's colours."""
    lines = service.log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    return [_COLOURS.sub("", line)[:_LINE_WIDTH] for line in lines if line.strip()]


def _code_server(settings: Settings) -> tuple[str, ...]:
    # On other systems libraries start threads, which a fork does not keep.
    if settings.preload_runs and sys.platform == "linux":
        return ("siglip_pipeline.services.code_server",)
    return ("dagster", "api", "grpc")
