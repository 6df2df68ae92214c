"""How answers are delivered: HEAD for whatever GET answers, and compressed where it helps."""

from typing import Final

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

HEAD: Final = "siglip.head"
"""Key of a scope whose request was HEAD: what takes time to read need not be read."""
_COMPRESSED_ALREADY: Final = (".jpg", ".mp4", "/stream")
_LEAST_BYTES: Final = 4096
"""Ten hits have 3 kB, which take longer to compress than to send."""
_LEVEL: Final = 5


class HeadAsGet:
    """ASGI middleware that lets the handlers of GET answer HEAD; the server sends no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET", HEAD: True}
        await self._app(scope, receive, send)


class Compressed:
    """ASGI middleware that compresses answers with gzip, but for pictures and videos."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._gzip = GZipMiddleware(app, minimum_size=_LEAST_BYTES, compresslevel=_LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        plain = scope["type"] != "http" or scope["path"].endswith(_COMPRESSED_ALREADY)
        await (self._app if plain else self._gzip)(scope, receive, send)
