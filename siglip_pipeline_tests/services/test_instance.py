"""Dagster's storage: what cannot be is said at once, what may be starting is waited for."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

import siglip_pipeline.defs.internals  # noqa: F401  # here, and not in the seconds that are counted
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.errors import DatabaseUnavailableError, SettingsError
from siglip_pipeline.services.home import prepare_dagster_home
from siglip_pipeline.services.instance import open_instance
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment, process_environment
from siglip_pipeline_tests.conftest import collection_settings, folder_for_postgres, fresh_database

pytestmark = pytest.mark.timeout(300)

WAIT = "siglip_pipeline.defs.internals._STORAGE_WAIT_SECONDS"
AT_ONCE = 8.0
"""dagster-postgres tries for 11 s; a busy machine takes long for what takes none."""


def dagsters(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


def opened(home: Path, url: str) -> float:
    """Open the instance of a storage; the seconds that it took."""
    settings = Settings.load(home=home, dagster_postgres_url=url)
    folder = prepare_dagster_home(settings)
    with process_environment(settings, DAGSTER_HOME=str(folder)):
        began = time.monotonic()
        with open_instance(settings) as instance:
            assert instance.get_runs_count() == 0
        return time.monotonic() - began


@pytest.fixture(scope="module")
def with_password() -> Iterator[EmbeddedPostgres]:
    """A server that asks for a password, over TCP."""
    with folder_for_postgres() as folder:
        server = EmbeddedPostgres(folder, port=free_port())
        with server.lease():
            yield server


def is_refused_at_once(home: Path, url: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError) as caught:
        opened(home, url)
    assert time.monotonic() - began < AT_ONCE
    assert "Dagster's storage (DAGSTER_POSTGRES_URL)" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not caplog.records


def test_what_is_not_there_is_said_at_once(
    postgres: EmbeddedPostgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = dagsters(postgres.url("template1"))
    for url, reason in (
        (dagsters(postgres.url("no_such")), 'database "no_such" does not exist'),
        (there.replace("postgres@", "no_such@"), 'role "no_such" does not exist'),
        # No name has such a part: this one is not looked for in the network.
        (f"postgresql+psycopg2://u:p@{'h' * 70}/d", "could not translate host name"),
    ):
        is_refused_at_once(tmp_path, url, reason, caplog)


def test_a_wrong_password_is_said_at_once(
    with_password: EmbeddedPostgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right = make_url(dagsters(with_password.tcp_url("template1")))
    for url, reason in (
        (right.set(password="not-it"), "password authentication failed"),
        (right._replace(password=None), "no password supplied"),
        (right.update_query_dict({"sslmode": "require"}), "does not support SSL"),
    ):
        shown = url.render_as_string(hide_password=False)
        is_refused_at_once(tmp_path, shown, reason, caplog)
        assert "not-it" not in caplog.text


def test_a_server_that_comes_is_waited_for(
    postgres: EmbeddedPostgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with fresh_database(postgres, "template1") as url:
        socket_folder = make_url(url).query["host"]
        assert isinstance(socket_folder, str)
        later = tmp_path / "s"
        coming = threading.Timer(1.5, lambda: later.symlink_to(socket_folder))
        coming.start()
        try:
            took = opened(tmp_path, dagsters(url.replace(socket_folder, str(later))))
        finally:
            coming.join()
    assert took > 1
    [said] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "does not answer yet; waiting for it" in said.getMessage()


def test_a_server_that_does_not_come_is_waited_for_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WAIT, 1.0)
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match="refused; Is the server running"):
        opened(tmp_path, f"postgresql+psycopg2://u:p@127.0.0.1:{free_port()}/d")
    assert 1 < time.monotonic() - began < AT_ONCE
    assert [record.name for record in caplog.records] == ["siglip_pipeline.defs.internals"]


@pytest.mark.parametrize("place", ["u:secret@h:port/d", "u:se/cret@h:port/d", "[::1/d"])
def test_an_address_that_cannot_be_read_is_not_repeated(tmp_path: Path, place: str) -> None:
    with pytest.raises(SettingsError, match="DAGSTER_POSTGRES_URL cannot be read") as caught:
        opened(tmp_path, f"postgresql+psycopg2://{place}")
    assert "cret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.slow
@pytest.mark.parametrize("command", ["up", "db set-back", "worker --queue siglip"])
def test_commands_say_it_in_one_sentence(
    postgres: EmbeddedPostgres, tmp_path: Path, command: str
) -> None:
    wrong = dagsters(postgres.url("no_such"))
    with fresh_database(postgres) as url:
        settings = collection_settings(
            tmp_path,
            url,
            DAGSTER_POSTGRES_URL=wrong,
            dagster_port=free_port(),
            page_port=free_port(),
            celery_broker_url="redis://127.0.0.1:1/0",  # it does not come to that
        )
        done = subprocess.run(
            [sys.executable, "-m", "siglip_pipeline.cli.main", *command.split()],
            env=child_environment(settings),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert 'database "no_such" does not exist' in done.stderr
    assert "Traceback" not in done.stderr
