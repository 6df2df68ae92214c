"""Delete old compute logs: Dagster never expires them."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOG_SUFFIXES: Final = frozenset({".out", ".err", ".complete", ".partial"})
"""Suffixes of the files in which Dagster keeps the output of steps and ticks."""

_SECONDS_PER_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Removed:
    """How many files were removed, and their size."""

    files: int
    size_bytes: int


def remove_old_logs(folder: Path, *, days: float) -> Removed:
    """Remove Dagster's log files below a folder that have not been written to for ``days``.

    Remove folders that are empty afterwards. Leave all other files, and log files that cannot be
    removed.
    """
    before = time.time() - days * _SECONDS_PER_DAY
    # Read all ages first: removing a file updates the age of its folder.
    old = [path for path in folder.rglob("*") if _changed_at(path) < before]
    files = size_bytes = 0
    # Files come before their folder, so that the folder is empty by then.
    for path in sorted(old, reverse=True):
        try:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif path.suffix in LOG_SUFFIXES:
                size = path.lstat().st_size
                path.unlink()
                files, size_bytes = files + 1, size_bytes + size
        except OSError:  # not empty, already removed, or owned by another user
            continue
    return Removed(files, size_bytes)


def _changed_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # already removed
        return math.inf
