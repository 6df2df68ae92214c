"""Signed, expiring addresses of media: a front end elsewhere shows them without the key."""

import hashlib
import hmac
import re
import secrets
import time
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from siglip_pipeline.text.secret import Secret
from siglip_pipeline.web.http_errors import HttpError

_MEDIA: Final = re.compile(
    r"/api/(thumbnails/\d+/\d+\.jpg|pictures/[0-9a-f]{32}\.jpg"
    r"|videos/\d+/(stream|clip\.mp4|playable\.mp4))"
)


class MediaSignatures:
    """Signs addresses of media and checks them.

    Args:
        key: the API key, from which the secret is derived: a new key ends all signatures. None:
            signatures hold for this process.
    """

    def __init__(self, key: Secret | None) -> None:
        own = secrets.token_bytes(32) if key is None else key.reveal().encode()
        self._secret = hmac.new(own, b"siglip-pipeline media", hashlib.sha256).digest()

    def sign(self, address: str, *, seconds: float) -> str:
        """Return an address that may be opened without a key for some time.

        Raises:
            HttpError: 422, it is not the address of a picture or a video here.
        """
        parts = urlsplit(address)
        if not _MEDIA.fullmatch(parts.path):
            raise HttpError(
                422,
                f"{address[:80]!r} cannot be signed: only addresses of pictures and videos, such "
                "as /api/thumbnails/7/300.jpg",
            )
        given = [(n, v) for n, v in parse_qsl(parts.query) if n not in ("expires", "signature")]
        items = [*given, ("expires", str(int(time.time() + seconds)))]
        return f"{parts.path}?{urlencode([*items, ('signature', self._of(parts.path, items))])}"

    def allow(self, path: str, query: str) -> bool:
        """Return whether a request carries a signature that holds; False if it carries none.

        Raises:
            HttpError: 403, the signature is wrong or has expired.
        """
        if "signature=" not in query or not _MEDIA.fullmatch(path):
            return False
        items = parse_qsl(query, keep_blank_values=True)
        signatures = [value for name, value in items if name == "signature"]
        if not signatures:
            return False
        signed = [(name, value) for name, value in items if name != "signature"]
        expected = self._of(path, signed)
        if not hmac.compare_digest(signatures[0].encode(), expected.encode()):
            raise HttpError(403, "the signature does not belong to this address; sign it again")
        expires = dict(signed).get("expires", "0")
        if not expires.isascii() or not expires.isdigit() or time.time() >= int(expires):
            raise HttpError(403, "the signature has expired; sign the address again")
        return True

    def _of(self, path: str, items: list[tuple[str, str]]) -> str:
        message = f"{path}?{urlencode(items)}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
