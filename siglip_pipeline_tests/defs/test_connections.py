"""Connections to Dagster's Postgres are reused, and replaced when they were closed.

In every process by the storage that `dagster.yaml` names, and in a run by `keep_connections` where
it names Dagster's own.
"""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import sqlalchemy
import yaml
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage
from dagster_postgres.event_log.event_log import CHANNEL_NAME
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from siglip_pipeline.defs.internals import keep_connections
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.services.home import prepare_dagster_home
from siglip_pipeline.settings import Settings, process_environment
from siglip_pipeline_tests.conftest import fresh_database

EVENTS = 10
THREADS = 6


@pytest.fixture(scope="module")
def dagster_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres, "template1") as url:
        yield url


@contextmanager
def _instance(home: Path, dagster_url: str, *, own_storage: bool) -> Iterator[dg.DagsterInstance]:
    settings = Settings.load(
        home=home,
        dagster_postgres_url=dagster_url.replace("postgresql://", "postgresql+psycopg2://"),
    )
    folder = prepare_dagster_home(settings)
    if own_storage:
        document = yaml.safe_load((folder / "dagster.yaml").read_text())
        document["storage"] = {"postgres": document["storage"]["custom"]["config"]}
        (folder / "dagster.yaml").write_text(yaml.safe_dump(document))
    with (
        process_environment(settings, DAGSTER_HOME=str(folder)),
        dg.DagsterInstance.get() as instance,
    ):
        yield instance


