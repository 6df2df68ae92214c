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
"""glibc's own default (mallopt(3)), which otherwise rises with each large block that is freed."""

_status = None
with contextlib.suppress(OSError):
    # Opened while files can be: a child has no file system later.
    _status = Path("/proc/self/status").open("rb", buffering=0)  # noqa: SIM115


def return_freed_memory() -> None:
    """Have large blocks go back to the system when they are freed, in this whole process.

    Otherwise the index of a long file, which is read once to plan and once to decode, stays in the
    heap as holes, and Arrow's own pool keeps what row groups took.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc has mallopt
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def peak_memory_bytes() -> int:
    """Resident memory of this process at its largest."""
    if _status is not None:
        # getrusage would give the parent's peak where that is larger: Linux keeps it over exec.
        _status.seek(0)
        for line in _status.read(65_536).splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
