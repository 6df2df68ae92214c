"""The API key of all services, as programs and browsers send it."""

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from typing import Final

from starlette.datastructures import Headers

from siglip_pipeline.text.secret import Secret

SESSION_COOKIE: Final = "siglip_session"


class ApiKey:
    """The key that requests must carry; without a key, every request is allowed.

    Args:
        key: ``SIGLIP_API_KEY``.
    """

    def __init__(self, key: Secret | None) -> None:
        self._key = key
        self.session = "" if key is None else _session_token(key)
        """Content of the browser's cookie after signing in: derived from the key, not the key."""

    @property
    def is_set(self) -> bool:
        """Return whether a key is set."""
        return self._key is not None

    def matches(self, given: str) -> bool:
        """Return whether this is the key; False when none is set."""
        return self._key is not None and self._key.matches(given)

    def lets_in(self, headers: Headers) -> bool:
        """Return whether a request is allowed: it has the key or the cookie, or no key is set."""
        if self._key is None:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Always compare both, so that the time taken reveals nothing.
        by_key = self.matches(given)
        by_cookie = hmac.compare_digest(_session_of(headers).encode(), self.session.encode())
        return by_key or by_cookie


def _session_token(key: Secret) -> str:
    secret = key.reveal().encode()
    return hmac.new(secret, b"siglip-pipeline session", hashlib.sha256).hexdigest()


def _session_of(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(SESSION_COOKIE)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value
