"""Connect to the database: the pool of connections, the version checks, the migrations."""

import re
import select
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psycopg
import psycopg_pool
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.errors import (
    DatabaseFullError,
    DatabaseUnavailableError,
    DatabaseVersionError,
    SettingsError,
    StoreError,
)
from siglip_pipeline.store.schema import LOCK, Connection, Migration, apply_migrations, check_schema
from siglip_pipeline.text.in_words import in_one_line
from siglip_pipeline.text.secret import IN_A_PASSWORD, SecretUrl

if TYPE_CHECKING:
    from siglip_pipeline.settings import Settings

__all__ = [
    "Connection",
    "Database",
    "DatabaseOptions",
    "embedded_server",
    "migrate",
    "open_database",
    "parse_version",
    "where",
]

# The first with STORAGE in CREATE TABLE, of which the tables of frames are made.
POSTGRES_MINIMUM = 16
# 0.8.2 fixes a buffer overflow in parallel HNSW builds.
PGVECTOR_MINIMUM = (0, 8, 2)
CONNECT_SECONDS = 15.0

# First keys of advisory locks; the second key is a model_id or a video_id, of a claim a hash.
LOCK_MIGRATE, LOCK_MODEL, LOCK_VIDEO, LOCK_BUILD = LOCK, 0x51611, 0x51612, 0x51613
LOCK_CLAIM = 0x51614

_HOLD = sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE")


class Database:
    """A pool of connections to one database.

    Args:
        url: ``postgresql://…``
        max_connections: connections that this process may hold at once.
        vectors: register pgvector's types on each connection; a process that reads no vectors
            saves the import of numpy, and three queries.

    Raises:
        DatabaseUnavailableError: the server does not answer.
        DatabaseVersionError: Postgres or pgvector is too old.
    """

    def __init__(
        self, url: str | SecretUrl, *, max_connections: int = 8, vectors: bool = True
    ) -> None:
        self.url = SecretUrl.of(url)
        _check_url(self.url)
        self.pgvector_version = _check_versions(self.url)
        self._pool: psycopg_pool.ConnectionPool[Connection] = psycopg_pool.ConnectionPool(
            self.url.reveal(),
            min_size=1,
            max_size=max_connections,
            max_idle=60,
            timeout=CONNECT_SECONDS,
            configure=_configure if vectors else None,
            check=_check_connection,
            name="siglip_pipeline",
            open=False,
        )
        with _translated_errors(self.url):
            # Who asks the pool before it has its connection makes it open a second one.
            self._pool.open(wait=True, timeout=CONNECT_SECONDS)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection in a transaction: commit it at the end, roll it back on an exception.

        Raises:
            DatabaseUnavailableError: no connection was available, or it was lost.
            DatabaseFullError: the disk of the server is full.
            StoreError: the database refused a statement.
        """
        with _translated_errors(self.url), self._pool.connection() as connection:
            yield connection

    @contextmanager
    def snapshot(self, *, reading: sql.Identifier | None = None) -> Iterator[Connection]:
        """Lend a read-only connection that sees the database as of its first statement.

        Args:
            reading: a table that no other may replace meanwhile. The rows of one that did would be
                newer than the snapshot, and so invisible.

        Raises:
            DatabaseUnavailableError: no connection was available, or it was lost.
            StoreError: the database refused a statement.
        """
        with _translated_errors(self.url), self._pool.connection() as connection:
            # psycopg adds these to its BEGIN: a statement of its own would cost a round trip.
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            try:
                with connection.transaction():
                    if reading is not None:  # the snapshot is taken after this lock
                        connection.execute(_HOLD.format(reading))
                    yield connection
            finally:
                if not connection.closed:
                    connection.isolation_level = connection.read_only = None

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Lend a connection outside any transaction, for commands that manage their own.

        Raises:
            DatabaseUnavailableError: no connection was available, or it was lost.
            StoreError: the database refused a statement.
        """
        with _translated_errors(self.url), self._pool.connection() as connection:
            connection.autocommit = True
            try:
                yield connection
            finally:
                if not connection.closed:
                    connection.autocommit = False

    @property
    def is_on_this_machine(self) -> bool:
        """Return whether the URL names a server of this machine: by a socket, or by loopback."""
        host = str(conninfo_to_dict(self.url.reveal()).get("host", ""))
        return host.startswith("/") or host in ("", "localhost", "127.0.0.1")

    def drain(self) -> None:
        """Replace every existing connection when it is returned to the pool."""
        self._pool.drain()

    def close(self) -> None:
        """Close the pool. The object cannot be used afterwards."""
        self._pool.close()

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _translated_errors(url: SecretUrl) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.DiskFull as error:
        raise DatabaseFullError(
            f"{where(url)} has no room left: {error}; free some on the server's disk, and run this "
            "again"
        ) from error
    except (psycopg.OperationalError, psycopg_pool.PoolTimeout) as error:
        if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.OutOfMemory):
            raise StoreError(f"the database gave up: {error}") from error
        message = f"no connection to {where(url)}: {in_one_line(url.masked(error))}"
        raise DatabaseUnavailableError(message) from url.masked_error(error)
    except psycopg.errors.UndefinedTable as error:
        raise StoreError(
            f"{where(url)} refused: {error.diag.message_primary}; if it says so again, tables are "
            "missing, as after a dump that was restored in part: restore all of it into an empty "
            "database"
        ) from error
    except psycopg.Error as error:
        raise StoreError(f"{where(url)} refused: {error}") from error


