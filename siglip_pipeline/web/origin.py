"""The origin of a request, and what pages of other sites may request.

A browser names the origin in Host, Origin and Sec-Fetch-*, which no page can change. Programs send
only Host, so the other two do not affect them.
"""

from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from siglip_pipeline.services.binding import is_loopback

_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_OWN: Final = frozenset({"same-origin", "none"})
"""Allowed values of Sec-Fetch-Site: a page of this service, and an address bar or bookmark."""


def check_same_site(
    scope: Scope, *, any_host: bool, is_page: Callable[[str], bool], any_origin: bool = False
) -> str | None:
    """Return why a request, or the opening of a websocket, is refused; None if it is not.

    Following a link from elsewhere to a page is allowed. Everything else that a browser sends for a
    page of another origin is refused: forms, scripts, pictures, frames and websockets. Other ports
    of this machine are other origins.

    Args:
        scope: of ASGI, of type ``http`` or ``websocket``.
        any_host: whether any host name is accepted. If not, only loopback names: otherwise the name
            of a hostile page could resolve to this machine (DNS rebinding).
        is_page: whether a path is an HTML page, which changes nothing when it is read.
        any_origin: whether pages of any origin may request it.
    """
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not any_host and not is_loopback(_hostname(host)):
        return (
            f"host {host[:80]!r} is not this machine; without SIGLIP_API_KEY the service answers "
            "to localhost and loopback addresses only"
        )
    if any_origin:
        return None
    for origin in headers.getlist("origin"):
        if not _is_of_host(origin, host):
            return (
                f"the request comes from a page of {origin[:80]!r}, and this is {host[:80]!r}: "
                "pages of other sites may link here and do nothing else (a proxy in between has to "
                "pass the header Host on)"
            )
    site = headers.get("sec-fetch-site", "none")
    if site in _OWN or (_follows_link(scope, headers) and is_page(scope["path"])):
        return None
    return (
        f"the request comes from a page elsewhere (Sec-Fetch-Site: {site[:80]}): pages of other "
        "sites may link to pages here and do nothing else"
    )


def _follows_link(scope: Scope, headers: Headers) -> bool:
    """Return whether the request is a top-level navigation: no frame, no posted form."""
    return (
        scope.get("method") in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _is_of_host(origin: str, host: str) -> bool:
    scheme, _, authority = origin.lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    # The scheme is not compared: a proxy that adds TLS changes it.
    return port is not None and authority.removesuffix(port) == host.lower().removesuffix(port)


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
