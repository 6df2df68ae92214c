"""Reads a remote upload for a decoding child, which has neither the network nor credentials."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import BinaryIO

from siglip_pipeline.video.source import FEED_BLOCK_BYTES, REPLY, REQUEST


class Feed:
    """Answers a child's reads of one file, in a thread of its own.

    Args:
        file: seekable; owned from now on.
        reason_of: what the child is told of an error.
    """

    def __init__(self, file: BinaryIO, reason_of: Callable[[Exception], str] = str) -> None:
        self.size_bytes = file.seek(0, 2)
        self._file = file
        self._reason_of = reason_of
        self._ours, self._theirs = socket.socketpair()
        threading.Thread(target=self._serve, daemon=True, name="feed").start()

    def fileno(self) -> int:
        """The child's end."""
        return self._theirs.fileno()

    def close(self) -> None:
        """Answer no more; a read that is under way ends by itself."""
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
                except Exception as error:  # each storage has exceptions of its own
                    data, failed = self._reason_of(error).encode(), True
                self._ours.sendall(REPLY.pack(failed, len(data)))
                self._ours.sendall(data)
