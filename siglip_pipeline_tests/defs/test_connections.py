"""`held_connections` reuses connections to Dagster's Postgres, and replaces closed ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import sqlalchemy
from dagster_postgres.event_log.event_log import CHANNEL_NAME
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from siglip_pipeline.defs.internals import held_connections
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.services.home import prepare_dagster_home
from siglip_pipeline.settings import Settings, process_environment
from siglip_pipeline_tests.conftest import fresh_database

EVENTS = 10


@pytest.fixture(scope="module")
def dagster_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres, "template1") as url:
        yield url


@pytest.fixture
def instance(dagster_url: str, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    settings = Settings.load(
        home=tmp_path,
        dagster_postgres_url=dagster_url.replace("postgresql://", "postgresql+psycopg2://"),
    )
    home = prepare_dagster_home(tmp_path)
    with (
        process_environment(settings, DAGSTER_HOME=str(home)),
        dg.DagsterInstance.get() as instance,
    ):
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
        with held_connections(instance):
            _report_events(instance)
            with held_connections(instance):
                _report_events(instance)
            _report_events(instance)
        assert len(opened) <= 3
        _report_events(instance)
    assert len(opened) > EVENTS


def test_the_server_is_not_asked_whether_a_connection_still_works(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    do_ping: Any = PGDialect_psycopg2.do_ping

    def count(dialect: object, connection: object) -> bool:
        asked.append(connection)
        return bool(do_ping(dialect, connection))

    monkeypatch.setattr(PGDialect_psycopg2, "do_ping", count)
    with held_connections(instance):
        _report_events(instance)
    assert not asked


def test_no_event_is_announced(instance: dg.DagsterInstance, dagster_url: str) -> None:
    with psycopg.connect(dagster_url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL_NAME}")
        _report_events(instance)
        heard = [*connection.notifies(timeout=0.5)]
        assert len(heard) == EVENTS  # or there is nothing left to save
        with held_connections(instance):
            _report_events(instance)
        assert [*connection.notifies(timeout=0.5)] == []
    records = instance.fetch_materializations(dg.AssetKey("made"), limit=2 * EVENTS).records
    last = max(int(notify.payload.split("_")[-1]) for notify in heard)
    assert sum(record.storage_id > last for record in records) == EVENTS


def test_connections_that_were_cut_are_replaced(
    instance: dg.DagsterInstance, dagster_url: str
) -> None:
    with held_connections(instance):
        _report_events(instance)
        with psycopg.connect(dagster_url, autocommit=True) as connection:
            cut = connection.execute(
                "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchone()
        assert cut is not None
        assert cut[0] >= 1
        _report_events(instance)
        assert instance.get_runs_count() == 0
    with psycopg.connect(dagster_url) as connection:
        left = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert left == (0,)


def test_other_storages_are_left_alone() -> None:
    with dg.DagsterInstance.ephemeral() as instance, held_connections(instance):
        assert instance.get_runs_count() == 0
