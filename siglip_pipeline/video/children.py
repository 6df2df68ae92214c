"""Start decoding child processes, and enforce their limits.

A child is a new interpreter in a sandbox. It is not a fork, because the parent may have threads and
locks. It takes jobs over a socket, one after the other, with the open files of each. The parent
ends a child that makes no progress, or exceeds its time or memory, and reports which. Messages of a
child are not trusted: they are bounded, read without waiting, and parsed as JSON.
"""

import contextlib
import json
import math
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from multiprocessing.connection import wait
from typing import Any, Final

import psutil

from siglip_pipeline.settings import decoder_environment
from siglip_pipeline.video.child_jobs import Job, Limits
from siglip_pipeline.video.decode_options import Progress
from siglip_pipeline.video.wire import Wire, WireError

POLL_SECONDS: Final = 0.1
"""Interval of the checks of memory and progress."""

REAP_SECONDS: Final = 5.0
"""Time to wait for a killed process, which takes longer than milliseconds if its disk hangs."""

START_SECONDS: Final = 120.0
"""Time that a child has to import its libraries. The limits of its job apply afterwards."""

MAX_MESSAGES: Final = 100
"""Messages of a child that are read in one check."""

SPARE_MIB: Final = 1024
"""Allocations fail above twice the limit of resident memory plus this. It supplements the check of
memory, which happens only ten times a second."""

_NICE: Final = 15

BOOT: Final = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from siglip_pipeline.video.worker import main; main(**arguments)"
)


