"""The CPU of this machine: its cores, and what it can do."""

import os
from pathlib import Path


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the features of this CPU; none without /proc/cpuinfo."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))
    except OSError:
        return frozenset()
