"""From every version of the schema to the newest, all data kept; and versions that do not fit.

A new migration is picked up by itself. It needs a line in ``schemas/digests.txt``, and where it
makes a table, rows for it in ``schemas/rows_NNNN.sql``.
"""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from siglip_pipeline.cli import main as cli
from siglip_pipeline.errors import DatabaseUnavailableError, DatabaseVersionError
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database, DatabaseOptions, migrate, open_database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.schema import Migration, check_schema, migrations
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.store import made

SCHEMAS = Path(__file__).parent / "schemas"
KNOWN = migrations()
NEWEST = KNOWN[-1].number
Rows = dict[str, list[dict[str, Any]]]


def build(database: Database, version: int) -> None:
    """A database that has come to a version step by step, with rows written at each."""
    for migration in KNOWN[:version]:
        migrate(database, known=KNOWN[: migration.number])
        rows = SCHEMAS / f"rows_{migration.number:04d}.sql"
        if rows.exists():
            with database.connection() as connection:
                connection.execute(rows.read_bytes())


def all_rows(database: Database, columns: dict[str, list[str]] | None = None) -> Rows:
    """Every row of every table but the history of the schema, as text; only these columns."""
    found: Rows = {}
    with database.connection() as connection:
        tables = connection.execute(
            "SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class c"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace"
            " AND c.relname <> 'schema_migrations' GROUP BY 1"
        ).fetchall()
        for table, there in tables:
            if columns is not None and table not in columns:
                continue
            names = there if columns is None else [n for n in columns[table] if n in there]
            query = sql.SQL("SELECT {} FROM {} ORDER BY 1, 2").format(
                sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(n)) for n in names),
                sql.Identifier(table),
            )
            rows = connection.execute(query).fetchall()
            found[table] = [dict(zip(names, row, strict=True)) for row in rows]
    return found


@pytest.fixture
def database(empty_database_url: str) -> Iterator[Database]:
    with Database(empty_database_url) as opened:
        yield opened


@pytest.mark.parametrize("version", [migration.number for migration in KNOWN])
def test_from_every_version_to_the_newest_nothing_is_lost(database: Database, version: int) -> None:
    build(database, version)
    before = all_rows(database)
    assert all(before.values()), "a table without rows: its migration needs a rows_NNNN.sql"
    assert len(migrate(database)) == sum(known.number > version for known in KNOWN)
    after = all_rows(database, {table: list(rows[0]) for table, rows in before.items()})
    assert after == before
    with database.connection() as connection:
        check_schema(connection)

    # And the program of today works with what is there.
    model = ModelStore(database).active()
    assert model is not None
    hits = made.search(database, model, np.array([0, 1, 0], np.float32), k=2)
    assert (hits[0].video, hits[0].frame_index) == ("a/ü 'quoted'.mp4", 50)
    states = VideoStore(database).states()
    assert states["broken.mp4"] == "failed"
    assert states["a/ü 'quoted'.mp4"] == "indexed"


def test_a_table_that_was_partitioned_by_hand_is_migrated(database: Database) -> None:
    """As operations.md advised before the program did it."""
    build(database, 12)
    with database.connection() as connection:
        connection.execute(
            "CREATE TABLE parted (LIKE frames_1 INCLUDING ALL) PARTITION BY HASH (video_id)"
        )
        connection.execute(
            "CREATE TABLE part PARTITION OF parted FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        )
        connection.execute("INSERT INTO parted SELECT * FROM frames_1")
        connection.execute("DROP TABLE frames_1")
        connection.execute("ALTER TABLE parted RENAME TO frames_1")
    migrate(database)
    with database.connection() as connection:
        settings = connection.execute(
            "SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL"
            " AND relname IN ('frames_1', 'part', 'moments_1') ORDER BY 1"
        ).fetchall()
    vacuum = ["autovacuum_vacuum_scale_factor=0.05"]
    assert settings == [("moments_1", vacuum), ("part", vacuum)]


def test_migrations_are_as_they_were_recorded() -> None:
    recorded = (SCHEMAS / "digests.txt").read_text().splitlines()
    assert recorded == [f"{m.label} {m.digest}" for m in KNOWN], (
        "a migration that databases have had must not change: write another one, and record it"
    )


def future(text: str = "CREATE TABLE future (i integer)") -> Migration:
    return Migration(number=NEWEST + 1, name="future", text=text)


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["siglip-pipeline", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0)


def test_a_newer_database_is_refused_by_every_door(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    migrate(database, known=[*KNOWN, future()])
    settings = Settings.load(database_url=database.url, home=tmp_path)
    said = f"schema version {NEWEST + 1}, this program knows up to {NEWEST}; upgrade siglip-pipe"
    for schema in ("migrate", "check"):
        with (
            pytest.raises(DatabaseVersionError, match=said),
            open_database(DatabaseOptions.from_settings(settings), schema=schema),
        ):
            pass
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    for command in (["status"], ["db", "migrate"], ["search", "x"], ["serve", "--port", "1"]):
        assert run_cli(monkeypatch, *command) == 2
        if command[0] != "serve":  # which may not have that port
            assert said in " ".join(capsys.readouterr().err.split())


def test_an_older_database_is_not_served_but_migrated(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(database, 1)
    settings = Settings.load(database_url=database.url, home=tmp_path)
    with (
        pytest.raises(
            DatabaseVersionError, match=rf"version 1, .*needs {NEWEST}; run .*db migrate"
        ),
        open_database(DatabaseOptions.from_settings(settings), schema="check"),
    ):
        pass
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert run_cli(monkeypatch, "db", "migrate", "--json") == 0
    with database.connection() as connection:
        check_schema(connection)


def test_a_migration_that_is_cut_off_leaves_the_version_before(database: Database) -> None:
    build(database, 2)
    before = all_rows(database)
    slow = [*KNOWN, future("CREATE TABLE future (i integer); SELECT pg_sleep(60)")]
    errors: list[BaseException] = []

    def migrate_slowly() -> None:
        try:
            migrate(database, known=slow)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=migrate_slowly)
    thread.start()
    with psycopg.connect(database.url.reveal(), autocommit=True) as admin:
        deadline = time.monotonic() + 60
        ended: tuple[Any, ...] | None = None
        while not ended and time.monotonic() < deadline:
            ended = admin.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event = 'PgSleep'"
            ).fetchone()
    thread.join()
    assert isinstance(errors[0], DatabaseUnavailableError)
    assert all_rows(database) == before
    with (
        pytest.raises(DatabaseVersionError, match="version 2"),
        database.connection() as connection,
    ):
        check_schema(connection)
    assert migrate(database) == [migration.label for migration in KNOWN[2:]]


def test_a_role_that_may_only_read_needs_no_migration(database: Database) -> None:
    migrate(database)
    with database.connection() as connection:
        connection.execute("SET TRANSACTION READ ONLY")
        before = connection.execute("SELECT count(*) FROM schema_migrations").fetchone()
    url = f"{database.url.reveal()}&options=-c%20default_transaction_read_only%3Don"
    with Database(url) as reader:
        assert migrate(reader) == []
    assert before == (len(KNOWN),)
