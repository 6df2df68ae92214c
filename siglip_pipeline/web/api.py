"""The JSON API. Handlers are plain functions: they run in threads, never on the event loop."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from siglip_pipeline.errors import SiglipPipelineError
from siglip_pipeline.search import SearchResult
from siglip_pipeline.status import collect_status
from siglip_pipeline.web.errors import HttpError
from siglip_pipeline.web.media import VideoId
from siglip_pipeline.web.query import (
    MAX_ID,
    MAX_SECONDS,
    Filter,
    Page,
    Slice,
    hit_urls,
    search_picture,
    search_similar,
    search_text,
)
from siglip_pipeline.web.schemas import (
    DuplicatesAnswer,
    ErrorAnswer,
    FrameAnswer,
    HealthAnswer,
    HitAnswer,
    MomentAnswer,
    SearchAnswer,
    SharedSegmentAnswer,
    VideoAnswer,
    VideoDetailAnswer,
    VideosAnswer,
)
from siglip_pipeline.web.services import CurrentServices, Services, unknown_video

TIMELINE_FRAMES = 24

_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The query makes no sense"},
    401: {"model": ErrorAnswer, "description": "A key is needed"},
    409: {"model": ErrorAnswer, "description": "Nothing is indexed yet"},
    422: {"model": ErrorAnswer, "description": "A parameter cannot be used"},
    429: {"model": ErrorAnswer, "description": "Too many requests; see Retry-After"},
    503: {"model": ErrorAnswer, "description": "The database does not answer; see Retry-After"},
}
_MEDIA_FAILURES: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorAnswer, "description": "The picture is too large"},
    415: {"model": ErrorAnswer, "description": "No picture that can be read"},
}
_PICTURE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}

router = APIRouter(responses=_FAILURES)
health = APIRouter(tags=["health"])


@router.get("/api/search", tags=["search"], summary="Search by text", response_model=SearchAnswer)
def search_by_text(
    request: Request,
    services: CurrentServices,
    page: Page,
    filter: Filter,
    q: Annotated[
        str,
        Query(
            min_length=1,
            description='What to look for, in the words of a caption; or a mix: `+"snow" '
            '-"people"`.',
            examples=["a red car on a bridge"],
        ),
    ],
) -> Response:
    """Moments that show what the text says, best first."""
    return _answer(request, page, search_text(services, q, page, filter))


@router.post(
    "/api/search",
    tags=["search"],
    summary="Search by picture",
    response_model=SearchAnswer,
    responses=_MEDIA_FAILURES,
    openapi_extra=_PICTURE_BODY,
)
async def search_by_picture(
    request: Request, services: CurrentServices, page: Page, filter: Filter
) -> Response:
    """Moments that look like the picture in the body, raw or as the form field `image`."""
    data = await picture_in(request)
    result = await run_in_threadpool(search_picture, services, data, page, filter)
    # Its next page would need the picture again: send it with another offset.
    return _answer(request, page, result, has_next=False)


@router.get(
    "/api/similar",
    tags=["search"],
    summary="More like a moment",
    response_model=SearchAnswer,
    responses={404: {"model": ErrorAnswer, "description": "No such video"}},
)
def similar(
    request: Request,
    services: CurrentServices,
    page: Page,
    filter: Filter,
    like: Annotated[
        str | None, Query(description="`VIDEO@SECONDS`.", examples=["holiday/beach.mp4@12.5"])
    ] = None,
    video_id: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
    seconds: Annotated[float | None, Query(ge=0, le=MAX_SECONDS, allow_inf_nan=False)] = None,
) -> Response:
    """Moments that look like another one, given as `like`, or as `video_id` and `seconds`."""
    result = search_similar(services, page, filter, like=like, video_id=video_id, seconds=seconds)
    return _answer(request, page, result)


@router.get("/api/videos", tags=["videos"], summary="All videos")
def videos(
    services: CurrentServices,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=MAX_ID)] = 0,
) -> VideosAnswer:
    """Videos by path, with how far each has come; `next` is the address of the next page."""
    rows = services.videos.page(limit=limit, offset=offset)
    total = services.videos.count()
    more = offset + limit < total
    return VideosAnswer(
        videos=[VideoAnswer.of(row) for row in rows],
        total=total,
        next=f"/api/videos?limit={limit}&offset={offset + limit}" if more else None,
    )


@router.get(
    "/api/videos/{video_id}",
    tags=["videos"],
    summary="One video",
    responses={404: {"model": ErrorAnswer, "description": "No such video"}},
)
def video(services: CurrentServices, video_id: VideoId) -> VideoDetailAnswer:
    """A video with its stored frames, evenly spaced, and its moments."""
    return video_detail(services, video_id)


def video_detail(services: Services, video_id: int) -> VideoDetailAnswer:
    """See :func:`video`.

    Raises:
        HttpError: 404, there is none of this id.
    """
    row = services.videos.by_id(video_id)
    if row is None:
        raise unknown_video(video_id)
    timeline = services.timelines.timeline(video_id, max_frames=TIMELINE_FRAMES)
    return VideoDetailAnswer(
        **VideoAnswer.of(row).model_dump(),
        info=row.info,
        stream_url=f"/api/videos/{video_id}/stream",
        timeline=[
            FrameAnswer(
                frame_index=frame.frame_index,
                time_seconds=frame.time_seconds,
                thumbnail_url=f"/api/thumbnails/{video_id}/{frame.frame_index}.jpg",
            )
            for frame in timeline.frames
        ],
        moments=[
            MomentAnswer(start_seconds=moment.start_seconds, end_seconds=moment.end_seconds)
            for moment in timeline.moments
        ],
    )


@router.get(
    "/api/duplicates",
    tags=["videos"],
    summary="Near-duplicate videos",
    responses={404: {"model": ErrorAnswer, "description": "No such video"}},
)
def duplicates(
    services: CurrentServices,
    video_id: Annotated[
        int | None, Query(ge=1, le=MAX_ID, description="Only with this video.")
    ] = None,
    segments: Annotated[
        bool, Query(description="Also what videos share that are no copies of each other.")
    ] = False,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=100_000)] = 0,
) -> DuplicatesAnswer:
    """Stretches that two videos share, as the asset `video_similarity` found them last."""
    found = services.similarity.segments(
        video=None if video_id is None else services.name(video_id).video,
        duplicates_only=not segments,
        limit=offset + limit + 1,
    )
    following = {"limit": limit, "offset": offset + limit, "segments": str(segments).lower()}
    if video_id is not None:
        following["video_id"] = video_id
    return DuplicatesAnswer(
        segments=[
            SharedSegmentAnswer(**segment.to_json()) for segment in found[offset : offset + limit]
        ],
        next=f"/api/duplicates?{urlencode(following)}" if len(found) > offset + limit else None,
    )


@router.get("/api/status", tags=["videos"], summary="The pipeline's state")
def status(services: CurrentServices) -> dict[str, Any]:
    """As `siglip-pipeline status --json`: counts, failures with their reasons, model, index."""
    return collect_status(services.database, services.settings).to_json()


@health.get("/healthz", summary="Does the process answer?")
async def healthz() -> HealthAnswer:
    """Always 200: restart the process when it is not."""
    return HealthAnswer(status="ok")


@health.get(
    "/readyz",
    summary="Can searches be answered?",
    responses={503: {"model": ErrorAnswer, "description": "Not yet; the message says why"}},
)
def readyz(services: CurrentServices) -> HealthAnswer:
    """200 once there is a published index, and the model is loaded where it is to be at start."""
    try:
        services.videos.count()
        if not services.is_ready():
            raise HttpError(503, "nothing is indexed yet", kind="NotReady")
    except SiglipPipelineError as error:
        raise HttpError(503, "the database does not answer", kind="NotReady") from error
    if services.settings.load_model_at_start and not services.model_loaded.is_set():
        raise HttpError(503, "the text tower is being loaded", kind="NotReady")
    return HealthAnswer(status="ok")


async def picture_in(request: Request) -> bytes:
    """The picture of a request, raw or from a form.

    Raises:
        HttpError: 415, neither a picture nor a form with one.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type.startswith("image/") or content_type == "application/octet-stream":
        data = await request.body()
    elif content_type == "multipart/form-data":
        data = await _picture_of_form(request)
    else:
        raise HttpError(
            415,
            f"content type {content_type[:80]!r}: send a picture as image/…, or a form "
            "(multipart/form-data) with the file in its field 'image'",
        )
    if not data:
        raise HttpError(415, "the body holds no picture")
    return data


async def _picture_of_form(request: Request) -> bytes:
    async with request.form(max_files=1, max_fields=20) as form:
        file = form.get("image")
        if isinstance(file, UploadFile):
            return await file.read()
    raise HttpError(415, "the form has no file in its field 'image'")


def _answer(
    request: Request, page: Slice, result: SearchResult, *, has_next: bool = True
) -> Response:
    """The answer as bytes: FastAPI would validate it again, on another thread."""
    hits = [
        HitAnswer(**hit.to_json(), **hit_urls(hit.video_id, hit.frame_index, hit.time_seconds))
        for hit in result.hits
    ]
    items = request.query_params.multi_items()
    following = page.next_url(request.url.path, items, len(hits)) if has_next else None
    answer = SearchAnswer(query=result.query, model=result.model, hits=hits, next=following)
    return Response(answer.model_dump_json(), media_type="application/json")
