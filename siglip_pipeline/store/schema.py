"""Migrate the schema: which migrations exist, and which were applied to a database."""

import hashlib
import logging
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg

from siglip_pipeline.errors import DatabaseVersionError

Connection = psycopg.Connection[tuple[Any, ...]]

logger = logging.getLogger(__name__)

LOCK = 0x51610
"""First key of the advisory lock that is held while the schema changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One numbered SQL file."""

    number: int
    name: str
    text: str

    @property
    def label(self) -> str:
        """Return the name of the file without suffix: ``0001_initial``."""
        return f"{self.number:04d}_{self.name}"

    @property
    def digest(self) -> str:
        """Return a hash of the text, to detect a file that was edited after it was applied."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def migrations() -> list[Migration]:
    """Return all migrations of this program, in order."""
    found = []
    for file in files("siglip_pipeline.store").joinpath("migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name):
            text = file.read_text(encoding="utf-8")
            found.append(Migration(number=int(match[1]), name=match[2], text=text))
    return sorted(found, key=lambda migration: migration.number)


def apply_migrations(connection: Connection, *, known: list[Migration] | None = None) -> list[str]:
    """Bring the schema up to date in the connection's transaction: completely, or not at all.

    Several processes may call this at once: one migrates, the others wait for it. If the schema is
    up to date, nothing is written, so a read-only role suffices.

    Args:
        connection: in a transaction, which the caller ends.
        known: migrations to use instead of those of the program.

    Returns:
        The migrations that were applied now, e.g. ``0001_initial``.

    Raises:
        DatabaseVersionError: the schema is newer than this program, or differs from it.
    """
    known = migrations() if known is None else known
    if not _missing(_applied(connection), known):
        return []
    connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", [LOCK])
    connection.execute(
        """
        CREATE TABLE IF NOT EXISTS schema_migrations (number integer PRIMARY KEY, name text
        NOT NULL, digest text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())
        """
    )
    applied = []
    for migration in _missing(_applied(connection), known):
        with connection.transaction():
            connection.execute(migration.text.encode())
            connection.execute(
                "INSERT INTO schema_migrations (number, name, digest) VALUES (%s, %s, %s)",
                [migration.number, migration.name, migration.digest],
            )
        logger.info("applied migration %s", migration.label)
        applied.append(migration.label)
    if applied:
        # The connection was made before the extension existed.
        from pgvector.psycopg import register_vector

        register_vector(connection)
    return applied


def check_schema(connection: Connection) -> None:
    """Check that the schema has the version that this program needs.

    Raises:
        DatabaseVersionError: it is older or newer; gives the remedy.
    """
    known = migrations()
    missing = _missing(_applied(connection), known)
    if missing:
        found = missing[0].number - 1
        raise DatabaseVersionError(
            f"the database has schema version {found}, this program needs "
            f"{known[-1].number}; run `siglip-pipeline db migrate` with a role that owns the tables"
        )


def _applied(connection: Connection) -> dict[int, str]:
    """Return the digest of each migration that was applied, by number."""
    table = connection.execute("SELECT to_regclass('schema_migrations')").fetchone()
    if table == (None,):
        return {}
    rows = connection.execute("SELECT number, digest FROM schema_migrations").fetchall()
    return {int(number): str(digest) for number, digest in rows}


def _missing(done: dict[int, str], known: list[Migration]) -> list[Migration]:
    """Return the migrations that are still to be applied.

    Raises:
        DatabaseVersionError: the schema is newer than this program, or differs from it.
    """
    newest = known[-1].number if known else 0
    if done and max(done) > newest:
        raise DatabaseVersionError(
            f"the database has schema version {max(done)}, this program knows up to {newest}; "
            "upgrade siglip-pipeline"
        )
    for migration in known:
        if migration.number in done and done[migration.number] != migration.digest:
            raise DatabaseVersionError(
                f"migration {migration.label} was applied from another "
                "version of its file; use the version of siglip-pipeline that made this database"
            )
    return [migration for migration in known if migration.number not in done]
