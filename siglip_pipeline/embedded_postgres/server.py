"""The embedded Postgres: a small launcher over the binaries that a wheel brings.

Who may use the server, and when it ends, is kept in advisory locks that the kernel releases even
for a process that was killed:

    postgres.users   each user holds it shared; a leaving user that gets it alone stops the server
    postgres.lock    held alone while the server is started or stopped
    postgres.keep    a marker of ``db start``: the server runs on without users
"""

import fcntl
import logging
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from siglip_pipeline.embedded_postgres import binaries, cluster, home_record, postmaster, tuning
from siglip_pipeline.embedded_postgres.postmaster import SUPERUSER
from siglip_pipeline.errors import EmbeddedDatabaseError
from siglip_pipeline.files.flushing import to_disk
from siglip_pipeline.files.log_rotation import shorten
from siglip_pipeline.files.private_files import private_home

logger = logging.getLogger(__name__)

DATABASE = "siglip"
STOP_SECONDS = 60.0
# A segment of write-ahead log, which a server that recovers may have to make.
NEEDED_BYTES = 16 * tuning.MIB
LOG_BYTES_KEPT = 16 * tuning.MIB


class EmbeddedPostgres:
    """The server of one home folder. Any number of processes may use it at once.

    Args:
        home: ``SIGLIP_HOME``; the cluster lives in ``home/postgres``, or below
            ``/var/lib/siglip-pipeline`` where root's helper user cannot reach the home.
        port: also listen on ``127.0.0.1:port``, with the password in ``home/postgres.password``;
            None: the Unix socket only.
    """

    def __init__(self, home: Path, *, port: int | None = None) -> None:
        self.home = home.expanduser().resolve()
        self.port = port
        self._account: binaries.Account | None = None
        self._data: Path | None = None
        self._child: subprocess.Popen[bytes] | None = None

    # -- use ------------------------------------------------------------------------------------

    @contextmanager
    def lease(self) -> Iterator[str]:
        """Use the server: start it if necessary; the last user stops it.

        Yields:
            The URL of database ``siglip``, made if missing.

        Raises:
            EmbeddedDatabaseError: the server cannot be started.
        """
        self._make_home()
        with self._lock_file("postgres.users") as users:
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                yield self._start()
            finally:
                self._leave(users)

    def _leave(self, users: int) -> None:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process still uses it, and stops it later
        if not self._keep_marker.exists():
            with self._alone():
                self._stop()

    def keep(self) -> str:
        """Start the server and leave it running until :meth:`stop` (``db start``)."""
        self._make_home()
        self._keep_marker.touch()
        return self._start()

    def _make_home(self) -> None:
        _ = self.account  # made first: the home is closed to all but its group
        private_home(self.home)
        # Whether the server's user can enter the home is known only now.
        self._data = binaries.data_folder(self.home, self.account)

    @property
    def _keep_marker(self) -> Path:
        return self.home / "postgres.keep"

    def in_use(self) -> bool:
        """Return whether a process holds a lease."""
        if not self.home.exists():
            return False
        with self._lock_file("postgres.users") as users:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock_file("postgres.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _lock_file(self, name: str) -> Iterator[int]:
        # Never unlinked: other processes would not see a lock on an unlinked file.
        descriptor = os.open(self.home / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    # -- start and stop ------------------------------------------------------------------------

    def start(self) -> str:
        """Start the server if necessary; return the URL of database ``siglip``.

        One process starts it at a time. Waits for crash recovery as long as the server lives,
        however much write-ahead log it replays.

        Raises:
            EmbeddedDatabaseError: with the end of the server's log.
        """
        self._make_home()
        return self._start()

    def _start(self) -> str:
        self.shorten_log()
        with self._alone():
            with home_record.recorded(self.home, self.data):
                if postmaster.find(self.data) is None:
                    binaries.check_processor()
                    postmaster.remove_remains(self.data)
                    cluster.initialise(self.data, self.account)
                    self._launch()
                self._await_ready()
            self._ensure_database(DATABASE)
        return self.url()

    def stop(self, *, force: bool = False) -> bool:
        """Stop the server and forget ``keep`` (``db stop``); False when it was not running.

        Raises:
            EmbeddedDatabaseError: other processes use it and ``force`` is not set.
        """
        if not self.home.exists():
            return False
        if not force and self.in_use():
            raise EmbeddedDatabaseError(
                f"the server in {self.data} is in use by another process; stop that first (Ctrl-C "
                "in its terminal), or stop the server with --force"
            )
        self._keep_marker.unlink(missing_ok=True)
        with self._alone():
            return self._stop()

    def _stop(self) -> bool:
        running = postmaster.find(self.data)
        if running is None:
            return False
        # Fast shutdown (SIGINT) rolls open transactions back; immediate (SIGQUIT) needs recovery.
        for number in (signal.SIGINT, signal.SIGQUIT):
            with suppress(ProcessLookupError):
                os.kill(running.pid, number)
            if self._await_end(running.pid, STOP_SECONDS):
                break
            logger.warning(
                "Postgres %d still runs %.0f s after signal %d", running.pid, STOP_SECONDS, number
            )
        else:
            raise EmbeddedDatabaseError(
                f"Postgres (pid {running.pid}, {self.data}) does not end; see {self.log}"
            )
        if running.socket_folder is not None:
            binaries.remove_sockets(running.socket_folder)
        return True

    def _await_end(self, pid: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._child is not None and self._child.pid == pid:
                self._child.poll()  # reaps it: a zombie would look alive to others
            if not postmaster.is_postgres_of(pid, self.data):
                return True
            time.sleep(0.02)
        return False

    # -- properties -----------------------------------------------------------------------------

    @property
    def account(self) -> binaries.Account:
        """The system user that the server runs as."""
        if self._account is None:
            self._account = binaries.server_account()
        return self._account

    @property
    def data(self) -> Path:
        """The cluster's folder."""
        # Asking takes a child process where the server runs as another user.
        return self._data or binaries.data_folder(self.home, self.account)

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.data.parent / "postgres.log"

    def shorten_log(self) -> None:
        """Rotate the log if it is long; the server keeps writing to the same file."""
        shorten(self.log, most_bytes=LOG_BYTES_KEPT)

    def has_process(self) -> bool:
        """Return whether a server process lives, without connecting to it."""
        return postmaster.find(self.data) is not None

    def is_running(self) -> bool:
        """Return whether the server answers for this data folder."""
        if not self.home.exists() or (running := postmaster.find(self.data)) is None:
            return False
        try:
            postmaster.check_identity(running, self.data)
        except (psycopg.Error, EmbeddedDatabaseError):
            return False
        return True

    def url(self, database: str = DATABASE) -> str:
        """Return a ``postgresql://`` URL over the Unix socket, for psycopg.

        Raises:
            EmbeddedDatabaseError: the server does not run.
        """
        running = postmaster.find(self.data)
        if running is None or running.socket_folder is None:
            raise EmbeddedDatabaseError(f"no Postgres is running in {self.data}")
        host = quote(str(running.socket_folder), safe="/")
        return f"postgresql://{SUPERUSER}@/{database}?host={host}&port={running.port}"

    def tcp_url(self, database: str = DATABASE) -> str:
        """Return a URL over 127.0.0.1 with the password, for workers that cannot use the socket.

        Raises:
            EmbeddedDatabaseError: the server was started without a port.
        """
        if self.port is None:
            raise EmbeddedDatabaseError(
                "the embedded server listens on its Unix socket only; set SIGLIP_EMBEDDED_PORT"
            )
        password = self._password_file.read_text().strip()
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{self.port}/{database}"

    def dagster_url(self, database: str = "dagster") -> str:
        """Return the URL of a database for Dagster's storage, made if missing.

        The driver is named: with a bare ``postgresql://`` SQLAlchemy 2.1 picks psycopg 3, over
        which dagster-postgres cannot listen for notifications.
        """
        self._ensure_database(database)
        return self.url(database).replace("postgresql://", "postgresql+psycopg2://", 1)

    def configuration(self) -> dict[str, str]:
        """Return the settings that this launcher gives the server (``db status``)."""
        return tuning.server_settings(tuning.this_machine())

    @property
    def _password_file(self) -> Path:
        return self.home / "postgres.password"

    # -- state -----------------------------------------------------------------------------------

    def _await_ready(self) -> None:
        began = said = time.monotonic()
        while True:
            reason = "it has not opened its socket yet"
            running = postmaster.find(self.data)
            if running is not None and running.socket_folder is not None:
                try:
                    return postmaster.check_identity(running, self.data)
                except psycopg.OperationalError as error:
                    reason = str(error).strip()
            elif running is None and (self._child is None or self._child.poll() is not None):
                raise EmbeddedDatabaseError(
                    f"Postgres did not start{self._room()}:\n{self._log_tail()}"
                )
            if time.monotonic() - said > 5:
                said = time.monotonic()
                last = self._log_tail(1) or reason
                logger.warning("waiting for Postgres, %.0f s so far: %s", said - began, last)
            time.sleep(0.05)

    def _room(self) -> str:
        """Return a remark if the disk is full, which the server may be unable to log."""
        free = shutil.disk_usage(self.data.parent).free
        if free >= NEEDED_BYTES:
            return ""
        return f"; there is no room left on the disk of {self.data.parent}, free some there"

    def _log_tail(self, lines: int = 15) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _launch(self) -> None:
        cluster.write_configuration(self.data, self.account, self.configuration(), port=self.port)
        command = [str(binaries.find_binaries(self.account) / "postgres"), "-D", str(self.data)]
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                cwd="/",
                env=cluster.server_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: Ctrl-C in the terminal must not stop it.
                start_new_session=True,
                **self.account.popen_options(),
            )

    def _ensure_database(self, name: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if found.fetchone() is None:
                with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            if self.port is not None and name == DATABASE:
                self._set_password(connection)

    def _set_password(self, connection: psycopg.Connection[Any]) -> None:
        if not self._password_file.exists():
            descriptor = os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(24))
            to_disk(self._password_file)
            to_disk(self.home)
        connection.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                sql.Identifier(SUPERUSER), sql.Literal(self._password_file.read_text().strip())
            )
        )