@pytest.fixture
def instance(dagster_url: str, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """With Dagster's own storage, as under the Helm chart."""
    with _instance(tmp_path, dagster_url, own_storage=True) as instance:
        yield instance


@pytest.fixture
def pooled_instance(dagster_url: str, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """With the storage of the project's `dagster.yaml`."""
    with _instance(tmp_path, dagster_url, own_storage=False) as instance:
        yield instance


@contextmanager
def counted_connections() -> Iterator[list[object]]:
    opened: list[object] = []

    def count(connection: object, record: object) -> None:
        opened.append(record)

    sqlalchemy.event.listen(sqlalchemy.pool.Pool, "connect", count)
    try:
        yield opened
    finally:
        sqlalchemy.event.remove(sqlalchemy.pool.Pool, "connect", count)


def _report_events(instance: dg.DagsterInstance) -> None:
    for number in range(EVENTS):
        instance.report_runless_asset_event(
            dg.AssetMaterialization(dg.AssetKey("made"), partition=str(number))
        )


def test_a_connection_is_opened_once_not_for_every_query(instance: dg.DagsterInstance) -> None:
    with counted_connections() as otherwise:
        _report_events(instance)
    assert len(otherwise) > EVENTS  # or there is nothing left to save
    with counted_connections() as opened:
        for _ in range(3):
            keep_connections(instance)
            _report_events(instance)
            assert instance.all_instigator_state() == []
    assert len(opened) <= 2


def test_the_server_is_not_asked_whether_a_connection_still_works(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    do_ping: Any = PGDialect_psycopg2.do_ping

    def count(dialect: object, connection: object) -> bool:
        asked.append(connection)
        return bool(do_ping(dialect, connection))

    monkeypatch.setattr(PGDialect_psycopg2, "do_ping", count)
    keep_connections(instance)
    _report_events(instance)
    assert not asked


def test_no_event_is_announced(instance: dg.DagsterInstance, dagster_url: str) -> None:
    with psycopg.connect(dagster_url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL_NAME}")
        _report_events(instance)
        heard = [*connection.notifies(timeout=0.5)]
        assert len(heard) == EVENTS  # or there is nothing left to save
        keep_connections(instance)
        _report_events(instance)
        assert [*connection.notifies(timeout=0.5)] == []
    records = instance.fetch_materializations(dg.AssetKey("made"), limit=2 * EVENTS).records
    last = max(int(notify.payload.split("_")[-1]) for notify in heard)
    assert sum(record.storage_id > last for record in records) == EVENTS


def _cut_connections(dagster_url: str) -> int:
    """End the server's processes, as a restart does; return how many."""
    with psycopg.connect(dagster_url, autocommit=True) as connection:
        cut = connection.execute(
            "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert cut is not None
    return int(cut[0])


def _connections(dagster_url: str) -> int:
    with psycopg.connect(dagster_url) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert found is not None
    return int(found[0])


def _await_connections(dagster_url: str, *, least: int, most: int) -> None:
    """Wait until the server has as many: it notices later that a client has left."""
    deadline = time.monotonic() + 60
    while not least <= (found := _connections(dagster_url)) <= most:
        assert time.monotonic() < deadline, f"{found} connections"
        time.sleep(0.05)


def test_other_storages_are_left_alone() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        keep_connections(instance)
        assert instance.get_runs_count() == 0


def test_all_instances_of_a_process_use_the_same_connections(
    pooled_instance: dg.DagsterInstance, dagster_url: str
) -> None:
    _report_events(pooled_instance)
    with counted_connections() as opened:
        for _ in range(EVENTS):
            with dg.DagsterInstance.from_ref(pooled_instance.get_ref()) as another:
                _report_events(another)
                assert another.all_instigator_state() == []
        keep_connections(pooled_instance)
        _report_events(pooled_instance)
    assert not opened
    _await_connections(dagster_url, least=1, most=2)


@pytest.mark.parametrize("own_storage", [False, True], ids=["pooled", "own"])
def test_connections_that_were_cut_are_replaced(
    own_storage: bool, dagster_url: str, tmp_path: Path
) -> None:
    with _instance(tmp_path, dagster_url, own_storage=own_storage) as instance:
        keep_connections(instance)
        _report_events(instance)
        with counted_connections() as opened:
            assert _cut_connections(dagster_url) >= 1
            _report_events(instance)
            assert instance.get_runs_count() == 0
    assert len(opened) == 1


def test_more_threads_than_connections_are_kept_wait_for_nothing(
    pooled_instance: dg.DagsterInstance, dagster_url: str
) -> None:
    together = threading.Barrier(THREADS, timeout=60)
    storage = pooled_instance.run_storage
    assert isinstance(storage, PostgresRunStorage)

    def query() -> None:
        with storage.connect():
            together.wait()

    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(query) for _ in range(THREADS)]:
            done.result()
    _await_connections(dagster_url, least=2, most=2)


@pytest.mark.parametrize("own_storage", [False, True], ids=["pooled", "own"])
def test_a_forked_process_opens_connections_of_its_own(
    own_storage: bool, dagster_url: str, tmp_path: Path
) -> None:
    with _instance(tmp_path, dagster_url, own_storage=own_storage) as instance:
        keep_connections(instance)
        _report_events(instance)
        instance.get_runs_count()
        with counted_connections() as opened:
            child = os.fork()
            if child == 0:
                try:
                    _report_events(instance)
                    instance.get_runs_count()
                    os._exit(0 if opened else 2)
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            _report_events(instance)
        assert os.waitstatus_to_exitcode(status) == 0
        assert not opened  # the end of the child has closed none of its parent's
        _await_connections(dagster_url, least=1, most=2)


def test_one_process_asks_two_databases(
    pooled_instance: dg.DagsterInstance,
    dagster_url: str,
    postgres: EmbeddedPostgres,
    tmp_path: Path,
) -> None:
    _report_events(pooled_instance)
    with psycopg.connect(dagster_url) as connection:
        connection.execute("CREATE TABLE of_one_alone ()")
    assert _has_table(pooled_instance, "of_one_alone")
    with (
        fresh_database(postgres, "template1") as url,
        _instance(tmp_path / "other", url, own_storage=False) as other,
    ):
        _report_events(other)
        assert not _has_table(other, "of_one_alone")
        _await_connections(dagster_url, least=0, most=0)
        pooled_instance.add_dynamic_partitions("videos", ["a"])
        assert other.get_dynamic_partitions("videos") == []
        assert pooled_instance.get_dynamic_partitions("videos") == ["a"]


def _has_table(instance: dg.DagsterInstance, name: str) -> bool:
    storage = instance.event_log_storage
    assert isinstance(storage, PostgresEventLogStorage)
    return storage.has_table(name)
