"""Send open files, whole or in byte ranges, with validators for caches."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import BinaryIO, Final
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from siglip_pipeline.web.delivery import HEAD
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.ranges import ByteRange, UnsatisfiableRangeError, parse_range

CHUNK_BYTES: Final = 512 * 1024
_CACHE: Final = "private, no-cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """The properties of a file that a client receives."""

    name: str
    """File name of a download."""
    size_bytes: int
    tag: str
    """Its ETag, in quotation marks."""
    media_type: str
    modified_at: float | None = None


def file_response(request: Request, file: BinaryIO, facts: FileFacts) -> StreamingResponse:
    """Return the requested part of an open file, which is closed once it is sent, or on an error.

    Raises:
        HttpError: 416, the range is outside of the file.
    """
    try:
        return _response(request, file, facts)
    except BaseException:
        file.close()
        raise


def _response(request: Request, file: BinaryIO, facts: FileFacts) -> StreamingResponse:
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": facts.tag,
        "Cache-Control": _CACHE,
        "Content-Disposition": content_disposition(facts.name),
    }
    if facts.modified_at is not None:
        headers["Last-Modified"] = formatdate(facts.modified_at, usegmt=True)
    if matches(request.headers.get("if-none-match"), facts.tag):
        return _FileResponse(file, ByteRange(0, 0), 304, headers)
    wanted = _wanted(request, facts)
    if wanted is None:
        part, status = ByteRange(0, facts.size_bytes), 200
    else:
        part, status = wanted, 206
        headers["Content-Range"] = part.content_range(facts.size_bytes)
    headers["Content-Length"] = str(len(part))
    sent = part if HEAD not in request.scope else ByteRange(0, 0)
    return _FileResponse(file, sent, status, headers, facts.media_type)


def content_disposition(name: str, kind: str = "inline") -> str:
    """Return the header that names a file for those who save it (RFC 6266)."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    encoded = quote(name, safe="", errors="replace")
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def matches(header: str | None, tag: str) -> bool:
    """Return whether If-None-Match names the tag, by weak comparison as the RFC requires."""
    if header is None:
        return False
    given = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in given or tag in given


def _wanted(request: Request, facts: FileFacts) -> ByteRange | None:
    condition = request.headers.get("if-range")
    if condition is not None and condition != facts.tag and not _is_date_of(condition, facts):
        return None
    try:
        return parse_range(request.headers.get("range"), facts.size_bytes)
    except UnsatisfiableRangeError as error:
        raise HttpError(
            416,
            f"range {request.headers['range'][:60]!r} is outside of the {facts.size_bytes} bytes",
            headers={"Content-Range": f"bytes */{facts.size_bytes}"},
        ) from error


def _is_date_of(condition: str, facts: FileFacts) -> bool:
    if facts.modified_at is None or condition.startswith(('"', "W/")):
        return False
    try:
        return int(parsedate_to_datetime(condition).timestamp()) == int(facts.modified_at)
    except (ValueError, OverflowError):
        return False


class _FileResponse(StreamingResponse):
    """A range of an open file, which is closed in any case: sent, aborted or never begun."""

    def __init__(
        self,
        file: BinaryIO,
        part: ByteRange,
        status: int,
        headers: dict[str, str],
        media_type: str | None = None,
    ) -> None:
        super().__init__(_read(file, part), status, headers, media_type)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


async def _read(file: BinaryIO, part: ByteRange) -> AsyncIterator[bytes]:
    length = len(part)
    if length:
        await run_in_threadpool(file.seek, part.start)
    while length > 0:
        chunk = await run_in_threadpool(file.read, min(CHUNK_BYTES, length))
        if not chunk:
            return  # the file became shorter: the client sees the wrong length
        length -= len(chunk)
        yield chunk
