"""Post JSON to webhooks, such as the hits of standing queries.

The addresses are those of the operator. They may be secret, so no message shows them; no redirect
is followed, and a slow receiver is given up.
"""

import functools
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

from siglip_pipeline.errors import WatchError
from siglip_pipeline.store.watches import WatchHit, WatchStore
from siglip_pipeline.text.secret import Secret
from siglip_pipeline.text.timecode import timecode

_TIMEOUT_SECONDS: Final = 10
_BUDGET_SECONDS: Final = 20
"""What is not sent after this time waits for the next call: a sensor's tick ends after 60 s."""
_URL: Final = re.compile(r"[!-~]+")
"""Printable ASCII: what else an address names is percent-encoded, or punycode."""
_MOST_REASON: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliveries:
    """What became of the messages of one call."""

    sent: int
    failed: int
    """Attempts that failed, one of a watch at most; each is made again later, or was the last."""


def check_webhook(url: Secret) -> None:
    """Refuse an address that nothing is posted to.

    Raises:
        WatchError: it is no http or https address of a host, names a user, or has spaces or other
            characters that an address writes percent-encoded.
    """
    if webhook_host(url) is None:
        raise WatchError(
            "--webhook: give the address of a service, as https://HOST/PATH or http://HOST/PATH, "
            "without a user; write spaces and characters beyond ASCII percent-encoded"
        )


def webhook_host(url: Secret) -> str | None:
    """Return what may be shown of a webhook: its scheme, host and port; None if it is none."""
    if _URL.fullmatch(url.reveal()) is None:
        return None
    try:
        parts = urlsplit(url.reveal())
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    return f"{parts.scheme}://{parts.hostname}{port}"


def post_json(url: Secret, document: Mapping[str, Any]) -> None:
    """Post a document; anything but an answer of 2xx is a failure, redirects included.

    Raises:
        OSError: the address does not answer within 10 s, or with an error.
        ValueError: the address is no http or https URL.
    """
    if webhook_host(url) is None:
        raise ValueError("the address is no http or https URL of a host")
    request = urllib.request.Request(
        url.reveal(),
        data=json.dumps(document).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with _opener().open(request, timeout=_TIMEOUT_SECONDS):
            pass
    except HTTPException as error:  # it may quote the address
        raise OSError(f"the answer is no HTTP ({type(error).__name__})") from url.masked_error(
            error
        )


def send_due(store: WatchStore, *, page_address: Callable[[str], str]) -> Deliveries:
    """Post the hits of standing queries whose message is due.

    After a failure the other messages of that watch wait for the next call: an address that does
    not answer holds up those of no other watch.

    Args:
        store: holds the hits.
        page_address: makes the address of a page of the search service.
    """
    sent = 0
    failed: set[str] = set()
    end = time.monotonic() + _BUDGET_SECONDS
    while time.monotonic() < end and (claimed := store.claim(besides=failed)):
        found, url = claimed
        try:
            post_json(url, _message_of(found, page_address=page_address))
        except (OSError, ValueError) as error:
            store.note_failure(found.hit_id, _reason(url, error))
            failed.add(found.watch)
        else:
            store.note_sent(found.hit_id)
            sent += 1
    return Deliveries(sent=sent, failed=len(failed))


def _reason(url: Secret, error: Exception) -> str:
    """Return why a post failed, without the address; the receiver writes parts of it."""
    said = url.masked(f"{type(error).__name__}: {error}")
    return "".join(c if c.isprintable() else " " for c in said)[:_MOST_REASON]


def _message_of(found: WatchHit, *, page_address: Callable[[str], str]) -> dict[str, Any]:
    """Return the document about a hit; chats show its ``text``, ``id`` tells a repeated one."""
    hit = found.hit
    place = f"{hit.video} at {timecode(hit.media_time_seconds)}"
    return {
        "id": found.hit_id,
        "text": f"{found.watch}: {place} ({hit.probability:.0%})",
        "watch": found.watch,
        "query": found.query,
        "video": hit.video,
        "video_id": hit.video_id,
        "time_seconds": round(hit.time_seconds, 3),
        "media_time_seconds": round(hit.media_time_seconds, 3),
        "start_seconds": round(hit.start_seconds, 3),
        "end_seconds": round(hit.end_seconds, 3),
        "score": round(hit.score, 6),
        "probability": round(hit.probability, 6),
        "found_at": found.found_at.isoformat(),
        "url": page_address(hit.page_path),
    }


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https alone, which follows no redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener
