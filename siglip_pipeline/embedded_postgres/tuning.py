"""Postgres settings computed from this machine's memory and cores.

The embedded server shares the machine with a model and with decoders, so it takes a modest part
of the memory for itself; index builds raise ``maintenance_work_mem`` for their own session.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]

from siglip_pipeline.cpu import available_cores

MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The resources that the server shares."""

    memory_bytes: int
    cores: int
    shared_memory_bytes: int | None = None
    """Size of ``/dev/shm``, which parallel index builds use; None if there is none."""


def this_machine(cgroup: Path = Path("/sys/fs/cgroup")) -> Machine:
    """Return memory and cores of this machine, or of this process's container."""
    memory = psutil.virtual_memory().total
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            memory = min(memory, int((cgroup / name).read_text()))
        except (OSError, ValueError):  # no such controller, or the word "max"
            continue
    try:
        shared = os.statvfs("/dev/shm")
        shared_bytes: int | None = shared.f_frsize * shared.f_blocks
    except OSError:
        shared_bytes = None
    return Machine(memory_bytes=memory, cores=available_cores(), shared_memory_bytes=shared_bytes)


def server_settings(machine: Machine) -> dict[str, str]:
    """Return settings for ``postgresql.conf``.

    A crash loses nothing that was committed: ``fsync`` and ``synchronous_commit`` stay on. The
    write-ahead log is ``minimal`` since the embedded server has no replicas: filling a new table
    and building an index on it in one transaction then writes each page once, not twice.
    """
    memory = machine.memory_bytes
    return {
        "shared_buffers": _mib(memory * 0.15, 128 * MIB, 8 * GIB),
        "effective_cache_size": _mib(memory * 0.5, 256 * MIB, 64 * GIB),
        "maintenance_work_mem": _mib(memory * 0.04, 64 * MIB, 2 * GIB),
        "work_mem": _mib(memory * 0.002, 8 * MIB, 64 * MIB),
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "wal_buffers": "16MB",
        "min_wal_size": "256MB",
        "max_wal_size": _mib(memory * 0.15, 1 * GIB, 8 * GIB),
        "checkpoint_timeout": "15min",
        "checkpoint_completion_target": "0.9",
        "random_page_cost": "1.1",
        "max_connections": "200",
        "max_worker_processes": str(max(8, machine.cores + 4)),
        "max_parallel_workers": str(machine.cores),
        "max_parallel_workers_per_gather": str(max(0, machine.cores - 1)),
        "max_parallel_maintenance_workers": str(max(0, machine.cores - 1)),
        # Vector queries are short: compiling them costs more than it saves.
        "jit": "off",
    }


def _mib(wanted: float, low: int, high: int) -> str:
    return f"{int(min(max(wanted, low), high)) // MIB}MB"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """Memory and workers for one ``CREATE INDEX``."""

    memory_bytes: int
    """``maintenance_work_mem``: an HNSW graph that does not fit is built three times slower."""
    wanted_bytes: int
    """Memory that would hold the whole graph."""
    workers: int
    """Parallel workers beside the leader."""
    why: str
    """Reason of the choice, for the log."""


# For a server on another machine, whose memory is not known.
EXTERNAL_BUILD_BYTES = 2 * GIB
PARALLEL_ROWS = 10_000


def build_settings(
    rows: int, bytes_per_row: int, *, machine: Machine | None, free_bytes: int, workers: int
) -> BuildSettings:
    """Return memory and workers that fit the size of an index and the machine.

    Args:
        rows: to be indexed.
        bytes_per_row: memory that the builder takes for each.
        machine: the server's, when it is this one; None for a server elsewhere.
        free_bytes: memory that is free on this machine.
        workers: what the server would allow.
    """
    wanted = int(rows * bytes_per_row * 1.2) + 16 * MIB
    limit = EXTERNAL_BUILD_BYTES if machine is None else free_bytes // 2
    memory = max(64 * MIB, min(wanted, limit))
    why = "the whole graph fits" if memory >= wanted else "the graph does not fit: slower"
    if rows < PARALLEL_ROWS:
        workers, why = 0, f"{why}; too few rows for workers"
    elif machine is not None and workers > 0:
        shared = machine.shared_memory_bytes
        if shared is not None and shared < memory * 1.1:
            # A parallel build keeps its graph in /dev/shm, which containers limit to 64 MiB.
            why = f"{why}; no workers, /dev/shm holds only {shared // MIB} MiB"
            workers = 0
    return BuildSettings(memory_bytes=memory, wanted_bytes=wanted, workers=workers, why=why)
