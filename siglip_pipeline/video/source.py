"""Read one upload from an open descriptor, by offset, and hash it while reading."""

import hashlib
import io
import os
import struct
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from siglip_pipeline.errors import UploadError

HASH_BLOCK_BYTES: Final = 2**20
BUFFER_BYTES: Final = 2**16

FEED_BLOCK_BYTES: Final = 2**20
"""Size of a request to the parent, and its limit."""
REQUEST: Final = struct.Struct("!QI")
"""Offset and size."""
REPLY: Final = struct.Struct("!?I")
"""Whether the read failed, and the number of bytes that follow: the content, or the reason."""


class OffsetReader(io.RawIOBase):
    """A read-only file with its own position, over a source that is read by offset."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._position = 0

    @abstractmethod
    def read_at(self, offset: int, size: int) -> bytes:
        """Return at most ``size`` bytes from an offset; none at the end."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read from the current position."""
        data = self.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move as ``io.IOBase.seek`` does."""
        start = (0, self._position, self._size_bytes)[whence]
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the current position."""
        return self._position


class DescriptorReader(OffsetReader):
    """A regular file by its descriptor, which several readers may share."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(os.fstat(descriptor).st_size)
        self._descriptor = descriptor

    def read_at(self, offset: int, size: int) -> bytes:
        """Return at most ``size`` bytes from an offset; none at the end."""
        return os.pread(self._descriptor, size, offset)


class FedReader(OffsetReader):
    """A file that the parent process reads for this one; see :mod:`siglip_pipeline.video.feed`."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self._descriptor = descriptor

    def read_at(self, offset: int, size: int) -> bytes:
        """Return at most ``size`` bytes from an offset; none at the end.

        Raises:
            OSError: the storage failed, with its reason.
        """
        os.write(self._descriptor, REQUEST.pack(offset, min(size, FEED_BLOCK_BYTES)))
        failed, length = REPLY.unpack(self._exactly(REPLY.size))
        data = self._exactly(length)
        if failed:
            raise OSError(data.decode())
        return data

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = os.read(self._descriptor, size - len(data))
            if not part:
                raise OSError("the process that reads it is gone")
            data += part
        return bytes(data)


class MediaSource:
    """One upload to decode.

    Args:
        video: the path below UPLOADS, for messages.
        path: a local file.
        opener: opens it as a seekable binary file, each time with a position of its own.
    """

    def __init__(
        self,
        video: str,
        *,
        path: Path | None = None,
        opener: Callable[[], BinaryIO] | None = None,
    ) -> None:
        if (path is None) == (opener is None):
            raise ValueError("give exactly one of path and opener")
        self.video = video
        self._opener: Callable[[], BinaryIO]
        self._opener = opener or (lambda: cast(Path, path).open("rb"))
        self._hash = FrontierHash()

    @classmethod
    def of_descriptor(
        cls, video: str, descriptor: int, *, fed_bytes: int | None = None
    ) -> "MediaSource":
        """Make a source of a regular file, or of a socket over which the parent reads the file.

        Args:
            video: the path below UPLOADS, for messages.
            descriptor: of the file or socket; it stays open.
            fed_bytes: the file's size if the descriptor is a socket; None for a file.
        """

        def opener() -> BinaryIO:
            if fed_bytes is None:
                return io.BufferedReader(DescriptorReader(descriptor), BUFFER_BYTES)
            return io.BufferedReader(FedReader(descriptor, fed_bytes), FEED_BLOCK_BYTES)

        return cls(video, opener=opener)

    def open_for_ffmpeg(self) -> "HashedFile":
        """Open a file object that hashes what it reads, so that FFmpeg gets no file name."""
        return HashedFile(self.open(), self._hash)

    def open(self) -> BinaryIO:
        """Open a seekable file, for readers other than FFmpeg."""
        return self._opener()

    def sha256(self, on_progress: Callable[[int], None] = lambda position: None) -> str:
        """Return the hex digest of the whole content; bytes that were hashed are not read again.

        Raises:
            UploadError: the storage failed.
        """
        with self.open() as opened:
            file = HashedFile(opened, self._hash)
            file.seek(self._hash.position)
            while file.read(HASH_BLOCK_BYTES):
                on_progress(self._hash.position)
        return self._hash.hexdigest()


class FrontierHash:
    """SHA-256 of a file that is read in pieces, out of order or more than once."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.position = 0
        """All bytes before this one are in the hash."""

    def feed(self, position: int, block: bytes) -> None:
        """Hash the part of ``block`` that continues the hash; ignore the rest."""
        if position <= self.position < position + len(block):
            fresh = memoryview(block)[self.position - position :]
            self._hash.update(fresh)
            self.position += len(fresh)

    def hexdigest(self) -> str:
        """Return the digest of the bytes up to ``position``."""
        return self._hash.hexdigest()


class HashedFile:
    """A read-only file that hashes what it reads, with the interface that PyAV needs.

    An error of the storage is raised, so that it does not look like the end of the file.
    """

    def __init__(self, file: BinaryIO, hasher: FrontierHash) -> None:
        self._file = file
        self._hasher = hasher

    def read(self, size: int = -1) -> bytes:
        """Read from the current position, at most ``size`` bytes.

        Raises:
            UploadError: the storage failed.
        """
        position = self._file.tell()
        try:
            block = self._file.read(size)
        except Exception as error:  # each storage raises its own exceptions
            raise UploadError(
                f"the storage failed after {position} bytes: {error}; materialize it again"
            ) from error
        self._hasher.feed(position, block)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move as ``io.IOBase.seek`` does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the current position."""
        return self._file.tell()

    def close(self) -> None:
        """Close the underlying file."""
        self._file.close()
