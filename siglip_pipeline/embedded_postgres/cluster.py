"""The embedded server's cluster: created once, configured at each start."""

import logging
import pwd
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from siglip_pipeline.embedded_postgres import binaries
from siglip_pipeline.embedded_postgres.postmaster import SUPERUSER
from siglip_pipeline.embedded_postgres.programs import run_program
from siglip_pipeline.errors import EmbeddedDatabaseError
from siglip_pipeline.files.flushing import to_disk

logger = logging.getLogger(__name__)

INITDB_SECONDS: Final = 300.0
"""initdb writes and syncs about 40 MB: one or two seconds on an idle disk."""


def initialise(data: Path, account: binaries.Account) -> None:
    """Run initdb beside the data folder and move the result there, so it is never incomplete.

    Raises:
        EmbeddedDatabaseError: it fails, e.g. for a user without a name.
    """
    if (data / "PG_VERSION").exists():
        return
    try:
        pwd.getpwuid(account.uid)
    except KeyError as error:  # `docker run --user 1234`
        raise EmbeddedDatabaseError(
            f"Postgres makes no database for user id {account.uid} without a name in passwd: "
            "run as a user that has one, add one (a line "
            f"siglip:x:{account.uid}:{account.gid}::/:/bin/false), or set SIGLIP_DATABASE_URL"
        ) from error
    parent = data.parent
    if not parent.exists():  # a home is there already
        binaries.passable_folder(binaries.SYSTEM_FOLDER)
        binaries.passable_folder(parent)
    partial = Path(tempfile.mkdtemp(prefix="postgres.new.", dir=parent))
    account.own(partial)
    logger.info("making a new database cluster in %s", data)
    command = [
        *(str(binaries.find_binaries(account) / "initdb"), "-D", str(partial), "-U", SUPERUSER),
        *("--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8"),
        *("--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"),
    ]
    try:
        done = run_program(
            command,
            seconds=INITDB_SECONDS,
            cwd="/",
            env=server_environment(),
            **account.popen_options(),
        )
        if done.returncode != 0:
            raise EmbeddedDatabaseError(f"initdb failed:\n{done.stdout.strip()}")
    except EmbeddedDatabaseError:
        shutil.rmtree(partial, ignore_errors=True)  # made by mkdtemp above
        raise
    with (partial / "postgresql.conf").open("a") as configuration:
        configuration.write("\n# Written at each start by siglip-pipeline:\n")
        configuration.write("include = 'siglip.conf'\n")
    to_disk(partial / "postgresql.conf")  # initdb has flushed the others
    partial.rename(data)
    to_disk(parent)


def write_configuration(
    data: Path, account: binaries.Account, settings: Mapping[str, str], *, port: int | None
) -> None:
    """Write ``siglip.conf``, which the cluster's own configuration includes.

    Args:
        data: the cluster's folder.
        account: that the server runs as.
        settings: of :func:`tuning.server_settings`.
        port: on 127.0.0.1; None: the Unix socket only.
    """
    folder = binaries.socket_folder(data, account)
    settings = {**settings} | {
        "unix_socket_directories": str(folder),
        "unix_socket_permissions": "0700",
        "listen_addresses": "" if port is None else "127.0.0.1",
        "port": str(port or 5432),
        "log_timezone": "UTC",
        "timezone": "UTC",
        "cluster_name": "siglip-pipeline",
    }
    lines = [f"{name} = '{_quoted(value)}'\n" for name, value in settings.items()]
    path = data / "siglip.conf"
    path.write_text("".join(lines))
    account.own(path)


def server_environment() -> dict[str, str]:
    """Return the environment without PG* variables and locale, which would change the server."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _quoted(value: str) -> str:
    return value.replace("'", "''")
