"""Ctrl-C on `ingest --wait`, the real command as a process of its own."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.services.state import write_state
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.video.rendering import numbered_picture, render

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MOST_SECONDS = 5.0
BUSY = 3.0
"""What a busy machine takes beside them."""


@pytest.fixture
def settings(tmp_path: Path, postgres: EmbeddedPostgres) -> Iterator[Settings]:
    with fresh_database(postgres) as url, fresh_database(postgres, "template1") as dagster_url:
        dagster_url = dagster_url.replace("postgresql://", "postgresql+psycopg2://")
        home = tmp_path / "home"
        home.mkdir()
        yield collection_settings(home, url, dagster_postgres_url=dagster_url)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two minutes, which take some seconds to decode."""
    pictures = [numbered_picture(number) for number in range(60)]
    return render(
        tmp_path_factory.mktemp("film") / "film.mp4",
        pictures=pictures * 50,
        options={"preset": "ultrafast"},
    )


@contextmanager
def ingesting(settings: Settings, film: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "siglip_pipeline.cli.main", "ingest", str(film), "--wait"]
    process = subprocess.Popen(
        command,
        env=child_environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def decodes(process: subprocess.Popen[str]) -> bool:
    return bool(psutil.Process(process.pid).children(recursive=True))


def waits(process: subprocess.Popen[str]) -> bool:
    time.sleep(1)  # nothing that can be seen happens: it asks the database twice a second
    return process.poll() is None


@pytest.mark.parametrize(
    ("is_up", "is_there"), [(False, decodes), (True, waits)], ids=["in this process", "beside up"]
)
def test_ctrl_c_ends_it_within_seconds_and_without_a_traceback(
    settings: Settings,
    film: Path,
    tmp_path: Path,
    is_up: bool,
    is_there: Callable[[subprocess.Popen[str]], bool],
) -> None:
    if is_up:  # this process stands for an `up` that never indexes anything
        address = "http://127.0.0.1:9"
        write_state(
            settings.home, dagster_url=address, page_url=address, sockets=tmp_path, children=()
        )
    with ingesting(settings, film) as process:
        assert process.stderr is not None
        assert "copied" in process.stderr.readline()
        deadline = time.monotonic() + 60
        while not is_there(process):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert time.monotonic() - began < MOST_SECONDS + BUSY
        assert process.returncode == 130, errors
        assert "Traceback" not in output + errors
        assert "Error" not in errors
        _, left = psutil.wait_procs(children, timeout=10)
        assert left == []
