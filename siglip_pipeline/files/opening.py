"""Open files beneath a folder that other users can write to.

Between a check of a name and its opening, another file may get the name. Here the kernel checks
while it opens: symlinks are followed only if they stay beneath the folder. A pipe, socket or device
in the place of a file never blocks the caller.
"""

import contextlib
import ctypes
import errno
import functools
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO, Final

_PATH_ONLY: Final = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK)
"""Flag for a descriptor that only identifies a file; on other systems than Linux it opens it."""

_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOLDER: Final = _PATH_ONLY | os.O_DIRECTORY | os.O_CLOEXEC

_OPENAT2: Final = 437  # the number on every architecture of Linux but Alpha
_RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH = 0x02, 0x08
_ATTEMPTS: Final = 16
"""The kernel returns EAGAIN for a path with ".." whenever something is renamed meanwhile."""


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_file(root: str | os.PathLike[str], path: str) -> BinaryIO:
    """Open a regular file beneath a folder for reading.

    Args:
        root: the folder; symlinks in its own path are followed.
        path: relative to it, POSIX separators, without "..".

    Raises:
        OSError: there is none, it is no regular file, or the path leads out of the folder.
    """
    return _regular(_open_beneath(root, path, _READ), path)


def open_named(path: Path) -> BinaryIO:
    """Open a regular file that the user has named for reading, wherever its links lead.

    Raises:
        OSError: there is none, or it is no regular file.
    """
    return _regular(os.open(path, _READ), str(path))


def _regular(descriptor: int, path: str) -> BinaryIO:
    try:
        _require_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def stat_file(root: str | os.PathLike[str], path: str) -> os.stat_result:
    """Stat a regular file beneath a folder, without reading it; see :func:`open_file`."""
    descriptor = _open_beneath(root, path, _PATH_ONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    _require_regular(status, path)
    return status


def open_folder(root: str | os.PathLike[str], path: str = "") -> int:
    """Open a folder beneath a folder, or that folder itself; return its descriptor.

    Raises:
        OSError: there is none, or the path leads out of the folder.
    """
    return _open_beneath(root, path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def make_folder(root: str | os.PathLike[str], path: str, mode: int = 0o777) -> int:
    """Open a folder beneath a folder as :func:`open_folder` does; make missing folders.

    Args:
        root: the folder, which must exist.
        path: relative to it; "" for that folder itself.
        mode: of folders that are made, whatever the umask.
    """
    try:
        return open_folder(root, path)
    except FileNotFoundError:
        above, _, last = path.rpartition("/")
    parent = make_folder(root, above, mode)
    try:
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.mkdir(last, dir_fd=parent)
            made = os.open(last, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            try:
                os.fchmod(made, mode)
            finally:
                os.close(made)
    finally:
        os.close(parent)
    return open_folder(root, path)


def _require_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


def _open_beneath(root: str | os.PathLike[str], path: str, flags: int) -> int:
    if path.startswith("/") or ".." in path.split("/"):
        raise OSError(errno.EXDEV, "leads out of the folder", path)
    if has_openat2():
        folder = os.open(root, _FOLDER)
        try:
            return _openat2(folder, path, flags)
        except OSError as error:
            # Also an absolute symlink that leads to a place beneath the folder.
            if error.errno not in (errno.EXDEV, errno.EAGAIN):
                raise
        finally:
            os.close(folder)
    return _open_by_parts(root, path, flags)


@functools.cache
def has_openat2() -> bool:
    """Return whether the kernel can resolve paths beneath a folder (Linux 5.6 or newer)."""
    if sys.platform != "linux":
        return False
    try:
        folder = os.open("/", _FOLDER)
        try:
            os.close(_openat2(folder, ".", _FOLDER))
        finally:
            os.close(folder)
    except OSError:  # ENOSYS from the kernel, EPERM from an older container runtime
        return False
    return True


def _openat2(folder: int, path: str, flags: int) -> int:
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    for _ in range(_ATTEMPTS):
        descriptor = _libc().syscall(_OPENAT2, folder, name, ctypes.byref(how), ctypes.sizeof(how))
        if descriptor >= 0:
            return int(descriptor)
        if (number := ctypes.get_errno()) not in (errno.EINTR, errno.EAGAIN):
            break
    raise OSError(number, os.strerror(number), path)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.argtypes = (
        *(ctypes.c_long, ctypes.c_long, ctypes.c_char_p),
        *(ctypes.c_void_p, ctypes.c_size_t),
    )
    libc.syscall.restype = ctypes.c_long
    return libc


def _open_by_parts(root: str | os.PathLike[str], path: str, flags: int) -> int:
    """Resolve symlinks by name, then open the result component by component, following none."""
    real_root = Path(root).resolve()
    real = Path(os.path.realpath(real_root / path))
    if not real.is_relative_to(real_root):
        raise OSError(errno.EXDEV, "leads out of the folder", path)
    *folders, last = real.relative_to(real_root).parts or (".",)
    folder = os.open(real_root, _FOLDER)
    try:
        for part in folders:
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(last, flags | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)
