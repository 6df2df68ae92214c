"""Restrict a decoding child after it has imported its libraries.

A child has no access to the file system, the network and other processes, and gets no new
privileges. Two mechanisms of the Linux kernel enforce this, each sufficient alone: a seccomp filter
that allows only listed system calls, and Landlock, which refuses every path and TCP port. The
parent sets resource limits, which a child cannot raise. Each mechanism is used if the kernel has
it; :func:`sandbox_report` lists them.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
from dataclasses import dataclass
from typing import Final

OPEN_FILES: Final = 32
"""A child has about ten: the standard three, its socket, and those of its job."""

PR_GET_SECCOMP, PR_SET_NO_NEW_PRIVS = 21, 38

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER, SECCOMP_GET_ACTION_AVAIL = 1, 2
SECCOMP_FILTER_FLAG_TSYNC = 1
KILL_PROCESS, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
EPERM, ENOSYS = 1, 38

# linux/filter.h, linux/bpf_common.h
LOAD, JUMP_IF_EQUAL, JUMP_IF_SET, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16

CLONE_THREAD: Final = 0x00010000
AT_EMPTY_PATH: Final = 0x1000
DESCRIPTOR_FLAGS: Final = (0, 1, 2, 3, 4, 1030)
"""Allowed commands of fcntl: copy a descriptor, and read and set its flags. Others lock files, or
make the kernel send a signal to any process."""

# linux/landlock.h: the rights that each version of the interface added
LANDLOCK_VERSION_FLAG: Final = 1
LANDLOCK_FILES: Final = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
LANDLOCK_TCP: Final = {4: 0b11}
LANDLOCK_SCOPES: Final = {6: 0b11}
"""Abstract Unix sockets and signals."""
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
"""The same numbers on every architecture."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Numbers of system calls on one architecture."""

    audit: int
    seccomp: int
    capset: int
    calls: dict[str, int]
    """Numbers of the system calls that a child may make, by name."""


_X86_64: Final = (
    "read 0 write 1 close 3 fstat 5 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12 "
    "rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 pread64 17 pwrite64 18 readv 19 writev 20 "
    "select 23 sched_yield 24 mremap 25 madvise 28 dup 32 nanosleep 35 getpid 39 recvmsg 47 "
    "clone 56 exit 60 uname 63 fcntl 72 flock 73 fsync 74 fdatasync 75 ftruncate 77 "
    "gettimeofday 96 getrlimit 97 getrusage 98 sysinfo 99 times 100 getuid 102 getgid 104 "
    "geteuid 107 getegid 108 getppid 110 sigaltstack 131 gettid 186 time 201 futex 202 "
    "sched_getaffinity 204 restart_syscall 219 clock_gettime 228 clock_getres 229 "
    "clock_nanosleep 230 exit_group 231 tgkill 234 newfstatat 262 pselect6 270 ppoll 271 "
    "set_robust_list 273 prlimit64 302 getcpu 309 getrandom 318 membarrier 324 rseq 334 clone3 435"
)
_AARCH64: Final = (
    "dup 23 fcntl 25 flock 32 ftruncate 46 close 57 lseek 62 read 63 write 64 readv 65 writev 66 "
    "pread64 67 pwrite64 68 pselect6 72 ppoll 73 newfstatat 79 fstat 80 fsync 82 fdatasync 83 "
    "exit 93 exit_group 94 futex 98 set_robust_list 99 nanosleep 101 clock_gettime 113 "
    "clock_getres 114 clock_nanosleep 115 sched_getaffinity 123 sched_yield 124 "
    "restart_syscall 128 tgkill 131 sigaltstack 132 rt_sigaction 134 rt_sigprocmask 135 "
    "rt_sigreturn 139 times 153 "
    "uname 160 getrlimit 163 getrusage 165 getcpu 168 gettimeofday 169 getpid 172 getppid 173 "
    "getuid 174 geteuid 175 getgid 176 getegid 177 gettid 178 sysinfo 179 recvmsg 212 brk 214 "
    "munmap 215 mremap 216 clone 220 mmap 222 mprotect 226 madvise 233 prlimit64 261 getrandom 278 "
    "membarrier 283 rseq 293 clone3 435"
)


def _numbers(text: str) -> dict[str, int]:
    words = text.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


