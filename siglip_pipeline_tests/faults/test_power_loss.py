"""Power loss: everything stops between two instructions, and starts again from what the disk has.

All processes are held by SIGSTOP while their home is copied; the copy is what a machine finds when
it comes up again, locks, sockets and pid files included.
"""

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest

from siglip_pipeline.embedded_postgres import postmaster
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline_tests.faults.conftest import Reference
from siglip_pipeline_tests.faults.harness import (
    Pipeline,
    Zygote,
    end_family,
    settings_for,
    wait_until,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="siglip-tests-") as made:
        Path(made).chmod(0o755)
        yield Path(made)
        for home in Path(made).iterdir():
            if home.is_dir():
                EmbeddedPostgres(home).stop(force=True)


def server_processes(server: EmbeddedPostgres) -> list[psutil.Process]:
    running = postmaster.find(server.data)
    assert running is not None
    process = psutil.Process(running.pid)
    return [process, *process.children(recursive=True)]


@contextmanager
def frozen(processes: list[psutil.Process]) -> Iterator[None]:
    _send(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(processes, signal.SIGCONT)


def _send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def copy_home(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def count(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def test_a_cluster_found_after_power_loss(folder: Path) -> None:
    server, copy = EmbeddedPostgres(folder / "home"), EmbeddedPostgres(folder / "found")
    with server.lease() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (i int)")
            connection.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
        with psycopg.connect(url) as half:
            half.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
            with frozen(server_processes(server)):
                copy_home(server.home, copy.home)
            half.rollback()
        assert (copy.data / "postmaster.pid").exists()
        assert not copy.is_running(), "the pid in it is the other server's"
        with copy.lease() as found:
            assert count(found) == 1000
            # The first one was not harmed: its socket is named in the copy's pid file.
            assert count(url) == 1000
        assert count(url) == 1000


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_a_collection_found_after_power_loss(
    share: float, folder: Path, films: Path, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    settings = settings_for(folder, films)
    pipeline = Pipeline(settings, tmp_path, zygote)
    server = EmbeddedPostgres(settings.home)
    with server.lease():
        # The schemas are there, and the run begins at once.
        assert pipeline.run("materialize", "sub/c.mp4", "--json") == 0, pipeline.said[-4000:]
        pid = pipeline.start()
        time.sleep(share * reference.seconds)
        run = psutil.Process(pid)  # it fails where the run is over: then nothing was struck
        family = [run, *run.children(recursive=True)]
        with frozen([*family, *server_processes(server)]):
            copy_home(settings.home, folder / "found")
            end_family(pid)
        pipeline.zygote.status()
    found = replace(pipeline, settings=settings.model_copy(update={"home": folder / "found"}))
    assert found.settings.frame_store is None
    found.finish()
    assert found.stored() == reference.stored
    wait_until(lambda: not EmbeddedPostgres(folder / "found").has_process(), "it is stopped")
