"""Read a remote upload for a decoding child, which has neither network nor credentials."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import BinaryIO

from siglip_pipeline.video.source import FEED_BLOCK_BYTES, REPLY, REQUEST


class Feed:
    """Answers a child's reads of one file, in its own thread.

    Args:
        file: seekable; the feed closes it.
        reason_of: gives the message of an error that the child receives.
    """

    def __init__(self, file: BinaryIO, reason_of: Callable[[Exception], str] = str) -> None:
        self.size_bytes = file.seek(0, 2)
        self._file = file
        self._reason_of = reason_of
        self.has_failed = False
        """Whether the storage refused a read."""
        self._ours, self._theirs = socket.socketpair()
        threading.Thread(target=self._serve, daemon=True, name="feed").start()

    def fileno(self) -> int:
        """Return the descriptor of the child's end."""
        return self._theirs.fileno()

    def close(self) -> None:
        """Stop answering; a read in progress is completed."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self._theirs.close()

    def _serve(self) -> None:
        with self._ours, self._file, contextlib.suppress(OSError):
            while request := self._ours.recv(REQUEST.size, socket.MSG_WAITALL):
                if len(request) < REQUEST.size:
                    return
                offset, size = REQUEST.unpack(request)
                try:
                    self._file.seek(min(offset, self.size_bytes))
                    data, failed = self._file.read(min(size, FEED_BLOCK_BYTES)), False
                except Exception as error:  # each storage raises its own exceptions
                    data, failed = self._reason_of(error).encode(), True
                    self.has_failed = True
                self._ours.sendall(REPLY.pack(failed, len(data)))
                self._ours.sendall(data)
