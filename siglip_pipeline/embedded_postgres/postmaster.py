"""Find the live server of a data folder, and remove what a dead one left."""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]
import psycopg

from siglip_pipeline.embedded_postgres import binaries
from siglip_pipeline.errors import EmbeddedDatabaseError

logger = logging.getLogger(__name__)

SUPERUSER = "postgres"
ORPHAN_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Postmaster:
    """A server process that lives, as ``postmaster.pid`` describes it."""

    pid: int
    port: int | None = None
    """None until the server has written it."""
    socket_folder: Path | None = None


def find(data: Path) -> Postmaster | None:
    """Return the live server of this data folder, ready or not."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        pid = int(lines[0])
    except (OSError, ValueError, IndexError):
        return None
    if not is_postgres_of(pid, data):
        return None
    # The file grows while the server starts: a missing or empty line has not been written yet.
    port, folder = (*lines[3:5], "", "")[:2]
    if not port.isdigit() or not folder.startswith("/"):
        return Postmaster(pid=pid)
    return Postmaster(pid=pid, port=int(port), socket_folder=Path(folder))


def is_postgres_of(pid: int, data: Path) -> bool:
    """Return whether a pid is a live postgres of this folder, not a zombie or a reused pid."""
    try:
        process = psutil.Process(pid)
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and process.name() == "postgres"
            and str(data) in process.cmdline()
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def check_identity(running: Postmaster, data: Path) -> None:
    """Connect, and check that the server uses this data folder.

    Raises:
        psycopg.OperationalError: it does not answer, or not yet.
        EmbeddedDatabaseError: another server answers.
    """
    with psycopg.connect(
        host=str(running.socket_folder),
        port=running.port,
        user=SUPERUSER,
        dbname="postgres",
        connect_timeout=5,
        autocommit=True,
    ) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    if row is None or Path(row[0]) != data:
        raise EmbeddedDatabaseError(
            f"the Postgres at {running.socket_folder} serves {row and row[0]}, not {data}"
        )


def remove_remains(data: Path) -> None:
    """Remove the files of a killed server, after its last process has ended."""
    _end_orphans(data)
    pid_file = data / "postmaster.pid"
    try:
        lines = pid_file.read_text().splitlines()
    except OSError:
        return
    logger.info("removing %s: its server is dead", pid_file)
    # A copied data folder holds the original server's file, whose sockets must stay.
    if len(lines) > 4 and lines[1] == str(data):
        binaries.remove_sockets(Path(lines[4]))
    pid_file.unlink(missing_ok=True)


def _end_orphans(data: Path) -> None:
    """Wait for the backends of a killed postmaster, and kill those that do not exit.

    Two servers on one data folder would destroy it.
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    while orphans := _orphans(data):
        if time.monotonic() > deadline:
            logger.warning("ending backends of a dead server: %s", [p.pid for p in orphans])
            for process in orphans:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(orphans, timeout=5)
        time.sleep(0.05)


def _orphans(data: Path) -> list[psutil.Process]:
    """Return the backends: processes whose working directory is the data folder."""
    found = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] != "postgres":
            continue
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(data):
                found.append(process)
    return found
