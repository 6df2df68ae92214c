"""Rotate the log files of services."""

import os
import shutil
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 32 * 2**20
"""Longest log of a service before it is rotated."""


def shorten(log: Path, *, most_bytes: int = MOST_BYTES) -> bool:
    """Copy a log that is too long to ``<name>.1``, replacing the one before; return whether it was.

    The file itself is truncated, not replaced: processes that have it open for appending go on.
    """
    try:
        if log.stat().st_size <= most_bytes:
            return False
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)
    except OSError:
        return False
    return True