class JobError(Exception):
    """A job that failed.

    Attributes:
        kind: ``failed``, ``full`` (no room), ``late``, ``interrupted`` (no fault of the file); for
            a picture also ``too large``, ``refused``.
        reason: one sentence for a person.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Child:
    """One decoding process and its job.

    Args:
        modules: more modules that the child imports, which define jobs.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair()
        arguments = {
            "path": sys.path,
            "descriptor": theirs.fileno(),
            "parent": os.getpid(),
            "modules": list(modules),
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT, json.dumps(arguments)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=decoder_environment(),
                start_new_session=True,  # only the parent gets Ctrl-C; it ends its children
            )
        ours.setblocking(False)
        self._wire = Wire(ours)
        self._limits = Limits(total_seconds=math.inf)
        self._stalled_at = self._late_at = math.inf
        self._outcome: tuple[Any, JobError | None] | None = (None, None)
        self._waiting: tuple[bytes, list[int]] | None = None
        self.on_progress: Progress = lambda step: None
        """Called with what the child says of its progress."""
        self.sandbox: dict[str, Any] | None = None
        """The restrictions in force for the child; None until it is ready."""

    def fileno(self) -> int:
        """Return the descriptor of the parent's end of the socket."""
        return self._wire.fileno()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the child can take another job after its present one."""
        return not self._wire.is_closed and self._process.poll() is None

    @property
    def is_idle(self) -> bool:
        """Whether it has no job."""
        return self._outcome is not None

    def start(self, job: Job, limits: Limits, descriptors: Sequence[int] = ()) -> None:
        """Give the child a job; it must be idle.

        Args:
            job: the work.
            limits: limits of the job; time counts from when the child is ready.
            descriptors: open files that the job needs; the caller may close them afterwards.
        """
        self._limits, self._outcome = limits, None
        self._set_deadlines(first=True)
        self._waiting = pickle.dumps(job), [os.dup(descriptor) for descriptor in descriptors]
        if self.sandbox is not None:
            self._send()

    def _send(self) -> None:
        """Limit the process, then send it the job that waits for it.

        In this order the kernel's limit of CPU time holds even if this process stands still.
        """
        self._limit_resources()
        assert self._waiting is not None
        try:
            self._wire.send(*self._waiting)
        except OSError:  # it died while idle
            self._fail(*self._death())
        self._forget_waiting()

    def _forget_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        for descriptor in waiting[1] if waiting else []:
            os.close(descriptor)

    def run(self, job: Job, limits: Limits, descriptors: Sequence[int] = ()) -> Any:
        """Give the child a job, wait for it, and return its value.

        Raises:
            JobError: the job failed.
        """
        self.start(job, limits, descriptors)
        wait_for_any([self])
        return self.value()

    def value(self) -> Any:
        """Return the value of the job, after :func:`wait_for_any` has returned this child.

        Raises:
            JobError: the job failed.
        """
        assert self._outcome is not None
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    def is_done(self) -> bool:
        """Read the child's messages and check its limits; return whether its job has ended."""
        try:
            for _ in range(MAX_MESSAGES):  # limits are checked even if messages never end
                if self._outcome is not None or (message := self._wire.poll()) is None:
                    break
                self._take(message)
        except (EOFError, OSError):
            self._fail(*self._death())
        except (WireError, ValueError, TypeError, RecursionError):
            self._fail("the decoder gave an answer that makes no sense; the file is damaged")
        now, limits = time.monotonic(), self._limits
        if self._outcome is None and now > self._late_at:
            self._fail(f"it took longer than {limits.total_seconds:g} s and was ended", "late")
        if self._outcome is None and now > self._stalled_at and self.sandbox is None:
            self._fail("the decoder did not start in time", "interrupted")
        if self._outcome is None and now > self._stalled_at:
            self._fail(
                f"the decoder made no progress for {limits.stall_seconds:g} s and was "
                "ended; the file is damaged"
            )
        if self._outcome is None and self.memory_mib() > limits.memory_mib:
            self._fail(
                f"decoding took more than {limits.memory_mib} MiB of memory and was ended; "
                "raise SIGLIP_DECODE_MEMORY_MIB if the video really is so large"
            )
        return self._outcome is not None

    def yield_to_others(self) -> None:
        """Lower its priority: others of the machine go first."""
        with contextlib.suppress(psutil.Error):  # gone
            psutil.Process(self.pid).nice(_NICE)

    def kill(self) -> None:
        """Kill the process; callable from any thread. The thread that waits gets a JobError."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process, wait for its end, and close the socket."""
        self._wire.close()
        self._forget_waiting()
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it waits in the kernel
            self._process.wait(timeout=REAP_SECONDS)

    def memory_mib(self) -> float:
        """Return the resident memory of the process, in MiB; 0 if it has ended."""
        try:
            return float(psutil.Process(self._process.pid).memory_info().rss / 2**20)
        except psutil.Error:
            return 0.0

    def _set_deadlines(self, *, first: bool) -> None:
        now, limits = time.monotonic(), self._limits
        if self.sandbox is None:
            self._stalled_at = now + max(START_SECONDS, limits.stall_seconds)
            return
        self._stalled_at = now + limits.stall_seconds
        if first:
            self._late_at = now + limits.total_seconds

    def _limit_resources(self) -> None:
        """Set the kernel's resource limits of the process, which cannot change them itself."""
        limits = self._limits
        bounds = {
            resource.RLIMIT_DATA: (2 * limits.memory_mib + SPARE_MIB) * 2**20,
            resource.RLIMIT_FSIZE: limits.file_bytes,
        }
        with contextlib.suppress(OSError, AttributeError, psutil.Error):  # gone; no prlimit
            if self.sandbox is not None and math.isfinite(limits.total_seconds):
                times = psutil.Process(self.pid).cpu_times()
                seconds = times.user + times.system + limits.total_seconds * limits.threads
                bounds[resource.RLIMIT_CPU] = math.ceil(seconds)
            for kind, bound in bounds.items():
                _, hard = resource.prlimit(self.pid, kind)
                most = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
                resource.prlimit(self.pid, kind, (most, hard))

    def _take(self, message: bytes) -> None:
        kind, value = json.loads(message)
        if kind == "ready" and self.sandbox is None:
            self.sandbox = dict(value)
            self._set_deadlines(first=True)
            if self._waiting is not None:
                self._send()
        elif kind == "progress":
            self._set_deadlines(first=False)
            self.on_progress(int(value))
        elif kind == "done":
            self._outcome = value, None
        else:
            self._outcome = None, JobError(str(kind), str(value))

    def _fail(self, reason: str, kind: str = "failed") -> None:
        self.end()
        self._outcome = None, JobError(kind, reason)

    def _death(self) -> tuple[str, str]:
        """Return why the process ended, and the kind of :class:`JobError`."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the decoder stopped answering and was ended", "failed"
        kind = "interrupted" if self.sandbox is None else "failed"
        if code >= 0:
            return f"the decoder exited with status {code}; the log has its last words", kind
        name = signal.Signals(-code).name
        if name == "SIGKILL":
            return "the decoder was ended by SIGKILL (out of memory?)", "interrupted"
        if name == "SIGXCPU":
            # The kernel's limit applies if the parent checks too late.
            reason = f"it took more CPU time than {self._limits.total_seconds:g} s and was ended"
            return reason, "late"
        return f"the decoder crashed with {name}; the file is damaged", kind


def wait_for_any(children: Iterable[Child]) -> list[Child]:
    """Wait until the job of at least one child has ended, and return these children."""
    children = list(children)
    while True:
        done = [child for child in children if child.is_done()]
        if done:
            return done
        wait([child.fileno() for child in children], timeout=POLL_SECONDS)
