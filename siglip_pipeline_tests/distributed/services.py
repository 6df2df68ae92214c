"""Real brokers for tests, each with a folder and ports of its own, ended by process id."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from siglip_pipeline.services.ports import free_port

RABBITMQ_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_SECONDS = 300.0


class Broker(Protocol):
    """A broker that a test may stop and start again, with what it holds."""

    url: str
    port: int
    folder: Path

    def start(self) -> None: ...
    def stop(self) -> None: ...


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Poll until the condition holds; fail with what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


def require_redis() -> None:
    """Skip the test where Redis is not installed; in CI, which installs it, fail."""
    if shutil.which("redis-server") is None:
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        assert not in_ci, "redis-server is missing; .ci/run installs it"
        pytest.skip("redis-server is not installed: apt-get install redis-server")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(process: "subprocess.Popen[bytes]", *, number: int = signal.SIGTERM) -> None:
    """End a process and its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


class RedisServer:
    """Redis that keeps every write in a file, as docs/operations.md asks for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "logfile": str(self.folder / "redis.log"),
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        # Redis takes `--name value`.
        flat = [part for argument in arguments for part in argument.split("=", 1)]
        self._process = subprocess.Popen(["redis-server", *flat], stdin=subprocess.DEVNULL)
        wait_until(lambda: listens(self.port), "Redis answers", START_SECONDS)

    def stop(self) -> None:
        if self._process is not None:
            end(self._process)
            self._process = None


class RabbitServer:
    """RabbitMQ as this user, its name service on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self._epmd_port = free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(RABBITMQ_SERVER)],
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: listens(self.port), "RabbitMQ answers", START_SECONDS)

    def stop(self) -> None:
        if self._process is None:
            return
        end(self._process)
        self._process = None
        # Erlang's name service outlives its nodes.
        epmd = shutil.which("epmd") or "epmd"
        subprocess.run([epmd, "-kill"], env=self._environment, capture_output=True, check=False)


@contextmanager
def running(broker: Broker) -> Iterator[Broker]:
    """The broker, stopped on leaving."""
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
