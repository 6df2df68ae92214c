"""The state file of a running `up`, and the clean-up after a killed one."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import psutil

from siglip_pipeline.errors import LaunchError
from siglip_pipeline.files.replacing import replacing
from siglip_pipeline.services.ports import SOCKET_PREFIX
from siglip_pipeline.text.in_words import counted

logger = logging.getLogger("siglip_pipeline.services.up")

_STOP_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Running:
    """The state file of another process's `up`."""

    pid: int
    dagster_url: str
    page_url: str


def running(home: Path) -> Running | None:
    """Return the `up` that runs in this home now; None if none does."""
    try:
        state = json.loads(_state_path(home).read_text())
        process = psutil.Process(int(state["pid"]))
        if started(process) != float(state["created"]):
            return None
        return Running(
            pid=process.pid,
            dagster_url=str(state["dagster_url"]),
            page_url=str(state["page_url"]),
        )
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the home's lock; the kernel releases it when this process ends, however it ends."""
    lock: IO[str]
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = running(home)
            where = f" as process {other.pid}, at {other.dagster_url}" if other else ""
            raise LaunchError(
                f"the services of SIGLIP_HOME={home} are running already{where}; stop them there, "
                "or set another SIGLIP_HOME"
            ) from error
        yield


def write_state(
    home: Path, *, dagster_url: str, page_url: str, sockets: Path, children: Iterable[int]
) -> None:
    """Write the state file: this process, the addresses of its services, and their process ids.

    Args:
        home: ``SIGLIP_HOME``.
        dagster_url: where Dagster's UI answers.
        page_url: where the search page answers.
        sockets: the folder of :func:`~siglip_pipeline.services.ports.socket_folder`.
        children: the process ids.
    """
    state: dict[str, Any] = {
        "pid": os.getpid(),
        "created": started(psutil.Process()),
        "dagster_url": dagster_url,
        "page_url": page_url,
        "page_port": int(page_url.rpartition(":")[2]),
        "sockets": str(sockets),
        "children": [],
    }
    for pid in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            created = started(psutil.Process(pid))
            state["children"].append({"pid": pid, "created": created})
    with replacing(_state_path(home)) as file:
        file.write(json.dumps(state).encode())


def forget_state(home: Path) -> None:
    """Remove the state file."""
    _state_path(home).unlink(missing_ok=True)


def end_leftovers(home: Path) -> None:
    """End children of a killed `up`, known by process id and start time, and remove its sockets."""
    try:
        state = json.loads(_state_path(home).read_text())
        children, sockets = state["children"], Path(state.get("sockets", ""))
    except (OSError, ValueError, KeyError):
        return
    processes: list[psutil.Process] = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(child["pid"]))
            if started(process) == float(child["created"]):
                processes += [process, *process.children(recursive=True)]
    if processes:
        left = counted(len(processes), "process", "processes")
        logger.warning("ending what a killed `up` left behind: %s", left)
        end_processes(processes)
    if sockets.name.startswith(SOCKET_PREFIX):
        shutil.rmtree(sockets, ignore_errors=True)


def end_processes(processes: Sequence[psutil.Process]) -> None:
    """Terminate processes; kill those that still run after some seconds."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=2)


def started(process: psutil.Process) -> float:
    """Return a process's start time by the monotonic clock.

    psutil's ``create_time`` is derived from the wall clock. It changes when that clock is set, and
    one process would then look like two.
    """
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text()
        return float(text.rpartition(")")[2].split()[19])  # starttime of proc_pid_stat(5), ticks
    except (OSError, IndexError, ValueError):  # not Linux, or ended: then this raises NoSuchProcess
        return float(process.create_time())


def _state_path(home: Path) -> Path:
    return home / "up.json"
