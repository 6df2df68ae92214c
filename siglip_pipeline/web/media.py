"""Media for the browser: pictures of stored frames, and the uploads."""

import hashlib
import mimetypes
from collections.abc import AsyncIterator
from email.utils import formatdate, parsedate_to_datetime
from typing import Annotated, BinaryIO, Final

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from siglip_pipeline.records import Upload
from siglip_pipeline.web.client_pictures import THUMBNAIL_WIDTHS, shrink_jpeg
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.query import MAX_ID
from siglip_pipeline.web.ranges import ByteRange, UnsatisfiableRangeError, parse_range
from siglip_pipeline.web.schemas import ErrorAnswer
from siglip_pipeline.web.services import CurrentServices

router = APIRouter(
    tags=["media"], responses={404: {"model": ErrorAnswer, "description": "Not known"}}
)

VideoId = Annotated[int, Path(ge=1, le=MAX_ID, examples=[7])]

CHUNK_BYTES: Final = 512 * 1024
# A video that is decoded again keeps its addresses: browsers revalidate, and get 304 if unchanged.
_CACHE_THUMBNAIL: Final = "private, max-age=300, stale-while-revalidate=86400"
_CACHE_STREAM: Final = "private, no-cache"
_TYPES: Final = {".mkv": "video/x-matroska", ".ts": "video/mp2t", ".m4v": "video/mp4"}


@router.get(
    "/api/thumbnails/{video_id}/{frame_index}.jpg",
    summary="Picture of a stored frame",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, 304: {"description": "Unchanged"}},
)
def thumbnail(
    request: Request,
    services: CurrentServices,
    video_id: VideoId,
    frame_index: Annotated[int, Path(ge=0, le=MAX_ID, examples=[300])],
    width: Annotated[
        int | None,
        Query(description=f"Shrink to one of {THUMBNAIL_WIDTHS} pixels; the stored size if unset."),
    ] = None,
) -> Response:
    """Return the stored JPEG, or a smaller one, with an ETag."""
    if width is not None and width not in THUMBNAIL_WIDTHS:
        raise HttpError(422, f"width={width}: one of {', '.join(map(str, THUMBNAIL_WIDTHS))}")
    name = services.name(video_id)
    if name.frames_version is None:
        raise HttpError(404, f"video {video_id} has no stored frames yet")
    tag = f'"{name.frames_version}-{frame_index}-{width or "full"}"'
    headers = {"ETag": tag, "Cache-Control": _CACHE_THUMBNAIL}
    if _matches(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    jpeg = services.frames.thumbnail(name.video, frame_index)
    if width is not None:
        jpeg = shrink_jpeg(jpeg, width)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.head("/api/videos/{video_id}/stream", include_in_schema=False)
@router.get(
    "/api/videos/{video_id}/stream",
    summary="The upload itself, whole or in ranges",
    response_class=Response,
    responses={
        200: {"content": {"video/*": {}}},
        206: {"description": "The range", "content": {"video/*": {}}},
        304: {"description": "Unchanged"},
        416: {"model": ErrorAnswer, "description": "The range is outside of the file"},
    },
)
async def stream(request: Request, services: CurrentServices, video_id: VideoId) -> Response:
    """Stream an upload to a player: `Range: bytes=…` gets 206, from a folder or a bucket."""
    name = await run_in_threadpool(services.name, video_id)
    upload, file = await run_in_threadpool(services.uploads.open_and_look, name.video)
    try:
        return _answer(request, upload, file)
    except BaseException:
        file.close()
        raise


def _answer(request: Request, upload: Upload, file: BinaryIO) -> "_FileResponse":
    """Return the requested part of an open upload."""
    tag = _upload_tag(upload)
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Cache-Control": _CACHE_STREAM,
        "Content-Disposition": "inline",
    }
    if upload.modified_at is not None:
        headers["Last-Modified"] = formatdate(upload.modified_at, usegmt=True)
    if _matches(request.headers.get("if-none-match"), tag):
        return _FileResponse(file, ByteRange(0, 0), 304, headers)
    wanted = _wanted(request, upload, tag)
    if wanted is None:
        part, status = ByteRange(0, upload.size_bytes), 200
    else:
        part, status = wanted, 206
        headers["Content-Range"] = part.content_range(upload.size_bytes)
    headers["Content-Length"] = str(len(part))
    sent = part if request.method != "HEAD" else ByteRange(0, 0)
    return _FileResponse(file, sent, status, headers, _media_type(upload.path))


def _wanted(request: Request, upload: Upload, tag: str) -> ByteRange | None:
    condition = request.headers.get("if-range")
    if condition is not None and condition != tag and not _is_date_of(condition, upload):
        return None
    try:
        return parse_range(request.headers.get("range"), upload.size_bytes)
    except UnsatisfiableRangeError as error:
        raise HttpError(
            416,
            f"range {request.headers['range'][:60]!r} is outside of the {upload.size_bytes} bytes",
            headers={"Content-Range": f"bytes */{upload.size_bytes}"},
        ) from error


def _is_date_of(condition: str, upload: Upload) -> bool:
    if upload.modified_at is None or condition.startswith(('"', "W/")):
        return False
    try:
        return int(parsedate_to_datetime(condition).timestamp()) == int(upload.modified_at)
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


def _upload_tag(upload: Upload) -> str:
    digest = hashlib.sha256(f"{upload.path}\0{upload.fingerprint}".encode()).hexdigest()
    return f'"{digest[:20]}"'


def _matches(header: str | None, tag: str) -> bool:
    """Return whether If-None-Match names the tag, by weak comparison as the RFC requires."""
    if header is None:
        return False
    given = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in given or tag in given


def _media_type(path: str) -> str:
    suffix = "." + path.rpartition(".")[2].lower()
    guessed = _TYPES.get(suffix) or mimetypes.guess_type("x" + suffix)[0] or ""
    # A browser must never run an upload as a page or a script of this site.
    return guessed if guessed.startswith(("video/", "audio/")) else "application/octet-stream"
