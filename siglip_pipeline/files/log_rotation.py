"""Keep log files short that services write all the time."""

import os
import shutil
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 32 * 2**20
"""A service's log that is longer is put aside."""


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
