"""Memory of a decoding child."""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path
from typing import Final

import pyarrow as pa

M_MMAP_THRESHOLD: Final = -3
"""Parameter number of ``mallopt``, from glibc's malloc.h."""
MMAP_THRESHOLD_BYTES: Final = 2**17
"""glibc's default (mallopt(3)). Unless set, it rises whenever a larger block is freed."""

_status = None
with contextlib.suppress(OSError):
    # Open it at import: a child cannot open files later.
    _status = Path("/proc/self/status").open("rb", buffering=0)  # noqa: SIM115


def return_freed_memory() -> None:
    """Make this process return large blocks to the system when they are freed.

    Otherwise the memory of a long file's index stays in the heap as holes, and Arrow's pool keeps
    the memory of row groups.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc has mallopt
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process."""
    if _status is not None:
        # getrusage would include the parent's peak, which Linux keeps over exec.
        _status.seek(0)
        for line in _status.read(65_536).splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
