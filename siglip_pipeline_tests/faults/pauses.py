"""Statements that Postgres holds in their middle, so that a fault strikes just there.

The pause is armed by a row of an unlogged table, which a crash empties: what runs after the
restart is not held any more.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from siglip_pipeline.errors import EmbeddedDatabaseError
from siglip_pipeline_tests.faults.harness import wait_until

POINTS = ("frames are recorded", "COPY", "index build", "COPY of moments")

_PAUSE = """
    CREATE UNLOGGED TABLE IF NOT EXISTS fault_armed (yes boolean);
    CREATE OR REPLACE FUNCTION fault_pause() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        WHILE EXISTS (SELECT FROM fault_armed) LOOP PERFORM pg_sleep(0.1); END LOOP;
        PERFORM pg_advisory_lock_shared(0), pg_advisory_unlock_shared(0);
    END $$;
    CREATE OR REPLACE FUNCTION fault_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM fault_pause(); RETURN NEW;
    END $$;
    CREATE OR REPLACE FUNCTION fault_command() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM fault_pause();
    END $$;
"""

_TRIGGERS = {
    "frames are recorded": "CREATE TRIGGER fault AFTER UPDATE OF source_sha256 ON videos"
    " FOR EACH ROW EXECUTE FUNCTION fault_row()",
    # The sixth row of a COPY: five are written already.
    "COPY": "CREATE TRIGGER fault BEFORE INSERT ON frames_1 FOR EACH ROW"
    " WHEN (NEW.frame_index > 30) EXECUTE FUNCTION fault_row()",
    "COPY of moments": "CREATE TRIGGER fault BEFORE INSERT ON moments_1 FOR EACH ROW"
    " EXECUTE FUNCTION fault_row()",
    # Built, and not committed.
    "index build": "CREATE EVENT TRIGGER fault ON ddl_command_end WHEN TAG IN ('CREATE INDEX')"
    " EXECUTE FUNCTION fault_command()",
    "migration": "CREATE EVENT TRIGGER fault ON ddl_command_end WHEN TAG IN ('CREATE INDEX')"
    " EXECUTE FUNCTION fault_command()",
}


def arm(url: str, point: str) -> None:
    """Have the next statement of this kind stop in its middle."""
    with psycopg.connect(url, autocommit=True) as connection:
        _install(connection, point)
        connection.execute("INSERT INTO fault_armed VALUES (true)")


def _install(connection: "psycopg.Connection[tuple[Any, ...]]", point: str) -> None:
    connection.execute(_PAUSE.encode())
    connection.execute(_TRIGGERS[point].encode())


def disarm(url: str) -> None:
    """Let it go on."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM fault_armed")


def remove(url: str) -> None:
    """Remove what was made for the pause; nothing may be running any more."""
    with psycopg.connect(url) as connection:
        connection.execute("DROP EVENT TRIGGER IF EXISTS fault")
        connection.execute("DROP FUNCTION IF EXISTS fault_pause, fault_row, fault_command CASCADE")
        connection.execute("DROP TABLE IF EXISTS fault_armed")


def await_pause(url: Callable[[], str] | str, what: str) -> None:
    """Wait until a statement stands still; the server may still have to start."""

    def paused() -> bool:
        try:
            where = url if isinstance(url, str) else url()
            with psycopg.connect(where, autocommit=True) as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                    " AND datname = current_database()"
                ).fetchone()
        except (EmbeddedDatabaseError, psycopg.OperationalError):
            return False
        return row is not None and row[0] > 0

    wait_until(paused, what)


@contextmanager
def armed(url: str, point: str) -> Iterator[None]:
    """Armed inside the block, let go after it."""
    arm(url, point)
    try:
        yield
    finally:
        disarm(url)


@contextmanager
def gate(url: str, point: str) -> Iterator[Callable[[], None]]:
    """Armed inside the block by a lock: sleeps of Postgres end by the wall clock.

    Yields:
        A function that waits until a statement stands still.
    """
    remove(url)
    with psycopg.connect(url, autocommit=True) as connection:
        _install(connection, point)
        connection.execute("SELECT pg_advisory_lock(0)")
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

        def paused() -> bool:
            row = connection.execute(waiting).fetchone()
            return row is not None and row[0] > 0

        yield lambda: wait_until(paused, point)
