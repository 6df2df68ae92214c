"""HTTP routes of clips: videos that a browser cannot play, converted to H.264 in MP4 on demand."""

import asyncio
import os
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from siglip_pipeline.errors import UploadNotFoundError, VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.text.timecode import timecode
from siglip_pipeline.video.clip_cache import KeptClip, Making, Span
from siglip_pipeline.web.file_responses import FileFacts, file_response
from siglip_pipeline.web.http_errors import HttpError, busy
from siglip_pipeline.web.media import FILE, MEDIA_FAILURES, VideoId
from siglip_pipeline.web.parameters import StrictRoute
from siglip_pipeline.web.query import MAX_SECONDS
from siglip_pipeline.web.schemas import ErrorAnswer, PlayableAnswer
from siglip_pipeline.web.services import CurrentServices, Services, unknown_video

MAX_CLIP_SECONDS: Final = 120.0
"""Longest clip, for which a person waits."""

SOUND_HEADER: Final = "X-Sound"

_FAILURES: Final = MEDIA_FAILURES | {
    422: {"model": ErrorAnswer, "description": "It cannot be decoded, or the times are wrong"},
    503: {"model": ErrorAnswer, "description": "Too many clips are being made; see Retry-After"},
}
LOST_SOUND: Final = "Its sound cannot be decoded"
_NOTED: Final = {
    SOUND_HEADER: {
        "description": "`lost`: there is no sound, because that of the upload cannot be decoded",
        "schema": {"type": "string"},
    }
}
_FILE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"video/mp4": FILE}, "description": "The clip", "headers": _NOTED},
    206: {"content": {"video/mp4": FILE}, "description": "The range", "headers": _NOTED},
    304: {"description": "Unchanged"},
    416: {"model": ErrorAnswer, "description": "The range is outside of the file"},
}

router = APIRouter(tags=["media"], responses=_FAILURES, route_class=StrictRoute)


@router.get(
    "/api/videos/{video_id}/clip.mp4",
    summary="A part of a video as MP4",
    response_class=Response,
    responses=_FILE,
)
async def get_clip(
    request: Request,
    services: CurrentServices,
    video_id: VideoId,
    start: Annotated[float, Query(alias="from", ge=0, le=MAX_SECONDS, allow_inf_nan=False)],
    end: Annotated[float, Query(alias="to", ge=0, le=MAX_SECONDS, allow_inf_nan=False)],
) -> Response:
    """Return `from` to `to` (at most 120 s) as H.264 and AAC, once it is made."""
    if not start < end <= start + MAX_CLIP_SECONDS:
        raise HttpError(
            422,
            f"from={start:g}, to={end:g}: from is before to, by {MAX_CLIP_SECONDS:g} s at the most;"
            " POST …/playable makes all of a video",
        )
    upload, duration = await run_in_threadpool(_look, services, video_id)
    if start > duration:
        raise HttpError(422, f"from={start:g} is after the end of the video, {duration:g} s")
    span = Span(start_seconds=start, end_seconds=end)
    clip = await run_in_threadpool(services.clips.open, upload, span)
    while clip is None:
        # Do not wait on a thread: searches need them.
        await asyncio.wrap_future(_made(services, upload, span, duration).done)
        clip = await run_in_threadpool(services.clips.open, upload, span)
    times = "-".join(timecode(second).replace(":", ".") for second in (start, end))
    return _clip_response(request, clip, f"{_stem(upload)} {times}.mp4")


@router.get("/api/videos/{video_id}/playable", summary="Is all of a video there as MP4?")
def get_playable(services: CurrentServices, video_id: VideoId) -> PlayableAnswer:
    """Return whether the whole video was converted, or how far it has come."""
    upload, _ = _look(services, video_id)
    making = services.clips.making(upload, Span())  # first: it ends once the file is there
    if making is not None and not making.done.done():
        return _progress(making)
    clip = services.clips.open(upload, Span())
    if clip is None:
        return _progress(making)
    clip.file.close()
    url = f"/api/videos/{video_id}/playable.mp4"
    reason = LOST_SOUND if clip.lost_sound else None
    return PlayableAnswer(state="ready", share=1.0, reason=reason, url=url)


@router.post("/api/videos/{video_id}/playable", summary="Make all of a video playable")
def make_playable(services: CurrentServices, video_id: VideoId) -> PlayableAnswer:
    """Begin to convert the whole video; ask with GET how far it has come."""
    answer = get_playable(services, video_id)
    if answer.state in ("ready", "making"):
        return answer
    upload, duration = _look(services, video_id)
    return _progress(_made(services, upload, Span(), duration))


@router.get(
    "/api/videos/{video_id}/playable.mp4",
    summary="All of a video as MP4",
    response_class=Response,
    responses=_FILE,
)
async def get_playable_file(
    request: Request, services: CurrentServices, video_id: VideoId
) -> Response:
    """Return the whole video as H.264 and AAC, if it was made."""
    upload, _ = await run_in_threadpool(_look, services, video_id)
    clip = await run_in_threadpool(services.clips.open, upload, Span())
    if clip is None:
        raise HttpError(404, f"it is not made yet: POST /api/videos/{video_id}/playable begins it")
    return _clip_response(request, clip, f"{_stem(upload)}.mp4")


def _look(services: Services, video_id: int) -> tuple[Upload, float]:
    """Return the upload of a video, and its length."""
    row = services.videos.by_id(video_id)
    if row is None:
        raise unknown_video(video_id)
    return services.uploads.get(row.video), row.duration_seconds or MAX_SECONDS


def _made(services: Services, upload: Upload, span: Span, duration: float) -> Making:
    making = services.clips.make(upload, span, duration_seconds=duration)
    if making is None:
        raise busy("clips are being made")
    return making


def _progress(making: Making | None) -> PlayableAnswer:
    if making is None:
        return PlayableAnswer(state="absent", share=0.0, reason=None, url=None)
    error = making.done.exception() if making.done.done() else None
    if error is None:
        return PlayableAnswer(state="making", share=making.share, reason=None, url=None)
    known = isinstance(error, VideoError | UploadNotFoundError)
    reason = str(error) if known else "the service's log says why"
    return PlayableAnswer(state="failed", share=making.share, reason=reason, url=None)


def _stem(upload: Upload) -> str:
    """Return the file name of an upload without its extension."""
    return upload.path.rpartition("/")[2].rpartition(".")[0] or "video"


def _clip_response(request: Request, clip: KeptClip, name: str) -> Response:
    status = os.fstat(clip.file.fileno())
    facts = FileFacts(
        name=name,
        size_bytes=status.st_size,
        # A clip that is made again may have other bytes.
        tag=f'"{status.st_ino:x}-{status.st_size:x}"',
        media_type="video/mp4",
    )
    response = file_response(request, clip.file, facts)
    if clip.lost_sound:
        response.headers[SOUND_HEADER] = "lost"
    return response
