"""Bytes of one upload, local or remote, opened for FFmpeg and hashed on the way."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from siglip_pipeline.errors import UploadError

HASH_BLOCK_BYTES: Final = 2**20


class MediaSource:
    """One upload to decode: a local file, or a way to open a remote one.

    Args:
        video: the path below UPLOADS, for messages.
        path: the local file; FFmpeg reads it itself, without Python in between.
        opener: opens a remote file as a seekable binary file.
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
        self.path = path
        self._opener = opener
        self._hash = FrontierHash()

    def open_for_ffmpeg(self) -> "str | HashedFile":
        """What ``av.open`` takes: a file name, or a file object that hashes what it reads."""
        if self.path is not None:
            # Without the prefix FFmpeg takes "concat:a|b" or "http:x.mp4" for a protocol.
            return f"file:{self.path}"
        return HashedFile(self.open(), self._hash)

    def open(self) -> BinaryIO:
        """A plain seekable file, for what does not go through FFmpeg."""
        if self.path is not None:
            return self.path.open("rb")
        assert self._opener is not None
        return self._opener()

    def sha256(self, on_progress: Callable[[int], None] = lambda position: None) -> str:
        """Hex digest of the whole content; what streamed past in order is not read again.

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
        """Take the part of ``block`` that continues the hash; the rest is ignored."""
        if position <= self.position < position + len(block):
            fresh = memoryview(block)[self.position - position :]
            self._hash.update(fresh)
            self.position += len(fresh)

    def hexdigest(self) -> str:
        """Digest of the bytes up to ``position``."""
        return self._hash.hexdigest()


class HashedFile:
    """A read-only file that hashes what it reads; the interface that PyAV asks for.

    A storage that fails in the middle is not taken for a file that ends there.
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
        except Exception as error:  # each storage has exceptions of its own
            raise UploadError(
                f"the storage failed after {position} bytes: {error}; materialize it again"
            ) from error
        self._hasher.feed(position, block)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move as ``io.IOBase.seek`` does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The current position."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file underneath."""
        self._file.close()
