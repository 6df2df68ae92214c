"""Drop clients that keep the service waiting, and limit the connections of each.

uvicorn bounds none of this but the time between two requests; see docs/decisions/0064.
"""

import asyncio
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from httptools import HttpParserCallbackError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from siglip_pipeline.settings import Settings
from siglip_pipeline.web.http_errors import HttpError, unavailable
from siglip_pipeline.web.proxies import Network, is_among, one_client, parse_networks

MAX_ADDRESS_BYTES: Final = 32 * 1024
"""Largest path and parameters of a request."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""Largest address and headers of a request, and largest trailer of a chunked body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one client may take, in seconds and connections."""

    header_seconds: float
    body_seconds: float
    body_bytes_per_second: int
    """The time of a body is extended by one second for this many bytes received."""
    write_seconds: float
    idle_seconds: float
    connections: int
    connections_per_address: int
    uncounted: tuple[Network, ...]
    """Addresses that many clients come from: this machine's, and those of proxies."""

    @classmethod
    def from_settings(cls, settings: Settings) -> "ConnectionLimits":
        """Return the limits that the settings ask for."""
        return cls(
            header_seconds=settings.http_header_seconds,
            body_seconds=settings.http_body_seconds,
            body_bytes_per_second=settings.http_body_bytes_per_second,
            write_seconds=settings.http_write_seconds,
            idle_seconds=settings.http_idle_seconds,
            connections=settings.http_max_connections,
            connections_per_address=settings.http_max_connections_per_address,
            uncounted=parse_networks(f"127.0.0.1, ::1, {settings.trusted_proxies or ''}"),
        )


