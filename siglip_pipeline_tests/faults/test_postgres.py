"""Postgres killed or stopped at once, embedded and external, in the middle of each write."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from siglip_pipeline.embedded_postgres import postmaster
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.services.ports import free_port
from siglip_pipeline_tests.faults.conftest import Reference, dagster_url
from siglip_pipeline_tests.faults.harness import Pipeline, Zygote, settings_for, wait_until
from siglip_pipeline_tests.faults.pauses import arm, await_pause, remove

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

FIRST = "sub/c.mp4"
DEFINITE = {0, 1, 2}
"""Exit codes that say what became of the run: done, videos failed, could not run."""


def strike(server: EmbeddedPostgres, number: int) -> None:
    """Send a signal to the postmaster, and wait until nothing of the server lives."""
    running = postmaster.find(server.data)
    assert running is not None
    os.kill(running.pid, number)
    wait_until(lambda: not server.has_process(), "the server is gone")


@contextmanager
def _external(
    open_folder: Path, films: Path, zygote: Zygote
) -> Iterator[tuple[Pipeline, EmbeddedPostgres]]:
    """A server of its own over TCP, which nobody but the test starts."""
    server = EmbeddedPostgres(open_folder / "home", port=free_port())
    server.keep()
    with psycopg.connect(server.tcp_url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE dagster")
    settings = settings_for(
        open_folder / "elsewhere",
        films,
        database_url=server.tcp_url(),
        DAGSTER_POSTGRES_URL=dagster_url(server.tcp_url("dagster")),
    )
    (open_folder / "elsewhere").mkdir()
    yield Pipeline(settings, open_folder / "elsewhere", zygote), server
    server.stop(force=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT], ids=["kill", "immediate"])
@pytest.mark.parametrize("point", ["frames are recorded", "COPY", "index build"])
def test_an_external_server_that_crashes(
    point: str, number: int, open_folder: Path, films: Path, zygote: Zygote, reference: Reference
) -> None:
    with _external(open_folder, films, zygote) as (pipeline, server):
        assert pipeline.run("materialize", FIRST, "--json") == 0, pipeline.said[-4000:]
        arm(server.tcp_url(), point)
        pipeline.start()
        await_pause(server.tcp_url(), point)
        strike(server, number)
        server.start()
        status = pipeline.zygote.status()
        assert status in DEFINITE, pipeline.said[-6000:]
        remove(server.tcp_url())
        pipeline.finish()
        assert pipeline.stored() == reference.stored


@pytest.mark.parametrize("point", ["frames are recorded", "COPY", "index build"])
def test_the_embedded_server_that_crashes(
    point: str, open_folder: Path, films: Path, zygote: Zygote, reference: Reference
) -> None:
    pipeline = Pipeline(settings_for(open_folder, films), open_folder, zygote)
    server = EmbeddedPostgres(pipeline.settings.home)
    # The command owns the server, as on a laptop without `up`.
    assert pipeline.run("materialize", FIRST, "--json") == 0, pipeline.said[-4000:]
    with server.lease() as url:
        arm(url, point)
    pipeline.start()
    await_pause(server.url, point)
    strike(server, signal.SIGKILL)
    status = pipeline.zygote.status()
    assert status in DEFINITE - {0}, pipeline.said[-6000:]
    assert "error:" in pipeline.said, "a message, and not only a traceback"
    with server.lease() as url:
        remove(url)
    pipeline.finish()
    assert pipeline.stored() == reference.stored
