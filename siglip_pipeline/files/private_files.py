"""File modes: private to the user, except what is made for others."""

import contextlib
import logging
import os
import pwd
import re
import stat
import threading
from pathlib import Path
from typing import Final

from siglip_pipeline.errors import NO_ROOM, SettingsError

logger = logging.getLogger(__name__)

SERVER_USER: Final = "siglip-pg"
"""The system user that root runs the embedded Postgres as."""

_OTHERS: Final = 0o077
_usual_umask: int | None = None
_reading_umask = threading.Lock()


def keep_files_private() -> None:
    """Set the umask so that this process and its children make private files.

    For entry points only: a library must not change the umask of its process.
    """
    global _usual_umask
    before = os.umask(_OTHERS)
    if _usual_umask is None:
        _usual_umask = before


def usual_mode(mode: int) -> int:
    """Return the mode of files made for others too, such as uploads, by the user's umask."""
    return mode & ~(current_umask() if _usual_umask is None else _usual_umask)


def current_umask() -> int:
    """Return the umask of this process.

    It is read from Linux's ``/proc``: ``os.umask`` only tells it by setting another, and two
    threads that do so at once can leave the wrong one set.
    """
    with contextlib.suppress(OSError):
        found = re.search(
            r"^Umask:\s*([0-7]+)", Path("/proc/self/status").read_text(), re.MULTILINE
        )
        if found:
            return int(found[1], 8)
    with _reading_umask:
        umask = os.umask(_OTHERS)
        os.umask(umask)
    return umask


def make_folders(folder: Path) -> None:
    """Make a folder that others may use, and its missing parents."""
    if not folder.exists():
        make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(usual_mode(0o777))


def private_home(home: Path) -> None:
    """Make SIGLIP_HOME if it is missing, and remove the access of other users.

    This also hides files in it that an earlier version made readable. If root runs the embedded
    Postgres, the group of the server's user may traverse a home that was open or is new, but not
    list or read it; a home that root has closed stays closed.

    Raises:
        SettingsError: it cannot be made, or is no folder.
    """
    try:
        made = not home.exists()
        make_folders(home.parent)
        home.mkdir(mode=0o700, exist_ok=True)
        status = home.stat()
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise SettingsError(
            f"SIGLIP_HOME={home} cannot be made: {error.strerror}; set it to a folder on a local "
            "disk that this user may write"
        ) from error
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
