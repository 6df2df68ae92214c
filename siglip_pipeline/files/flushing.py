"""Flush files and folders to disk, to survive a power loss."""

import errno
import os
from pathlib import Path


def to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


def tree_to_disk(folder: Path) -> None:
    """Flush a folder with all that is below it, but for what links lead to."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            to_disk(path)
    to_disk(folder)
