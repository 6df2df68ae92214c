"""A proxy in front of an object store that answers wrongly when it is told to."""

import http.client
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Fault = Literal["500", "503", "hang", "cut", "reset"]

HANG_SECONDS = 8.0
"""Longer than the client waits for an answer."""

_NOT_PASSED_ON = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class BadProxy:
    """Passes requests on; those that match ``methods`` take the next fault, while there is one.

    Args:
        address: URL of the store.
    """

    def __init__(self, address: str) -> None:
        target = urlsplit(address)
        self.target = (str(target.hostname), int(target.port or 80))
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.methods: set[str] = set()
        self.path_part = ""
        self.struck: list[tuple[Fault, str, str]] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            def fault(self) -> Fault | None:
                return proxy._next(self.command, self.path)

        Handler.target = self.target
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _next(self, method: str, path: str) -> Fault | None:
        with self._lock:
            if method not in self.methods or self.path_part not in path:
                return None
            fault = self.always or (self.faults.popleft() if self.faults else None)
            if fault is not None:
                self.struck.append((fault, method, path))
            return fault

    def behave(self) -> None:
        """Pass everything on from now on."""
        self.faults.clear()
        self.always = None

    @contextmanager
    def running(self) -> Iterator["BadProxy"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target: tuple[str, int] = ("", 0)

    def fault(self) -> Fault | None:
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _handle(self) -> None:
        body = self._body()
        fault = self.fault()
        if fault == "hang":
            time.sleep(HANG_SECONDS)
        if fault in ("hang", "reset"):
            self.close_connection = True
            self.connection.close()
        elif fault in ("500", "503"):
            code = "InternalError" if fault == "500" else "SlowDown"
            text = f"<Error><Code>{code}</Code><Message>as asked</Message></Error>".encode()
            self._answer(int(fault), [("Content-Type", "application/xml")], text, len(text))
        else:
            self._pass_on(body, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            whole = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _pass_on(self, body: bytes, *, cut: bool) -> None:
        store = http.client.HTTPConnection(*self.target, timeout=60)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in _NOT_PASSED_ON
        }
        headers.pop("Expect", None)
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        store.request(self.command, self.path, body, headers)
        answer = store.getresponse()
        content = answer.read()
        said = [(n, v) for n, v in answer.getheaders() if n.lower() not in _NOT_PASSED_ON]
        length = int(answer.getheader("Content-Length") or len(content))
        store.close()
        if cut:  # half of what was promised, and then the line goes dead
            self._answer(answer.status, said, content[: len(content) // 2], length)
            self.close_connection = True
            self.connection.close()
        else:
            self._answer(answer.status, said, content, length)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, length: int
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.wfile.flush()
