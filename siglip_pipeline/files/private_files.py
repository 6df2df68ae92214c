"""Who may read what this program writes: its user alone, but for what is made for others."""

import logging
import os
import pwd
import stat
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

SERVER_USER: Final = "siglip-pg"
"""The system user that root runs the embedded Postgres as."""

_OTHERS: Final = 0o077
_usual_umask: int | None = None


def keep_files_private() -> None:
    """Have this process, and what it starts, make files for its own user alone.

    For entry points: a library leaves the umask of its process as it is.
    """
    global _usual_umask
    before = os.umask(_OTHERS)
    if _usual_umask is None:
        _usual_umask = before


def usual_mode(mode: int) -> int:
    """Return the mode of what is made for others too, such as uploads: as the user's umask says."""
    umask = _usual_umask
    if umask is None:
        umask = os.umask(_OTHERS)
        os.umask(umask)
    return mode & ~umask


def make_folders(folder: Path) -> None:
    """Make a folder that others may use, and those above it that are missing."""
    if not folder.exists():
        make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(usual_mode(0o777))


def private_home(home: Path) -> None:
    """Make SIGLIP_HOME where it is missing, and close it to all users but this one.

    What an earlier version made readable in it is out of reach then. Where root runs the embedded
    Postgres, the group of that server's user may pass through a home that was open or is new, and
    neither list nor read it; a home that root has closed stays closed.
    """
    made = not home.exists()
    make_folders(home.parent)
    home.mkdir(mode=0o700, exist_ok=True)
    status = home.stat()
    if status.st_uid != os.geteuid():
        return  # its owner's start closes it
    if status.st_mode & stat.S_ISVTX or home in (Path("/"), Path.home()):
        logger.warning(
            "SIGLIP_HOME=%s serves other purposes too and is left as readable as it is; name a "
            "folder of its own",
            home,
        )
        return
    wanted = 0o700
    if status.st_uid == 0 and (made or status.st_mode & 0o011):
        wanted = 0o710
        group = _server_group()
        if group is not None and group != status.st_gid:
            os.chown(home, -1, group)
    if stat.S_IMODE(status.st_mode) != wanted:
        home.chmod(wanted)


def _server_group() -> int | None:
    try:
        return pwd.getpwnam(SERVER_USER).pw_gid
    except KeyError:  # not made yet: no server runs
        return None
