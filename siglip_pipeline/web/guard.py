"""Checks of every request: size, host, key and rate; and the headers of every answer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from siglip_pipeline.settings import Settings
from siglip_pipeline.web.cors import CorsOrigins, parse_origins
from siglip_pipeline.web.http_errors import HttpError, busy
from siglip_pipeline.web.keys import ApiKey
from siglip_pipeline.web.limits import TokenBuckets
from siglip_pipeline.web.origin import check_same_site
from siglip_pipeline.web.proxies import behind_proxies, one_client, parse_networks
from siglip_pipeline.web.sign_in import LOGIN_PATH
from siglip_pipeline.web.signatures import MediaSignatures

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", LOGIN_PATH})
OPEN_PREFIX: Final = "/static/"
GUARD_ANSWERS: Final = {
    400: "The request holds a NUL character, or makes no sense",
    401: "A key is needed",
    403: "It comes from a page of another site, or is for a foreign host name without a key",
    413: "The body is too large",
    429: "Too many requests; see Retry-After",
}
"""Errors that may answer a request before it reaches its handler."""
MAX_BODIES: Final = 16
"""Limit of all bodies in memory, in bodies of the largest size."""
# A page of results requests dozens of pictures, which cost little: each counts a tenth.
_CHEAP_PREFIXES: Final = ("/api/thumbnails/", OPEN_PREFIX)
_CHEAP: Final = 0.1

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; media-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_DEFAULT_HEADERS: Final = [
    (name.lower().encode(), value.encode())
    for name, value in {**SECURITY_HEADERS, "Cache-Control": "private, no-cache"}.items()
]
"""In ASGI's form; headers that an answer sets itself win."""


class Guard:
    """ASGI middleware around the whole application.

    Refuses with a JSON error: bodies over the limit (413), wrong or missing keys (401), too many
    requests (429), requests from pages of other sites, hosts other than loopback while there is no
    key (403, see :func:`check_same_site`), and NUL bytes (400).

    Args:
        app: what requests are passed on to.
        settings: limits, the key, and the origins that may use the API.
        signatures: of media; None where there are no media, and no other origin may ask.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, signatures: MediaSignatures | None = None
    ) -> None:
        self._app = app
        self._signatures = signatures
        origins = settings.http_cors_origins if signatures is not None else None
        self._cors = CorsOrigins(parse_origins(origins or ""))
        self._key = ApiKey(settings.api_key)
        self._proxies = parse_networks(settings.trusted_proxies or "")
        self._max_body_bytes = int(settings.http_max_body_mib * 2**20)
        self._bodies_bytes = 0
        self._buckets = TokenBuckets(
            per_second=settings.http_requests_per_second, burst=settings.http_request_burst
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope = behind_proxies(scope, self._proxies)

        origin = self._cors.allowed(scope)
        more = {} if origin is None else self._cors.headers(origin)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                defaults = [*_encoded(more), *_DEFAULT_HEADERS]
                given.discard(b"vary")  # may be there several times
                missing = dict(header for header in reversed(defaults) if header[0] not in given)
                message = {**message, "headers": [*message["headers"], *missing.items()]}
            await send(message)

        if origin is not None and self._cors.is_preflight(scope):
            headers = self._cors.headers(origin, preflight=True)
            await Response(status_code=204, headers=headers)(scope, receive, send_with_headers)
            return
        try:
            if self._check(scope, allowed_origin=origin):
                more["Cross-Origin-Resource-Policy"] = "cross-origin"
        except HttpError as error:
            await self._refuse(error, scope, receive, send_with_headers)
            return
        with self._counted(receive) as counted:
            await self._app(scope, counted, send_with_headers)

    def _check(self, scope: Scope, *, allowed_origin: str | None) -> bool:
        """Refuse a request; return whether a signature lets it in."""
        path: str = scope["path"]
        headers = Headers(scope=scope)
        if "\0" in path or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
            raise HttpError(400, "the request holds a NUL character, which no name or text has")
        signed = self._signatures is not None and self._signatures.allow(
            path, scope["query_string"].decode("latin-1")
        )
        foreign = check_same_site(
            scope,
            any_host=self._key.is_set,
            is_page=_is_page,
            any_origin=signed or allowed_origin is not None,
        )
        if foreign is not None:
            raise HttpError(403, foreign)
        client = scope["client"][0] if scope.get("client") else ""
        cheap = path.startswith(_CHEAP_PREFIXES) or path.endswith("/stream")
        wait = self._buckets.take(one_client(client), _CHEAP if cheap else 1.0)
        if wait:
            seconds = str(math.ceil(wait))
            message = f"too many requests from {client}; try again in {seconds} s"
            raise HttpError(429, message, headers={"Retry-After": seconds})
        # After the rate limit, which also limits guesses of the key.
        is_open = path in OPEN_PATHS or path.startswith(OPEN_PREFIX)
        if not is_open and not signed and not self._key.lets_in(headers):
            raise HttpError(
                401,
                "a key is needed: send it as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'",
                headers={"WWW-Authenticate": 'Bearer realm="siglip-pipeline"'},
            )
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > self._max_body_bytes:
            raise self._too_large()
        return signed

    @contextmanager
    def _counted(self, receive: Receive) -> Iterator[Receive]:
        """Count the bytes of a request, and of all requests in progress."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._bodies_bytes += size
            if received > self._max_body_bytes:
                raise self._too_large()
            if self._bodies_bytes > MAX_BODIES * self._max_body_bytes:
                raise busy("large bodies are being read")
            return message

        try:
            yield counted
        finally:
            self._bodies_bytes -= received

    def _too_large(self) -> HttpError:
        limit = f"{self._max_body_bytes / 2**20:.3g}"
        return HttpError(413, f"the body is larger than {limit} MiB (SIGLIP_HTTP_MAX_BODY_MIB)")

    async def _refuse(self, error: HttpError, scope: Scope, receive: Receive, send: Send) -> None:
        wants_page = "text/html" in Headers(scope=scope).get("accept", "")
        if error.status_code == 401 and wants_page and _is_page(scope["path"]):
            query = scope["query_string"].decode("latin-1")
            target = quote(scope["path"] + (f"?{query}" if query else ""), safe="")
            response = RedirectResponse(f"{LOGIN_PATH}?next={target}", status_code=303)
            await response(scope, receive, send)
            return
        await error.response()(scope, receive, send)


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def _is_page(path: str) -> bool:
    return not path.startswith("/api/")
