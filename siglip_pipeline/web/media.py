"""Media for the browser: pictures of stored frames, and the uploads."""

import hashlib
import mimetypes
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from siglip_pipeline.records import Upload
from siglip_pipeline.web.client_pictures import THUMBNAIL_WIDTHS, shrink_jpeg
from siglip_pipeline.web.file_responses import FileFacts, file_response, matches
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.parameters import StrictRoute
from siglip_pipeline.web.query import MAX_ID
from siglip_pipeline.web.schemas import ErrorAnswer, SignAnswer, SignBody
from siglip_pipeline.web.services import CurrentServices
from siglip_pipeline.web.signatures import MediaSignatures

FILE: Final = {"schema": {"type": "string", "format": "binary"}}
JPEG: Final = {"description": "The picture", "content": {"image/jpeg": FILE}}
MEDIA_FAILURES: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": ErrorAnswer, "description": "Not known, or gone"},
    422: {"model": ErrorAnswer, "description": "A parameter cannot be used"},
    503: {"model": ErrorAnswer, "description": "The database or the storage does not answer"},
}

router = APIRouter(tags=["media"], responses=MEDIA_FAILURES, route_class=StrictRoute)

VideoId = Annotated[int, Path(ge=1, le=MAX_ID, examples=[7])]

# A video that is decoded again keeps its addresses: browsers revalidate, and get 304 if unchanged.
_CACHE_THUMBNAIL: Final = "private, max-age=300, stale-while-revalidate=86400"
_TYPES: Final = {".mkv": "video/x-matroska", ".ts": "video/mp2t", ".m4v": "video/mp4"}


@router.post("/api/sign", summary="Sign addresses of media")
async def sign_urls(request: Request, body: SignBody) -> SignAnswer:
    """Return addresses that open without the key, and from pages elsewhere, for some time."""
    signatures: MediaSignatures = request.app.state.signatures
    return SignAnswer(urls=[signatures.sign(url, seconds=body.seconds) for url in body.urls])


@router.get(
    "/api/thumbnails/{video_id}/{frame_index}.jpg",
    summary="Picture of a stored frame",
    response_class=Response,
    responses={200: JPEG, 304: {"description": "Unchanged"}},
)
def get_thumbnail(
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
    if matches(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    jpeg = services.frames.thumbnail(name.video, frame_index)
    if width is not None:
        jpeg = shrink_jpeg(jpeg, width)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.get(
    "/api/pictures/{picture}.jpg",
    summary="The picture of an earlier search",
    response_class=Response,
    responses={200: JPEG},
)
def get_picture(
    services: CurrentServices, picture: Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
) -> Response:
    """Return a picture that somebody searched by, shrunk."""
    jpeg = services.pictures.jpeg(picture)
    if jpeg is None:
        raise HttpError(404, "this picture is not kept any more (SIGLIP_HTTP_PICTURES_KEPT_MIB)")
    headers = {"Cache-Control": _CACHE_THUMBNAIL}
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.get(
    "/api/videos/{video_id}/stream",
    summary="The upload itself, whole or in ranges",
    response_class=Response,
    responses={
        200: {"description": "The file", "content": {"video/*": FILE}},
        206: {"description": "The range", "content": {"video/*": FILE}},
        304: {"description": "Unchanged"},
        416: {"model": ErrorAnswer, "description": "The range is outside of the file"},
    },
)
async def get_upload(request: Request, services: CurrentServices, video_id: VideoId) -> Response:
    """Stream an upload to a player: `Range: bytes=…` gets 206, from a folder or a bucket."""
    name = await run_in_threadpool(services.name, video_id)
    upload, file = await run_in_threadpool(services.uploads.open_and_look, name.video)
    return file_response(request, file, _upload_facts(upload))


def _upload_facts(upload: Upload) -> FileFacts:
    """Return what a client is told of an upload."""
    return FileFacts(
        name=upload.path.rpartition("/")[2],
        size_bytes=upload.size_bytes,
        tag=_upload_tag(upload),
        media_type=_media_type(upload.path),
        modified_at=upload.modified_at,
    )


def _upload_tag(upload: Upload) -> str:
    digest = hashlib.sha256(f"{upload.path}\0{upload.fingerprint}".encode()).hexdigest()
    return f'"{digest[:20]}"'


def _media_type(path: str) -> str:
    suffix = "." + path.rpartition(".")[2].lower()
    guessed = _TYPES.get(suffix) or mimetypes.guess_type("x" + suffix)[0] or ""
    # A browser must never run an upload as a page or a script of this site.
    return guessed if guessed.startswith(("video/", "audio/")) else "application/octet-stream"
