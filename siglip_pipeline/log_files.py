"""Log files: removing old ones, and keeping those that are written all the time short."""

import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOG_SUFFIXES: Final = frozenset({".out", ".err", ".complete", ".partial"})
"""Files in which Dagster keeps what steps and ticks have written."""

MOST_BYTES: Final = 32 * 2**20
"""A service's log that is longer is put aside."""

_SECONDS_PER_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed."""

    files: int
    size_bytes: int


def remove_old_logs(folder: Path, *, days: float) -> Removed:
    """Remove Dagster's log files below a folder that have not been written to for so many days.

    Folders that are empty afterwards go too. Other files stay, whatever their age, and so does what
    cannot be removed.
    """
    before = time.time() - days * _SECONDS_PER_DAY
    # All ages before anything is removed: that makes a folder look young.
    old = [path for path in folder.rglob("*") if _changed_at(path) < before]
    files = size_bytes = 0
    # Contents before their folder, so that a folder is empty when its turn comes.
    for path in sorted(old, reverse=True):
        try:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif path.suffix in LOG_SUFFIXES:
                size = path.lstat().st_size
                path.unlink()
                files, size_bytes = files + 1, size_bytes + size
        except OSError:  # not empty, gone already, or another user's
            continue
    return Removed(files, size_bytes)


def shorten(log: Path, *, most_bytes: int = MOST_BYTES) -> bool:
    """Move a log that has grown too long to ``<name>.1``, over the one before; True if it was.

    The file itself is emptied, not replaced: whoever has it open for appending writes on into it.
    """
    try:
        if log.stat().st_size <= most_bytes:
            return False
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)
    except OSError:
        return False
    return True


def _changed_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # gone already
        return math.inf
