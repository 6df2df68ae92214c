"""Decoding child processes, and the watch over them.

A child is a fresh interpreter (not a fork: the parent may hold threads and locks) that takes jobs
over a socket, one after the other. The parent ends it when it makes no progress or takes too much
memory, and says which of the two it was.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from typing import Any, Final

import psutil

from siglip_pipeline.errors import StorageFullError, VideoError
from siglip_pipeline.video.jobs import DecodeOptions, ExtractJob, FrameReport

POLL_SECONDS: Final = 0.1
"""How often memory and progress are looked at."""

START_SECONDS: Final = 120.0
"""A child gets this much time for importing its libraries, before it is given the usual limit."""

BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from siglip_pipeline.video.worker import main; main(int(sys.argv[1]), parent=int(sys.argv[3]))"
)


class Child:
    """One decoding process and the job that it has."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *("-c", BOOT, str(theirs.fileno()), json.dumps(sys.path), str(os.getpid())),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the parent, which ends its children
            )
        self._connection = Connection(ours.detach())
        self._ready = False
        self._job: ExtractJob | None = None
        self._options = DecodeOptions()
        self._deadline = 0.0
        self._result: FrameReport | VideoError | StorageFullError | None = None

    @property
    def connection(self) -> Connection:
        """The parent's end of the socket."""
        return self._connection

    @property
    def is_alive(self) -> bool:
        """Whether the child can take another job."""
        return not self._connection.closed and self._process.poll() is None

    def start(self, job: ExtractJob, options: DecodeOptions) -> None:
        """Give the child a job; it must be idle."""
        self._job, self._options, self._result = job, options, None
        self._deadline = time.monotonic() + (
            options.stall_seconds if self._ready else max(START_SECONDS, options.stall_seconds)
        )
        try:
            self._connection.send(job)
        except OSError:  # it died while idle
            self._fail(self._death())

    def result(self) -> FrameReport | VideoError:
        """The outcome of the job, once :func:`wait_for_any` has returned this child.

        Raises:
            StorageFullError: there was no room for the frames.
        """
        assert self._result is not None
        if isinstance(self._result, StorageFullError):
            raise self._result
        return self._result

    def is_done(self) -> bool:
        """Read what the child says and check on it; true when its job is over."""
        try:
            while self._result is None and self._connection.poll():
                self._take(self._connection.recv())
        except (EOFError, OSError):
            self._fail(self._death())
        if self._result is None and time.monotonic() > self._deadline:
            self._fail(
                f"the decoder made no progress for {self._options.stall_seconds:g} s and was "
                "ended; the file is damaged"
            )
        if self._result is None and self.memory_mib() > self._options.memory_mib:
            self._fail(
                f"decoding took more than {self._options.memory_mib} MiB of memory and was ended; "
                "raise SIGLIP_DECODE_MEMORY_MIB if the video really is so large"
            )
        return self._result is not None

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if not self._connection.closed:
            self._connection.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _take(self, message: tuple[str, Any]) -> None:
        kind, value = message
        assert self._job is not None
        if kind in ("ready", "progress"):
            self._ready = True
            self._deadline = time.monotonic() + self._options.stall_seconds
        elif kind == "done":
            self._result = value
        elif kind == "full":
            self._result = StorageFullError(value)
        else:
            self._result = VideoError(self._job.video, value)

    def _fail(self, reason: str) -> None:
        assert self._job is not None
        self.end()
        self._result = VideoError(self._job.video, reason)

    def _death(self) -> str:
        """Why the child is gone."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the decoder stopped answering and was ended"
        if code >= 0:
            return f"the decoder exited with status {code}; the log has its last words"
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the decoder crashed with {name}{hint}; the file is damaged"

    def memory_mib(self) -> float:
        """Resident memory of the process, in MiB; 0 when it is gone."""
        try:
            return float(psutil.Process(self._process.pid).memory_info().rss / 2**20)
        except psutil.Error:
            return 0.0


def wait_for_any(children: Iterable[Child]) -> list[Child]:
    """Wait until at least one of the children is done with its job; those that are."""
    children = list(children)
    while True:
        done = [child for child in children if child.is_done()]
        if done:
            return done
        wait([child.connection for child in children], timeout=POLL_SECONDS)
