"""Pages of other origins that may use the API: those of `SIGLIP_HTTP_CORS_ORIGINS`, no others."""

from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

_EXPOSED: Final = "Content-Disposition, Content-Range, ETag, Retry-After, X-Sound"
_REQUESTED: Final = "Authorization, Content-Type, Range, X-API-Key"
_KEPT_SECONDS: Final = 600


def parse_origins(text: str) -> frozenset[str]:
    """Return the origins of a list separated by commas, in lower case."""
    return frozenset(part.strip().lower().rstrip("/") for part in text.split(",") if part.strip())


class CorsOrigins:
    """The origins that may use the API.

    Args:
        origins: such as ``https://app.example``.
    """

    def __init__(self, origins: frozenset[str]) -> None:
        self._origins = origins

    def allowed(self, scope: Scope) -> str | None:
        """Return the origin of a request to the API, if it may use it."""
        if not self._origins or not scope["path"].startswith("/api/"):
            return None
        origin = Headers(scope=scope).get("origin", "")
        return origin if origin.lower() in self._origins else None

    @staticmethod
    def is_preflight(scope: Scope) -> bool:
        """Return whether a browser asks what it may request."""
        return scope.get("method") == "OPTIONS" and "access-control-request-method" in Headers(
            scope=scope
        )

    @staticmethod
    def headers(origin: str, *, preflight: bool = False) -> dict[str, str]:
        """Return the headers that let a page of an origin read an answer; without cookies."""
        given = {
            "Access-Control-Allow-Origin": origin,
            "Vary": "Origin",
            "Cross-Origin-Resource-Policy": "cross-origin",
        }
        if not preflight:
            return given | {"Access-Control-Expose-Headers": _EXPOSED}
        return given | {
            "Access-Control-Allow-Methods": "GET, HEAD, POST",
            "Access-Control-Allow-Headers": _REQUESTED,
            "Access-Control-Max-Age": str(_KEPT_SECONDS),
        }