ARCHITECTURES: Final = {
    "x86_64": Architecture(0xC000003E, seccomp=317, capset=126, calls=_numbers(_X86_64)),
    "aarch64": Architecture(0xC00000B7, seccomp=277, capset=91, calls=_numbers(_AARCH64)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxReport:
    """The restrictions in force for decoding children."""

    no_new_privs: bool
    seccomp: bool
    """Whether only listed system calls are allowed: no files, sockets, processes."""
    landlock: int
    """Version of the Landlock interface; 0 if the kernel has none."""

    @property
    def is_closed(self) -> bool:
        """Whether a child can reach neither files nor the network."""
        return self.seccomp

    def __str__(self) -> str:
        held = [
            *(["no new privileges"] if self.no_new_privs else []),
            *(["seccomp"] if self.seccomp else []),
            *([f"Landlock {self.landlock}"] if self.landlock else []),
            "limits on memory, CPU time, open files and file size",
        ]
        return ", ".join(held)


def sandbox_report() -> SandboxReport:
    """Return which restrictions this machine offers, without applying any."""
    machine = ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        return SandboxReport(no_new_privs=False, seccomp=False, landlock=0)
    action = ctypes.c_uint32(ERRNO)
    available = _syscall(machine.seccomp, SECCOMP_GET_ACTION_AVAIL, 0, ctypes.addressof(action))
    return SandboxReport(
        no_new_privs=True, seccomp=available == 0, landlock=max(0, _landlock_version())
    )


def sandbox_warning() -> str | None:
    """Return a warning if decoding is not fully restricted on this machine; otherwise None."""
    report = sandbox_report()
    if report.is_closed:
        return None
    return (
        f"processes that decode are held by {report} alone: a flaw in a decoder could let an "
        "upload reach files and the network. Use Linux on x86-64 or ARM64 with seccomp, or run "
        "workers in a container without network and secrets (docs/security.md)"
    )


def enter_sandbox() -> SandboxReport:
    """Apply all restrictions permanently, and return those in force.

    Call it before threads start: Landlock applies to this thread and those that it starts later.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # memory may hold a client's picture
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    offered = sandbox_report()
    if not offered.no_new_privs:
        return offered
    no_new_privs = _libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    machine = ARCHITECTURES[platform.machine()]
    _drop_capabilities(machine)
    landlock = offered.landlock if _restrict_files(offered.landlock) else 0
    seccomp = offered.seccomp and _filter_calls(machine)
    return SandboxReport(no_new_privs=no_new_privs, seccomp=seccomp, landlock=landlock)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: int) -> int:
    syscall = _libc().syscall
    syscall.restype = ctypes.c_long
    return int(syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))


def _drop_capabilities(machine: Architecture) -> None:
    """Drop all capabilities, so that root has no privileges."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    none = ctypes.create_string_buffer(24)
    _syscall(machine.capset, ctypes.addressof(header), ctypes.addressof(none))


def _landlock_version() -> int:
    return _syscall(LANDLOCK_CREATE_RULESET, 0, 0, LANDLOCK_VERSION_FLAG)


def _restrict_files(version: int) -> bool:
    """Refuse every path and TCP port; open files stay open."""
    if version < 1:
        return False
    handled = [
        sum(bits for since, bits in rights.items() if since <= version)
        for rights in (LANDLOCK_FILES, LANDLOCK_TCP, LANDLOCK_SCOPES)
    ]
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = ctypes.create_string_buffer(struct.pack("=QQQ", *handled))
    descriptor = _syscall(LANDLOCK_CREATE_RULESET, ctypes.addressof(rules), size, 0)
    if descriptor < 0:
        return False
    try:
        return _syscall(LANDLOCK_RESTRICT_SELF, descriptor, 0) == 0
    finally:
        os.close(descriptor)


def _filter_calls(machine: Architecture) -> bool:
    program = b"".join(_program(machine))
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    filter_ = ctypes.create_string_buffer(header, len(header))
    flags = SECCOMP_FILTER_FLAG_TSYNC
    return _syscall(machine.seccomp, SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(filter_)) == 0


def _program(machine: Architecture) -> list[bytes]:
    """Return the steps of the filter: unlisted system calls fail with EPERM."""
    calls = dict(machine.calls)
    # Tests of an argument: it must equal one of the values, or have the bits set.
    checked = {
        "clone": _if_set(0, CLONE_THREAD),  # threads, not processes
        "newfstatat": _if_equal(3, AT_EMPTY_PATH),  # of a descriptor, as libraries call fstat
        "prlimit64": _if_equal(2, 0),  # limits are read, not changed
        "tgkill": _if_equal(0, os.getpid()),  # abort()
        "fcntl": _if_equal(1, *DESCRIPTOR_FLAGS),
    }
    program = [
        _step(LOAD, ARCHITECTURE_AT),
        _step(JUMP_IF_EQUAL, machine.audit, 1, 0),
        _step(RETURN, KILL_PROCESS),
        _step(LOAD, NUMBER_AT),
    ]
    # A filter cannot read clone3's flags, which are in memory; libraries fall back to clone.
    program += [_step(JUMP_IF_EQUAL, calls.pop("clone3"), 0, 1), _step(RETURN, ERRNO | ENOSYS)]
    for name, test in checked.items():
        program += [_step(JUMP_IF_EQUAL, calls.pop(name), 0, len(test)), *test]
    for number in calls.values():
        program += [_step(JUMP_IF_EQUAL, number, 0, 1), _step(RETURN, ALLOW)]
    return [*program, _step(RETURN, ERRNO | EPERM)]


def _if_equal(argument: int, *values: int) -> list[bytes]:
    low = ARGUMENTS_AT + 8 * argument  # both machines are little-endian
    count = len(values)
    return [
        _step(LOAD, low + 4),
        _step(JUMP_IF_EQUAL, 0, 0, count + 1),
        _step(LOAD, low),
        *(_step(JUMP_IF_EQUAL, value, count - at) for at, value in enumerate(values)),
        _step(RETURN, ERRNO | EPERM),
        _step(RETURN, ALLOW),
    ]


def _if_set(argument: int, bits: int) -> list[bytes]:
    return [
        _step(LOAD, ARGUMENTS_AT + 8 * argument),
        _step(JUMP_IF_SET, bits, 0, 1),
        _step(RETURN, ALLOW),
        _step(RETURN, ERRNO | EPERM),
    ]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
