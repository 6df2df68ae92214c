"""SIGLIP_HOME and what is in it are for one user; what is made for others is for them."""

import contextlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from siglip_pipeline.embedded_postgres import binaries
from siglip_pipeline.embedded_postgres.server import LOG_BYTES_KEPT, EmbeddedPostgres
from siglip_pipeline.errors import SettingsError
from siglip_pipeline.files.private_files import current_umask, private_home, usual_mode
from siglip_pipeline_tests.conftest import folder_for_postgres

pytestmark = pytest.mark.timeout(300)

AS_ROOT = os.geteuid() == 0
CLOSED = 0o710 if AS_ROOT else 0o700
"""Root's Postgres runs as a user of its own, whose group passes through."""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(home: Path) -> list[str]:
    """What others than the user could read or reach below a home, with its mode."""
    found = []
    for path in home.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has gone since
            status = path.lstat()
            if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o077:
                found.append(f"{path} {stat.S_IMODE(status.st_mode):o}")
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_for_postgres() as made:
        yield made


def test_a_home_is_made_for_one_user(folder: Path) -> None:
    private_home(folder / "new" / "home")
    assert mode(folder / "new" / "home") == CLOSED
    assert mode(folder / "new") == 0o777 & ~current_umask()


@pytest.mark.parametrize("home", ["/proc/home", "/dev/null", "/dev/null/home", "/sys/home"])
def test_a_home_that_cannot_be_made_is_named_with_the_way_out(home: str) -> None:
    with pytest.raises(SettingsError, match=f"SIGLIP_HOME={home} cannot be made: .*; set it to"):
        private_home(Path(home))


def test_the_umask_stays_while_threads_ask_for_modes() -> None:
    """Read by setting it, it stayed at 0077 when two threads did so at once."""
    before = current_umask()
    with ThreadPoolExecutor(8) as threads:
        modes = set(threads.map(usual_mode, [0o777] * 20_000))
    assert modes == {0o777 & ~before}
    assert current_umask() == before


@pytest.mark.parametrize(
    ("before", "after"), [(0o755, CLOSED), (0o777, CLOSED), (0o700, 0o700), (0o500, 0o700)]
)
def test_a_home_of_an_earlier_version_is_closed(folder: Path, before: int, after: int) -> None:
    home = folder / "home"
    home.mkdir()
    home.chmod(before)
    for _ in range(2):
        private_home(home)
        assert mode(home) == after


@pytest.mark.parametrize("shared", ["sticky", "own"])
def test_a_folder_that_serves_others_is_left_with_a_warning(
    folder: Path, shared: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if shared == "sticky":
        folder.chmod(0o1777)
    else:
        monkeypatch.setenv("HOME", str(folder))
    before = mode(folder)
    private_home(folder)
    assert mode(folder) == before
    assert str(folder) in caplog.text


@pytest.mark.parametrize("before", [None, 0o755])
def test_the_cluster_stays_in_the_home(folder: Path, before: int | None) -> None:
    home = folder / "home"
    if before is not None:
        home.mkdir()
        home.chmod(before)
    server = EmbeddedPostgres(home)
    with server.lease() as url, psycopg.connect(url) as connection:
        assert server.data == home / "postgres"
        row = connection.execute("SHOW data_directory").fetchone()
        assert row == (str(home / "postgres"),)
        assert mode(home) == CLOSED
        if AS_ROOT:
            assert home.stat().st_gid == binaries.server_account().gid


def test_the_servers_log_is_put_aside_while_it_runs(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "home")
    with server.lease() as url, psycopg.connect(url, autocommit=True) as connection:
        os.truncate(server.log, LOG_BYTES_KEPT + 1)
        server.start()
        assert server.log.with_name("postgres.log.1").stat().st_size == LOG_BYTES_KEPT + 1
        connection.execute("DO $$ BEGIN RAISE LOG 'written after'; END $$")
        assert "written after" in server.log.read_text()
        assert server.log.stat().st_size < 10_000
