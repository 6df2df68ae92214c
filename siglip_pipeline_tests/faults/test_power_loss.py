"""Power loss: everything stops between two instructions, and starts again from what the disk has.

All processes are held by SIGSTOP while the disk is looked at, which has what they have flushed, and
any part of what they have written since: that is what a machine finds when it comes up again.
"""

import contextlib
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest

from siglip_pipeline.embedded_postgres import cluster, postmaster
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline_tests.faults.conftest import Reference
from siglip_pipeline_tests.faults.harness import (
    UNREADABLE,
    Pipeline,
    Stored,
    Zygote,
    end_family,
    settings_for,
    started_zygote,
    wait_until,
)
from siglip_pipeline_tests.faults.lossy_disk import LossyDisk, make_disk
from siglip_pipeline_tests.faults.set_clock import reason_it_cannot_be_had

WHY_NOT = reason_it_cannot_be_had()
pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="siglip-tests-") as made:
        Path(made).chmod(0o755)
        yield Path(made)
        for home in ("home", "found"):
            EmbeddedPostgres(Path(made) / home).stop(force=True)


def postmaster_of(server: EmbeddedPostgres) -> psutil.Process:
    running = postmaster.find(server.data)
    assert running is not None
    return psutil.Process(running.pid)


@contextmanager
def frozen(*processes: psutil.Process) -> Iterator[None]:
    """Hold processes and all that they have started.

    A process is held before its children are listed: else it may start one that goes on.
    """
    found = [*processes]
    try:
        for process in found:  # which grows
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
                wait_until(partial(_is_held, process), f"{process} is held")
                found += process.children()
        yield
    finally:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def _is_held(process: psutil.Process) -> bool:
    """Whether it does nothing more: what it was writing at the signal is written."""
    return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)


def count(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def pages_are_whole(url: str) -> bool:
    """Return whether pages that the disk had begun to write hold the rows that were left."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute("SELECT i, t FROM pages ORDER BY i").fetchall()
    return rows == [(i, str(i) * 20) for i in range(1, 20_000, 2)]


@pytest.fixture
def disk(folder: Path) -> LossyDisk:
    """The disk of the home in that folder."""
    (folder / "lost").mkdir()
    return make_disk(folder, folder / "lost")


@pytest.fixture
def pipeline(folder: Path, disk: LossyDisk, films: Path, tmp_path: Path) -> Iterator[Pipeline]:
    """A collection on that disk; its commands and their Postgres flush to it."""
    log = tmp_path / "zygote"
    prefix = ["env", *(f"{name}={value}" for name, value in disk.environment.items())]
    with log.open("ab") as output, started_zygote(output, prefix=prefix) as zygote:
        settings = settings_for(folder, films)
        yield Pipeline(
            settings, tmp_path, zygote, hook="siglip_pipeline_tests.faults.hooks:lossy_disk"
        )


@pytest.fixture
def draw(seed: int) -> random.Random:
    """Draws which of the sectors that were not flushed are there."""
    print(f"SIGLIP_FAULT_SEED={seed}")
    return random.Random(seed)


def assert_recorded_frames_are_whole(stored: Stored) -> None:
    for video, state in stored.states.items():
        if state in ("frames", "embedded", "indexed"):
            assert stored.frames[video] not in ([], UNREADABLE), (video, state)


def test_a_cluster_found_after_power_loss(
    folder: Path,
    disk: LossyDisk,
    pipeline: Pipeline,
    draw: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert pipeline.run("db", "migrate", "--json") == 0, pipeline.said[-4000:]
    plain = cluster.server_environment()
    server, copy = EmbeddedPostgres(folder / "home"), EmbeddedPostgres(folder / "found")
    written_once = server.data / "postgresql.conf"
    flushed = disk.folder / "tree" / written_once.relative_to(disk.of)
    assert flushed.read_text() == written_once.read_text()
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "server_environment", lambda: {**plain, **disk.environment})
        server.start()
        with server.lease() as url, psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (i int)")
            connection.execute("CREATE TABLE pages (i int, t text) WITH (autovacuum_enabled=off)")
            connection.execute(
                "INSERT INTO pages SELECT i, repeat(i::text, 20) FROM generate_series(1, 20000) i"
            )
            connection.execute("DELETE FROM pages WHERE i % 2 = 0")
        server.stop()
        server.start()
    with server.lease() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            # Its pages are in no buffer, so that all but the last few are written as it goes on.
            connection.execute("VACUUM (BUFFER_USAGE_LIMIT '128 kB') pages")
            connection.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
        with psycopg.connect(url) as half:
            half.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
            with frozen(postmaster_of(server)):
                disk.lose_power(server.home, copy.home, draw)
            half.rollback()
        assert (copy.data / "postmaster.pid").exists()
        assert not copy.is_running(), "the pid in it is the other server's"
        with copy.lease() as found:
            assert count(found) == 1000
            assert pages_are_whole(found)
            # The first one was not harmed: its socket is named in the copy's pid file.
            assert count(url) == 1000
        assert count(url) == 1000


def test_what_a_run_has_reported_is_there_after_power_loss(
    folder: Path, disk: LossyDisk, pipeline: Pipeline, reference: Reference, draw: random.Random
) -> None:
    pipeline.finish()
    disk.lose_power(pipeline.settings.home, folder / "found", draw)
    found = replace(
        pipeline, settings=pipeline.settings.model_copy(update={"home": folder / "found"})
    )
    assert found.stored() == reference.stored


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_a_collection_found_after_power_loss(
    share: float,
    folder: Path,
    disk: LossyDisk,
    pipeline: Pipeline,
    zygote: Zygote,
    reference: Reference,
    draw: random.Random,
) -> None:
    settings, server = pipeline.settings, EmbeddedPostgres(folder / "home")
    # The schemas are there, and the run begins at once.
    assert pipeline.run("materialize", "sub/c.mp4", "--json") == 0, pipeline.said[-4000:]
    pid = pipeline.start()
    time.sleep(share * reference.seconds)
    run = psutil.Process(pid)  # it fails where the run is over: then nothing was struck
    with frozen(run, postmaster_of(server)):
        disk.lose_power(settings.home, folder / "found", draw)
        end_family(pid)
    pipeline.zygote.status()
    settings = settings.model_copy(update={"home": folder / "found"})
    found = replace(pipeline, settings=settings, zygote=zygote, hook="")
    assert found.settings.frame_store is None
    assert_recorded_frames_are_whole(found.stored())
    found.finish()
    assert found.stored() == reference.stored
    wait_until(lambda: not EmbeddedPostgres(folder / "found").has_process(), "it is stopped")
