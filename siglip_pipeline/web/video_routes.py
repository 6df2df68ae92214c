"""HTTP routes about videos: lists, details, labels, duplicates, the pipeline's status."""

from collections.abc import Iterable
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request

from siglip_pipeline.stages.status_document import StatusDocument
from siglip_pipeline.store.library import VideoFilter, VideoOrder
from siglip_pipeline.store.timelines import FrameTime
from siglip_pipeline.store.videos import VideoState
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.media import VideoId
from siglip_pipeline.web.parameters import StrictRoute
from siglip_pipeline.web.query import MAX_ID, MAX_SECONDS
from siglip_pipeline.web.schemas import (
    FAILURES,
    DuplicatesAnswer,
    ErrorAnswer,
    FoldersAnswer,
    FrameAnswer,
    FramesAnswer,
    LabelsAnswer,
    MomentAnswer,
    VideoAnswer,
    VideoDetailAnswer,
    VideosAnswer,
)
from siglip_pipeline.web.search_parameters import BLANK, Filter
from siglip_pipeline.web.services import CurrentServices, Services, unknown_video

TIMELINE_FRAMES = 24
MAX_FRAMES = 500
"""Most frames of one answer."""
MAX_LABELS = 20
"""Most labels of one request: each is compared with every frame in scope."""

PageLimit = Annotated[int, Query(ge=1, le=500)]
PageOffset = Annotated[int, Query(ge=0, le=MAX_ID)]
_PAGING = ("limit", "offset")


async def _listed(
    name: Annotated[
        str | None, Query(max_length=500, description="A part of the path, in any case.")
    ] = None,
    state: Annotated[VideoState | None, BLANK, Query(description="How far it has come.")] = None,
    folder: Annotated[
        str | None, Query(max_length=2000, description="Below this folder of the uploads.")
    ] = None,
) -> VideoFilter:
    return VideoFilter(name=name or None, state=state, folder=folder or None)


ListedVideos = Annotated[VideoFilter, Depends(_listed)]

router = APIRouter(tags=["videos"], responses=FAILURES, route_class=StrictRoute)


@router.get("/api/videos", summary="All videos")
def list_videos(
    request: Request,
    services: CurrentServices,
    filter: ListedVideos,
    order: Annotated[VideoOrder, Query(description="By what they are sorted.")] = "path",
    limit: PageLimit = 50,
    offset: PageOffset = 0,
) -> VideosAnswer:
    """List videos, each with its progress; `next` is the address of the next page."""
    rows = services.library.page(filter, order=order, limit=limit, offset=offset)
    total = services.library.count(filter)
    return VideosAnswer(
        videos=[VideoAnswer.of(row) for row in rows],
        total=total,
        next=next_page(request, "/api/videos", limit=limit, offset=offset, total=total),
    )


def next_page(request: Request, path: str, *, limit: int, offset: int, total: int) -> str | None:
    """Return the address of the rest of a list; None at its end."""
    if offset + limit >= total:
        return None
    kept = [item for item in request.query_params.multi_items() if item[0] not in _PAGING]
    return f"{path}?{urlencode([*kept, ('limit', limit), ('offset', offset + limit)])}"


@router.get("/api/folders", summary="Folders of videos")
def list_folders(
    request: Request,
    services: CurrentServices,
    folder: Annotated[
        str | None, Query(max_length=2000, description="Those in this one; unset: the topmost.")
    ] = None,
    limit: PageLimit = 500,
    offset: PageOffset = 0,
) -> FoldersAnswer:
    """List folders by name, each with the number of videos below it."""
    found = services.library.folders(folder, limit=limit + 1, offset=offset)
    return FoldersAnswer(
        folders=tuple(found[:limit]),
        next=next_page(
            request, "/api/folders", limit=limit, offset=offset, total=offset + len(found)
        ),
    )


@router.get(
    "/api/videos/{video_id}",
    summary="One video",
    responses={404: {"model": ErrorAnswer, "description": "No such video"}},
)
def get_video(services: CurrentServices, video_id: VideoId) -> VideoDetailAnswer:
    """Return a video with its stored frames, evenly spaced, and its moments."""
    return video_detail(services, video_id)


def video_detail(services: Services, video_id: int) -> VideoDetailAnswer:
    """See :func:`get_video`.

    Raises:
        HttpError: 404, there is none of this id.
    """
    row = services.videos.by_id(video_id)
    if row is None:
        raise unknown_video(video_id)
    found = services.timelines.frames(video_id, max_frames=TIMELINE_FRAMES)
    return VideoDetailAnswer(
        **VideoAnswer.of(row).model_dump(),
        info=row.info,
        stream_url=f"/api/videos/{video_id}/stream",
        timeline=frame_answers(video_id, found.frames, offset=row.media_offset_seconds),
        moments=[
            MomentAnswer(start_seconds=moment.start_seconds, end_seconds=moment.end_seconds)
            for moment in services.timelines.moments(video_id)
        ],
    )