def _check_url(url: SecretUrl) -> None:
    """Refuse a URL that cannot be parsed, without repeating it.

    Raises:
        SettingsError: says which form is allowed.
    """
    try:
        parts = conninfo_to_dict(url.reveal())
        ports = str(parts.get("port", "5432")).split(",")
        if all(port.isdigit() and 0 < int(port) < 65536 for port in ports):
            return
    except psycopg.Error:
        pass
    # Raised without a cause: the driver's message repeats the URL with its password.
    raise SettingsError(
        "SIGLIP_DATABASE_URL cannot be read as postgresql://user:password@host:port/database; "
        f"{IN_A_PASSWORD}"
    )


def where(url: SecretUrl) -> str:
    """Return the server and database of a URL, without its password."""
    parts = conninfo_to_dict(url.reveal())
    host, port = parts.get("host", "localhost"), parts.get("port", 5432)
    # Where the password has a slash, its rest is parsed as part of the name.
    name = str(parts.get("dbname", "")).rpartition("@")[2]
    return f"{host}:{port}/{name}"


def _configure(connection: Connection) -> None:
    installed = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
    if installed.fetchone() is not None:
        from pgvector.psycopg import register_vector

        register_vector(connection)
    connection.commit()


def _check_connection(connection: Connection) -> None:
    """Ping only if the idle socket is readable: unread data means a notice or a disconnect.

    A ping each time would cost as much as a short search.
    """
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    if waiting.poll(0):
        psycopg_pool.ConnectionPool.check_connection(connection)


