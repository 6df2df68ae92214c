"""Send messages between a parent and its decoding child over a Unix socket.

A message is a length and that many bytes, and may carry descriptors. A child is not trusted: the
parent never waits for the rest of a message, limits its length, and unpickles nothing.
"""

import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

MAX_MESSAGE_BYTES: Final = 2**20
MAX_DESCRIPTORS: Final = 4
_LENGTH: Final = struct.Struct("!I")
_READ_BYTES: Final = 65_536


class WireError(Exception):
    """The other side sent an invalid message."""


class Wire:
    """One end of the socket.

    Args:
        end: a connected Unix stream socket, which :meth:`close` closes.
        takes_descriptors: whether descriptors are accepted; a parent accepts none of its child.
    """

    def __init__(self, end: socket.socket, *, takes_descriptors: bool = False) -> None:
        self._socket = end
        self._takes_descriptors = takes_descriptors
        self._received = bytearray()
        self.descriptors: list[int] = []
        """Received descriptors; the receiver of the message closes them."""

    def fileno(self) -> int:
        """Return the socket's descriptor; negative after it was closed."""
        return self._socket.fileno()

    @property
    def is_closed(self) -> bool:
        """Whether this end was closed."""
        return self._socket.fileno() < 0

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one whole message.

        Raises:
            OSError: the other side has closed the socket.
        """
        data = _LENGTH.pack(len(message)) + message
        if descriptors:
            sent = socket.send_fds(self._socket, [data], descriptors)
            data = data[sent:]
        while data:  # not send(), which calls sendto; the sandbox forbids that
            data = data[os.write(self._socket.fileno(), data) :]

    def receive(self) -> bytes:
        """Wait for one message.

        Raises:
            EOFError: the other side has closed the socket.
        """
        while (message := self._taken()) is None:
            self._read()
        return message

    def poll(self) -> bytes | None:
        """Return one message if it has arrived completely, else None; the socket must not block.

        Raises:
            EOFError: the other side has closed the socket.
            WireError: the message is too long.
        """
        while (message := self._taken()) is None:
            try:
                self._read()
            except BlockingIOError:
                return None
        return message

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _taken(self) -> bytes | None:
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > MAX_MESSAGE_BYTES:
            raise WireError(f"a message of {length} bytes; at most {MAX_MESSAGE_BYTES} are read")
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        message = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return message

    def _read(self) -> None:
        if self._takes_descriptors:
            data, descriptors, *_ = socket.recv_fds(self._socket, _READ_BYTES, MAX_DESCRIPTORS)
            self.descriptors += descriptors
        else:
            data = self._socket.recv(_READ_BYTES)
        if not data:
            raise EOFError
        self._received += data
