"""A broker that accepts a worker's connection and then answers nothing more."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from celery import Celery

from siglip_pipeline.defs.queues import celery_config
from siglip_pipeline.settings import Settings
from siglip_pipeline_tests.distributed.services import (
    RABBITMQ_SERVER,
    RabbitServer,
    running,
    wait_until,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

# Channel 0, method 41 (open-ok) of class 10 (connection): the end of AMQP's handshake.
OPEN_OK = b"\x01\x00\x00\x00\x00\x00\x05\x00\x0a\x00\x29"
WORKER = """
import sys
from celery import Celery
from siglip_pipeline.defs.queues import celery_config
from siglip_pipeline.settings import Settings

app = Celery("silent", broker=sys.argv[1], backend="cache+memory://")
app.config_from_object(celery_config(Settings.load(celery_broker_url=sys.argv[1])))
@app.task(name="done")
def done():
    open(sys.argv[2], "w").close()
app.Worker(queues=["silent"], pool="solo", without_gossip=True, without_mingle=True).start()
"""


class SilentOnce:
    """A TCP proxy whose first connection carries no answer after the handshake."""

    def __init__(self, port: int) -> None:
        self._broker = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self.accepted += 1
                broker = socket.create_connection(self._broker)
                for ends in ((client, broker, False), (broker, client, self.accepted == 1)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, falls_silent: bool) -> None:
        silent = False
        with suppress(OSError), source, target:
            while data := source.recv(65536):
                if not silent:
                    target.sendall(data)
                silent = silent or (falls_silent and OPEN_OK in data)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RabbitServer]:
    if not RABBITMQ_SERVER.exists():
        pytest.skip("rabbitmq-server is not installed: apt-get install rabbitmq-server")
    server = RabbitServer(tmp_path / "broker")
    with running(server):
        yield server


def test_a_worker_leaves_a_broker_that_answers_nothing_more(
    broker: RabbitServer, tmp_path: Path
) -> None:
    proxy = SilentOnce(broker.port)
    url, done = f"amqp://guest:guest@127.0.0.1:{proxy.port}//", tmp_path / "done"
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, url, str(done)], stdout=log, stderr=log
        )
    try:
        wait_until(lambda: proxy.accepted > 0, "the worker connects", 120)
        sender = Celery("sender", broker=broker.url)
        sender.config_from_object(celery_config(Settings.load(celery_broker_url=broker.url)))
        sender.send_task("done", queue="silent")
        wait_until(done.exists, f"the task is done: {(tmp_path / 'log').read_text()}", 120)
    finally:
        worker.kill()
        worker.wait()
        proxy.close()
