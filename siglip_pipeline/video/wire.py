"""Messages between a parent and its decoding child, over a Unix socket.

Each is a length and so many bytes; descriptors may travel along. A child is not trusted: the parent
never waits for the rest of a message, bounds its length, and unpickles nothing.
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
    """The other side sent what is no message."""


class Wire:
    """One end of the socket.

    Args:
        end: a connected Unix stream socket; owned from now on.
        takes_descriptors: whether descriptors may come in; a parent takes none from its child.
    """

    def __init__(self, end: socket.socket, *, takes_descriptors: bool = False) -> None:
        self._socket = end
        self._takes_descriptors = takes_descriptors
        self._received = bytearray()
        self.descriptors: list[int] = []
        """Those that came along, for whoever takes the message to close."""

    def fileno(self) -> int:
        """The descriptor, to wait for."""
        return self._socket.fileno()

    @property
    def is_closed(self) -> bool:
        """Whether this end was closed."""
        return self._socket.fileno() < 0

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one message, whole.

        Raises:
            OSError: the other side is gone.
        """
        data = _LENGTH.pack(len(message)) + message
        if descriptors:
            sent = socket.send_fds(self._socket, [data], descriptors)
            data = data[sent:]
        while data:  # not send(): a child may not name a receiver, so it may not call sendto
            data = data[os.write(self._socket.fileno(), data) :]

    def receive(self) -> bytes:
        """Wait for one message.

        Raises:
            EOFError: the other side is gone.
        """
        while (message := self._taken()) is None:
            self._read()
        return message

    def poll(self) -> bytes | None:
        """One message, if all of it is there; the socket must not block.

        Raises:
            EOFError: the other side is gone.
            WireError: it is no message.
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