class Connections:
    """The open connections of a server.

    If there is no room for a new one, the connection that has waited longest for a request is
    dropped. A client that sends its request at once is served, however many others send none.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: Counter[str] = Counter()
        # Connections without a complete request, by when they began to wait.
        self._waiting: dict[LimitedProtocol, None] = {}

    def protocol(self, **options: Any) -> "LimitedProtocol":
        """Return the protocol of one connection, as uvicorn makes it."""
        return LimitedProtocol(self, **options)

    def enter(self, connection: "LimitedProtocol") -> None:
        """Count a connection.

        Raises:
            HttpError: 503, there are too many, and none of them waits for a request.
        """
        host = connection.host
        limits = self.limits
        is_full = self._open[connection.holder] >= limits.connections_per_address
        if is_full and not is_among(host, limits.uncounted):
            self._make_room(
                lambda other: other.holder == connection.holder,
                f"{limits.connections_per_address} connections from {host} are open "
                "(SIGLIP_HTTP_MAX_CONNECTIONS_PER_ADDRESS)",
            )
        if self._open.total() >= limits.connections:
            self._make_room(
                lambda other: True,
                f"{limits.connections} connections are open (SIGLIP_HTTP_MAX_CONNECTIONS)",
            )
        self._open[connection.holder] += 1

    def leave(self, connection: "LimitedProtocol") -> None:
        """Forget a connection that was counted."""
        self._waiting.pop(connection, None)
        self._open[connection.holder] -= 1
        if not self._open[connection.holder]:
            del self._open[connection.holder]

    def wait(self, connection: "LimitedProtocol", waits: bool) -> None:
        """Note whether a connection waits for a request."""
        self._waiting.pop(connection, None)
        if waits:
            self._waiting[connection] = None

    def _make_room(self, is_one: Callable[["LimitedProtocol"], bool], reason: str) -> None:
        longest = next((other for other in self._waiting if is_one(other)), None)
        if longest is None:
            raise unavailable(reason)
        longest.drop()


class LimitedProtocol(HttpToolsProtocol):
    """A connection with a time limit for each phase of a request.

    The methods without an underscore are called by asyncio, by the parser and by uvicorn.
    """

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._connections = connections
        self._limits = connections.limits
        self.host = ""
        self.holder = ""
        """Whose share of the connections it is of."""
        self._entered = False
        # One timer for all phases, which checks again if the deadline has moved: setting one per
        # phase costs a quarter of a small request.
        self._deadline = math.inf
        self._late: Callable[[], None] = self.drop
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._write_deadline: asyncio.TimerHandle | None = None
        self._unparsed = 0
        self._head_bytes = 0
        self._in_body = False
        self._body_bytes = 0
        self._body_began = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, if there is room for another connection."""
        super().connection_made(transport)
        self.host = self.client[0] if self.client else ""
        self.holder = one_client(self.host)
        try:
            self._connections.enter(self)
        except HttpError as error:
            self._refuse(error)
            return
        self._entered = True
        self._wait_for_request(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """End all waiting."""
        super().connection_lost(exc)
        self._end()

    def _end(self) -> None:
        for timer in (self._timer, self._write_deadline):
            if timer is not None:
                timer.cancel()
        if self._entered:
            self._entered = False
            self._connections.leave(self)

    def data_received(self, data: bytes) -> None:
        """Parse the data; refuse a head that is too long."""
        if self.transport.is_closing():
            return
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_large_head())

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser cannot read, or a callback of it did not take."""
        error = sys.exception()
        reason = error.__context__ if isinstance(error, HttpParserCallbackError) else None
        self._refuse(reason if isinstance(reason, HttpError) else _no_request())

    def on_message_begin(self) -> None:
        """Start the time limit of the header."""
        super().on_message_begin()
        self._head_bytes = 0
        self._expect(self._limits.header_seconds, self._header_is_late)

    def on_url(self, url: bytes) -> None:
        """Take a part of the address; end with one that is too long."""
        super().on_url(url)
        if len(self.url) > MAX_ADDRESS_BYTES:
            raise _long_address()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; ignore those after a body."""
        if not self._in_body:
            self._head_bytes += len(name) + len(value)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the time limit of the body; refuse a head that is too long."""
        if self._head_bytes + len(self.url) > MAX_HEAD_BYTES:  # and came in one piece
            raise _large_head()
        self._unparsed = self._body_bytes = 0
        self._in_body = True
        self._body_began = self.loop.time()
        self._connections.wait(self, False)
        self._expect(self._limits.body_seconds, self._body_is_late)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count the bytes received."""
        self._unparsed = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next request if this one is answered already."""
        super().on_message_complete()
        self._unparsed = 0
        self._in_body = False
        self._deadline = math.inf
        if self.cycle is not None and self.cycle.response_complete:
            self._wait_for_request(self._limits.idle_seconds)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over: a websocket has no time limit."""
        self._end()
        super().handle_websocket_upgrade()

    def on_response_complete(self) -> None:
        """Wait for the next request if all of this one has been read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.drop()
        elif not self._in_body and not self.pipeline and self.cycle.response_complete:
            self._wait_for_request(self._limits.idle_seconds)

    def pause_writing(self) -> None:
        """Start the time limit in which the client must read what was sent: a chunk at most."""
        super().pause_writing()
        self._expect_to_write()

    def resume_writing(self) -> None:
        """Continue sending."""
        super().resume_writing()
        if self._write_deadline is not None and not self.transport.is_closing():
            self._write_deadline.cancel()
            self._write_deadline = None

    def drop(self) -> None:
        """Close the connection; the client gets a last time limit to read what was sent."""
        self.transport.close()
        if self.transport.get_write_buffer_size() and self._write_deadline is None:
            self._expect_to_write()
        if self._entered:
            self._entered = False
            self._connections.leave(self)

    def _wait_for_request(self, seconds: float) -> None:
        self._unset_keepalive_if_required()  # uvicorn's own timer, which any byte resets
        if not self.transport.is_closing():
            self._connections.wait(self, True)
            self._expect(seconds, self._header_is_late)

    def _expect(self, seconds: float, late: Callable[[], None]) -> None:
        self._deadline = self.loop.time() + seconds
        self._late = late
        if self._deadline < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self.loop.call_at(self._timer_at, self._look)

    def _look(self) -> None:
        self._timer_at = math.inf
        if self.loop.time() >= self._deadline:
            self._late()
        elif self._deadline < math.inf:
            self._set_timer()

    def _expect_to_write(self) -> None:
        self._write_deadline = self.loop.call_later(
            self._limits.write_seconds, self.transport.abort
        )

    def _header_is_late(self) -> None:
        if self.flow.read_paused:  # not the client's fault: earlier requests are being answered
            self._expect(self._limits.header_seconds, self._header_is_late)
        elif self._unparsed:
            limit = f"{self._limits.header_seconds:g} s (SIGLIP_HTTP_HEADER_SECONDS)"
            self._refuse(HttpError(408, f"the headers did not arrive within {limit}"))
        else:
            self.drop()

    def _body_is_late(self) -> None:
        limits = self._limits
        allowed = limits.body_seconds + self._body_bytes / limits.body_bytes_per_second
        left = self._body_began + allowed - self.loop.time()
        if left > 0 or self.flow.read_paused:
            self._expect(max(left, 1.0), self._body_is_late)
            return
        self._refuse(
            HttpError(
                408,
                f"the body did not arrive within {limits.body_seconds:g} s and a second for each "
                f"{limits.body_bytes_per_second} bytes (SIGLIP_HTTP_BODY_SECONDS, "
                "SIGLIP_HTTP_BODY_BYTES_PER_SECOND)",
            )
        )

    def _refuse(self, error: HttpError) -> None:
        """Send the reason, unless an answer has begun, and close the connection."""
        cycle = self.cycle
        is_answering = cycle is not None and (
            cycle.response_started and (self._in_body or not cycle.response_complete)
        )
        if not is_answering and not self.pipeline:
            response = error.response()
            status = HTTPStatus(error.status_code)
            lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode()), b"connection: close"]
            lines += [name + b": " + value for name, value in response.raw_headers]
            self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
        self.drop()


def _long_address() -> HttpError:
    limit = f"{MAX_ADDRESS_BYTES // 1024} KiB"
    return HttpError(
        414, f"the address is longer than {limit}; POST /api/search takes a search as JSON"
    )


def _large_head() -> HttpError:
    limit = f"{MAX_HEAD_BYTES // 1024} KiB"
    return HttpError(431, f"the address and headers of the request are larger than {limit}")


def _no_request() -> HttpError:
    return HttpError(400, "this is no request of HTTP/1.1, which is spoken here without TLS")
