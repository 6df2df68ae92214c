"""Migrations, versions, and what becomes of a database's errors."""

import re
import threading

import psycopg
import pytest

from siglip_pipeline.errors import (
    DatabaseFullError,
    DatabaseUnavailableError,
    DatabaseVersionError,
    StoreError,
)
from siglip_pipeline.settings import Settings
from siglip_pipeline.store import database as database_module
from siglip_pipeline.store.database import (
    Database,
    DatabaseOptions,
    migrate,
    open_database,
    parse_version,
    where,
)
from siglip_pipeline.store.schema import Migration, migrations
from siglip_pipeline.text.secret import SecretUrl


def test_migrations_are_numbered_without_gaps() -> None:
    assert [migration.number for migration in migrations()] == list(range(1, len(migrations()) + 1))


def test_migrating_twice_applies_nothing_the_second_time(empty_database_url: str) -> None:
    with Database(empty_database_url) as database:
        assert migrate(database) == [migration.label for migration in migrations()]
        assert migrate(database) == []


def test_a_failing_migration_leaves_nothing_behind(empty_database_url: str) -> None:
    good = Migration(number=1, name="good", text="CREATE EXTENSION vector; CREATE TABLE a (i int)")
    bad = Migration(number=2, name="bad", text="CREATE TABLE b (i int); SELECT 1/0")
    with Database(empty_database_url) as database:
        with pytest.raises(StoreError, match="division by zero"):
            migrate(database, known=[good, bad])
        with database.connection() as connection:
            tables = connection.execute(
                "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
            ).fetchone()
            assert tables == (0,)


def test_a_full_disk_is_not_taken_for_a_lost_connection(database: Database) -> None:
    raising = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
    with (
        pytest.raises(DatabaseFullError, match=r"(?s)no room left.*extend.*free some"),
        database.connection() as connection,
    ):
        connection.execute(raising)


def test_a_newer_schema_is_refused(database: Database) -> None:
    with pytest.raises(
        DatabaseVersionError, match=r"version \d+, this program knows up to 0; upgrade"
    ):
        migrate(database, known=[])


def test_an_edited_migration_is_refused(database: Database) -> None:
    known = migrations()
    edited = Migration(number=1, name=known[0].name, text=known[0].text + " ")
    with pytest.raises(DatabaseVersionError, match="another version of its file"):
        migrate(database, known=[edited, *known[1:]])


def test_processes_that_migrate_at_once_do_not_collide(empty_database_url: str) -> None:
    applied: list[int] = []

    def run() -> None:
        with Database(empty_database_url) as database:
            applied.append(len(migrate(database)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [0, 0, 0, len(migrations())]


def test_vectors_can_be_read_right_after_the_first_migration(empty_database_url: str) -> None:
    with Database(empty_database_url) as database:
        migrate(database)
        with database.connection() as connection:
            row = connection.execute("SELECT '[1,2]'::halfvec").fetchone()
    assert row is not None
    assert row[0].to_list() == [1.0, 2.0]


def test_a_postgres_that_cannot_make_the_tables_is_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres 15 does not know STORAGE in CREATE TABLE."""
    monkeypatch.setattr(psycopg.ConnectionInfo, "server_version", property(lambda _: 150018))
    with pytest.raises(DatabaseVersionError, match="is Postgres 15; at least 16 is needed"):
        Database(database_url)


def test_an_old_pgvector_is_refused_with_the_remedy(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "PGVECTOR_MINIMUM", (99, 0, 0))
    with pytest.raises(DatabaseVersionError, match=r"at least 99\.0\.0.*ALTER EXTENSION"):
        Database(database_url)


def test_an_extension_that_only_needs_updating_says_so(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("UPDATE pg_extension SET extversion = '0.8.1' WHERE extname = 'vector'")
    with pytest.raises(DatabaseVersionError, match=r"has pgvector 0\.8\.1.*run `ALTER EXTENSION"):
        Database(empty_database_url)


def test_an_extension_in_another_schema_says_how_to_find_it(empty_database_url: str) -> None:
    """As some hosted servers have it; a dump keeps no search path of the database."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA extensions")
        connection.execute("CREATE EXTENSION vector SCHEMA extensions")
        with pytest.raises(DatabaseVersionError, match="pgvector in the schema extensions") as told:
            Database(empty_database_url)
        remedy = re.search("`(ALTER DATABASE .*?)`", str(told.value))
        assert remedy is not None
        connection.execute(remedy[1].encode())
    with Database(empty_database_url) as database:
        assert migrate(database) == [migration.label for migration in migrations()]


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(DatabaseUnavailableError, match=r"127\.0\.0\.1:9/nothing") as caught:
        Database("postgresql://u:hunter2@127.0.0.1:9/nothing")
    assert caught.value.retryable
    assert "hunter2" not in str(caught.value)
    assert "refused; Is the server running" in str(caught.value)


def test_a_refused_statement_is_a_store_error_and_is_rolled_back(database: Database) -> None:
    def run() -> None:
        with database.connection() as connection:
            connection.execute("CREATE TABLE t (i int)")
            connection.execute("SELECT * FROM does_not_exist")

    with pytest.raises(StoreError, match="does_not_exist"):
        run()
    with database.connection() as connection:
        assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)


def test_a_table_that_is_missing_is_named_with_the_remedy(database: Database) -> None:
    with database.connection() as connection:
        connection.execute("DROP TABLE watches CASCADE")
    with (
        pytest.raises(StoreError, match=r'relation "watches" does not exist; .* restore all of it'),
        database.connection() as connection,
    ):
        connection.execute("SELECT FROM watches")


def test_a_lost_connection_is_unavailable_and_the_pool_recovers(database: Database) -> None:
    with pytest.raises(DatabaseUnavailableError), database.connection() as connection:
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with database.connection() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_external_url_starts_no_server(database_url: str, tmp_path: object) -> None:
    settings = Settings.load(home=tmp_path, database_url=database_url)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        assert database.url.reveal() == database_url
    assert not (settings.home / "postgres").exists()


@pytest.mark.parametrize(
    ("text", "version"), [("0.8.5", (0, 8, 5)), ("0.9", (0, 9)), ("0.8.2-beta", (0, 8, 2))]
)
def test_parse_version(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_where_leaves_the_password_out() -> None:
    assert where(SecretUrl("postgresql://me:secret@db:5433/x")) == "db:5433/x"


def test_connections_that_the_server_ended_are_replaced_unnoticed(database: Database) -> None:
    with database.connection() as first, database.connection() as second:
        assert first is not second
    with psycopg.connect(database.url.reveal(), autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    for _ in range(4):
        with database.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_one_connection_is_opened_for_one_user(database_url: str) -> None:
    with Database(database_url) as database, database.connection() as connection:
        connection.execute("SELECT pg_sleep(0.3)")  # a second one would be there by then
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        ).fetchone()
    assert row == (1,)
