"""Processes that may end at any moment, between a look at their list and a look at one of them."""

import contextlib
import os

import psutil

from siglip_pipeline.cpu import available_cores


def is_busy() -> bool:
    """Return whether the machine has so much to do that times say nothing of what is tested."""
    return os.getloadavg()[0] >= 2 * available_cores()


def cpu_seconds() -> float:
    """Return the CPU seconds of this process, and of its children that were waited for."""
    return sum(os.times()[:4])


def command_of(process: psutil.Process) -> str:
    """Return the command line of a process; empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return " ".join(process.cmdline())
    return ""


def has_ended(pid: int) -> bool:
    """Return whether a process runs no more; its parent may not have asked for its status yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def descendants(word: str, *, of: int | None = None) -> list[psutil.Process]:
    """Return the running descendants of a process with a word on their command line.

    Args:
        word: any part of the command line.
        of: the id of the process; None for this one.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(of).children(recursive=True)
        return [process for process in family if word in command_of(process)]
    return []