def frame_answers(
    video_id: int, frames: Iterable[FrameTime], *, offset: float
) -> list[FrameAnswer]:
    """Return frames with the addresses of their pictures.

    Args:
        video_id: the video.
        frames: its frames.
        offset: what the clock of a player shows at the first frame.
    """
    return [
        FrameAnswer(
            frame_index=frame.frame_index,
            time_seconds=frame.time_seconds,
            media_time_seconds=round(frame.time_seconds + offset, 3),
            vector=None if frame.embedding_D is None else frame.embedding_D.tolist(),
            thumbnail_url=f"/api/thumbnails/{video_id}/{frame.frame_index}.jpg",
        )
        for frame in frames
    ]


@router.get(
    "/api/videos/{video_id}/frames",
    summary="Stored frames of a part of a video",
    responses={404: {"model": ErrorAnswer, "description": "No such video"}},
)
def list_frames(
    request: Request,
    services: CurrentServices,
    video_id: VideoId,
    start: Annotated[
        float, Query(alias="from", ge=0, le=MAX_SECONDS, allow_inf_nan=False, description="Second.")
    ] = 0.0,
    end: Annotated[
        float,
        Query(alias="to", ge=0, le=MAX_SECONDS, allow_inf_nan=False, description="Before it."),
    ] = MAX_SECONDS,
    limit: Annotated[int, Query(ge=1, le=MAX_FRAMES)] = 100,
    offset: Annotated[
        int | None,
        Query(ge=0, le=MAX_ID, description="Skip so many, and return the next ones, not spaced."),
    ] = None,
    include: Annotated[
        list[Literal["vector"]] | None, Query(description="`vector`: of the active model.")
    ] = None,
) -> FramesAnswer:
    """Return all stored frames from `from` to `to`, or `limit` of them, evenly spaced.

    With `offset`, return all of them page by page: `next` is the address of the next page.
    """
    if not start < end:
        raise HttpError(422, f"from={start:g} is not before to={end:g}")
    media_offset = services.name(video_id).media_offset_seconds
    found = services.timelines.frames(
        video_id,
        start_seconds=start,
        end_seconds=end,
        max_frames=limit,
        offset=offset,
        vectors=bool(include),
    )
    rest = None
    if offset is not None:
        path = f"/api/videos/{video_id}/frames"
        rest = next_page(request, path, limit=limit, offset=offset, total=found.total)
    frames = frame_answers(video_id, found.frames, offset=media_offset)
    return FramesAnswer(frames=frames, total=found.total, next=rest)


@router.get(
    "/api/duplicates",
    summary="Near-duplicate videos",
    responses={404: {"model": ErrorAnswer, "description": "No such video"}},
)
def list_duplicates(
    services: CurrentServices,
    video_id: Annotated[
        int | None, Query(ge=1, le=MAX_ID, description="Only with this video.")
    ] = None,
    segments: Annotated[
        bool, Query(description="Also what videos share that are no copies of each other.")
    ] = False,
    limit: PageLimit = 50,
    offset: Annotated[int, Query(ge=0, le=100_000)] = 0,
) -> DuplicatesAnswer:
    """List stretches that two videos share: the latest result of the asset `video_similarity`."""
    found = services.similarity.segments(
        video=None if video_id is None else services.name(video_id).video,
        duplicates_only=not segments,
        limit=offset + limit + 1,
    )
    following = {"limit": limit, "offset": offset + limit, "segments": str(segments).lower()}
    if video_id is not None:
        following["video_id"] = video_id
    return DuplicatesAnswer(
        segments=tuple(found[offset : offset + limit]),
        next=f"/api/duplicates?{urlencode(following)}" if len(found) > offset + limit else None,
    )


@router.get(
    "/api/labels",
    summary="Zero-shot labels",
    responses={404: {"model": ErrorAnswer, "description": "No such video"}},
)
def label_videos(
    request: Request,
    services: CurrentServices,
    filter: Filter,
    label: Annotated[
        list[str],
        Query(
            min_length=1,
            max_length=MAX_LABELS,
            description="A noun, such as `a red car`; repeat it for more.",
            examples=[["a red car", "a bridge"]],
        ),
    ],
    video_id: Annotated[int | None, Query(ge=1, le=MAX_ID, description="Only this video.")] = None,
    limit: PageLimit = 50,
    offset: PageOffset = 0,
) -> LabelsAnswer:
    """Return which labels fit which videos; each label is compared with every frame in scope.

    A frame has a label from `min_probability` on (default 0.5); `max_per_video` has no meaning.
    """
    most = services.settings.http_max_query_length
    if any(len(text) > most for text in label):
        raise HttpError(422, f"a label has more than {most} characters")
    if video_id is not None and filter.videos is not None:
        raise HttpError(422, "give either video_id or videos")
    chosen = None if video_id is None else [services.name(video_id).video]
    report = services.search.label(label, videos=chosen, filter=filter)
    total = len(report.videos)
    return LabelsAnswer(
        model=report.model,
        labels=report.labels,
        videos=report.videos[offset : offset + limit],
        total=total,
        next=next_page(request, "/api/labels", limit=limit, offset=offset, total=total),
    )


@router.get("/api/status", summary="The pipeline's state")
def get_status(services: CurrentServices) -> StatusDocument:
    """Return the document of `siglip-pipeline status --json`: counts, failures, model, index."""
    return services.status().document()
