"""Delete old log files: Dagster never expires what steps and ticks wrote."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOG_SUFFIXES: Final = frozenset({".out", ".err", ".complete", ".partial"})
"""Files in which Dagster keeps what steps and ticks have written."""

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


def _changed_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # gone already
        return math.inf