def _check_versions(url: SecretUrl) -> tuple[int, ...]:
    """Check Postgres and pgvector; return the version of pgvector.

    Raises:
        DatabaseUnavailableError: the server does not answer.
        DatabaseVersionError: one is too old, or pgvector is not on the search path, as in a dump
            that was restored; gives the remedy.
    """
    with (
        _translated_errors(url),
        psycopg.connect(
            url.reveal(), connect_timeout=int(CONNECT_SECONDS), autocommit=True
        ) as connection,
    ):
        server = connection.info.server_version // 10000
        row = connection.execute(
            """
            SELECT default_version, installed_version, to_regtype('vector') IS NOT NULL,
                   quote_ident(nspname), quote_ident(current_database())
            FROM pg_available_extensions
            LEFT JOIN pg_extension ON extname = name
            LEFT JOIN pg_namespace ON pg_namespace.oid = extnamespace
            WHERE name = 'vector'
            """
        ).fetchone()
    if server < POSTGRES_MINIMUM:
        raise DatabaseVersionError(
            f"{where(url)} is Postgres {server}; at least {POSTGRES_MINIMUM} is needed"
        )
    wanted = ".".join(map(str, PGVECTOR_MINIMUM))
    if row is None:
        raise DatabaseVersionError(
            f"{where(url)} has no pgvector; install at least {wanted} on the server (package "
            f"postgresql-{server}-pgvector on Debian)"
        )
    available, installed = (parse_version(v) if v else None for v in row[:2])
    is_found, schema, name = row[2:]
    if installed and not is_found:
        raise DatabaseVersionError(
            f"{where(url)} has pgvector in the schema {schema}, where this role does not find it: "
            f"run `ALTER DATABASE {name} SET search_path = public, {schema}`, and `GRANT USAGE ON "
            f"SCHEMA {schema} TO` the role, in that database as its owner"
        )
    version = installed or available
    assert version is not None
    if version >= PGVECTOR_MINIMUM:
        return version
    if available is not None and available >= PGVECTOR_MINIMUM:
        remedy = "run `ALTER EXTENSION vector UPDATE` in that database as its owner"
    else:
        remedy = f"install at least {wanted} on the server, then `ALTER EXTENSION vector UPDATE`"
    raise DatabaseVersionError(
        f"{where(url)} has pgvector {'.'.join(map(str, version))}, at least {wanted} is needed; "
        f"{remedy}"
    )


def parse_version(text: str) -> tuple[int, ...]:
    """Return ``0.8.5`` as ``(0, 8, 5)``; ignore what follows the numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseOptions:
    """Where the database is: an external one, or the embedded server of a home."""

    url: SecretUrl | None = None
    """An external Postgres; None for the embedded server."""
    home: Path
    """The folder that holds the files of the embedded server."""
    port: int | None = None
    """A TCP port of the embedded server; None for its Unix socket only."""

    @classmethod
    def from_settings(cls, settings: "Settings") -> "DatabaseOptions":
        """Return the options that the environment asks for."""
        return cls(url=settings.database_url, home=settings.home, port=settings.embedded_port)


@contextmanager
def open_database(
    options: DatabaseOptions,
    *,
    schema: Literal["migrate", "check", "any"] = "migrate",
    vectors: bool = True,
) -> Iterator[Database]:
    """Open an external database, or the embedded server.

    The embedded server is started on demand, and stopped by its last user.

    Args:
        options: which database.
        schema: ``migrate`` it first, ``check`` that it is up to date, or accept ``any``.
        vectors: whether vectors will be read or written; see :class:`Database`.

    Raises:
        DatabaseUnavailableError: the external database does not answer.
        DatabaseVersionError: Postgres, pgvector or the schema do not fit this program.
        EmbeddedDatabaseError: the embedded server cannot be started.
    """
    with ExitStack() as stack:
        lease = embedded_server(options).lease
        url = options.url or stack.enter_context(lease())
        database = stack.enter_context(Database(url, vectors=vectors))
        if schema == "migrate":
            migrate(database)
        elif schema == "check":
            with database.connection() as connection:
                check_schema(connection)
        yield database


def migrate(database: Database, *, known: list[Migration] | None = None) -> list[str]:
    """Bring the schema up to date; see :func:`~siglip_pipeline.store.schema.apply_migrations`.

    Returns:
        The migrations that were applied now, e.g. ``0001_initial``.

    Raises:
        DatabaseVersionError: the schema is newer than this program, or differs from it.
    """
    with database.connection() as connection:
        applied = apply_migrations(connection, known=known)
    if applied:
        database.drain()  # replace connections that were made before the extension existed
    return applied


def embedded_server(options: DatabaseOptions) -> EmbeddedPostgres:
    """Return the embedded server of a home, not started yet."""
    return EmbeddedPostgres(options.home, port=options.port)
