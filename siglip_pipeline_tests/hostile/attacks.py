"""What a decoder that was taken over would try; run inside a real decoding child."""

import ctypes
import fcntl
import hashlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siglip_pipeline.video.decode_options import Progress

PTRACE_ATTACH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackJob:
    """Tries each of :data:`ATTACKS`."""

    folder: str
    port: int
    parent: int

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """What became of each: ``refused``, another error, or what was got."""
        outcomes = {}
        for name, attack in ATTACKS.items():
            try:
                outcomes[name] = f"got {attack(self)!r}"
            except PermissionError:
                outcomes[name] = "refused"
            except (OSError, ValueError) as error:  # setrlimit's PermissionError is a ValueError
                outcomes[name] = "refused" if "not allowed" in str(error) else repr(error)
        return outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentJob:
    """Gives all variables of the child's environment."""

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """By name."""
        return dict(os.environ)


@dataclass(frozen=True, slots=True, kw_only=True)
class SayJob:
    """Answers with whatever a test wants, past all that a real job would do."""

    answer: Any
    times: int = 1

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """The answer."""
        return self.answer * self.times if self.times > 1 else self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class BabbleJob:
    """Says that it goes on, without end."""

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """Never ends."""
        wire = progress._wire  # type: ignore[attr-defined]
        while True:
            wire.send(b'["progress", 1]')


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatJob:
    """Sends a message to the parent, a few times a second, past all that writes proper ones."""

    message: bytes

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """Never ends."""
        while True:
            progress._wire.send(self.message)  # type: ignore[attr-defined]
            time.sleep(0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnJob:
    """Keeps several threads busy, and says that it goes on."""

    def perform(self, descriptors: Sequence[int], progress: Progress) -> Any:
        """Never ends."""
        data = bytes(2**26)
        for _ in range(3):
            threading.Thread(target=lambda: [hashlib.sha256(data) for _ in range(9**9)]).start()
        while True:
            progress(0)
            time.sleep(0.1)


def _connect(job: AttackJob) -> object:
    with socket.socket() as connection:
        connection.connect(("127.0.0.1", job.port))
        return connection.getpeername()


def _bind_udp(job: AttackJob) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()


def _fork(job: AttackJob) -> object:
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        os._exit(0)
    return pid


def _spawn(job: AttackJob) -> object:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    return os.waitpid(pid, 0)


def _libc(name: str, *arguments: int) -> int:
    ctypes.set_errno(0)
    result = int(ctypes.CDLL(None, use_errno=True)[name](*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _write(path: Path) -> object:
    return path.write_bytes(b"x")


ATTACKS: dict[str, Callable[[AttackJob], object]] = {
    "read a file": lambda job: Path("/etc/passwd").read_bytes()[:9],
    "read the parent's environment": lambda job: Path(f"/proc/{job.parent}/environ").read_bytes(),
    "list a folder": lambda job: [*Path("/").iterdir()],
    "see whether a file is there": lambda job: Path("/etc/passwd").stat().st_size,
    "make a file": lambda job: _write(Path(job.folder) / "made"),
    "make a folder": lambda job: Path(job.folder, "made").mkdir(),
    "make a link": lambda job: Path(job.folder, "link").symlink_to("/etc/passwd"),
    "remove a file": lambda job: Path(job.folder, "there").unlink(),
    "rename a file": lambda job: Path(job.folder, "there").rename(f"{job.folder}/elsewhere"),
    "change a mode": lambda job: Path(job.folder, "there").chmod(0o777),
    "make a file in memory": lambda job: os.memfd_create("made"),
    "connect": _connect,
    "bind UDP": _bind_udp,
    "open a Unix socket": lambda job: socket.socketpair(),
    "fork": _fork,
    "start a program": _spawn,
    "become a program": lambda job: os.execv("/bin/true", ["true"]),
    "trace the parent": lambda job: _libc("ptrace", PTRACE_ATTACH, job.parent, 0, 0),
    "signal the parent": lambda job: os.kill(job.parent, 0),
    "have the kernel signal the parent": lambda job: fcntl.fcntl(0, fcntl.F_SETOWN, job.parent),
    "lock a file": lambda job: fcntl.lockf(0, fcntl.LOCK_SH),
    "lift a limit": lambda job: resource.setrlimit(resource.RLIMIT_CPU, (9**9, 9**9)),
    "change the user": lambda job: os.setuid(12345),
    "enter a namespace": lambda job: _libc("unshare", 0x10000000),
    "map a user": lambda job: _libc("setns", 0, 0),
    "set the clock": lambda job: time.clock_settime(time.CLOCK_REALTIME, time.time()),
}
