"""The search page, rendered on the server; it works without scripts."""

import time
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from siglip_pipeline.hits import Hit, player_path
from siglip_pipeline.records import RgbArray
from siglip_pipeline.search import SearchFilter, SearchResult
from siglip_pipeline.search.results import proof_sentence
from siglip_pipeline.services.binding import is_loopback
from siglip_pipeline.services.state import running
from siglip_pipeline.store.library import VideoOrder
from siglip_pipeline.store.videos import Failure
from siglip_pipeline.uploads.names import partition_key
from siglip_pipeline.web.client_pictures import FormFields, on_picture, preview_url
from siglip_pipeline.web.clip_routes import MAX_CLIP_SECONDS
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.media import VideoId
from siglip_pipeline.web.query import (
    MAX_ID,
    MAX_SECONDS,
    HitRange,
    moment_of,
    permalink_of,
    run_search,
)
from siglip_pipeline.web.rendering import render
from siglip_pipeline.web.schemas import MomentAnswer, VideoDetailAnswer
from siglip_pipeline.web.search_parameters import (
    FILTERS,
    Filter,
    PictureId,
    WithReceipt,
    filter_values,
)
from siglip_pipeline.web.services import CurrentServices, Services
from siglip_pipeline.web.video_routes import (
    ListedVideos,
    PageOffset,
    frame_answers,
    video_detail,
)

HITS_PER_PAGE = 24
STRIP_FRAMES = 24
"""Frames of the strip below the player."""
VIDEOS_PER_PAGE = 50
FAILURES_SHOWN = 200
SEGMENTS_SHOWN = 100

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

_QUERIES = ("q", "video_id", "picture")
"""Parameters of the page that say what is searched for."""
_SEARCH_PARAMETERS = (*_QUERIES, "seconds", "offset", "group", *FILTERS)

_Seconds = Annotated[float, Query(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]


def error_page(error: HttpError, request: Request) -> HTMLResponse:
    """Return a failure as a page."""
    q = request.query_params.get("q", "")
    page = render(
        "error.html", status_code=error.status_code, error=error, q=q, fields=filter_values(request)
    )
    page.headers.update(error.headers or {})
    return page


@router.get("/")
def search_page(
    request: Request,
    services: CurrentServices,
    filter: Filter,
    receipt: WithReceipt,
    q: str = "",
    video_id: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
    seconds: Annotated[float | None, Query(ge=0, le=MAX_SECONDS, allow_inf_nan=False)] = None,
    picture: PictureId = None,
    offset: PageOffset = 0,
) -> Response:
    """Show the search box, and the hits for `q`, a picture, a moment, or several of these."""
    began = time.perf_counter()
    page = _page_of_hits(services, offset)
    text = q if q.strip() else None
    moment = moment_of(services, None, video_id, seconds)
    if text is None and moment is None and picture is None:
        return render(
            "home.html",
            q="",
            fields=filter_values(request),
            total=services.videos.count(),
            ready=services.is_ready(),
        )
    result = run_search(
        services, page, filter, q=text, moment=moment, picture=picture, receipt=receipt
    )
    return _results(
        request,
        result,
        page,
        filter,
        began,
        q=q,
        permalink=_permalink(request, services, result, filter),
        like=moment,
        like_page=f"/{player_path(video_id, moment.seconds)}" if moment and video_id else None,
        picture=picture,
        preview=None if picture is None else f"/api/pictures/{picture}.jpg",
    )


@router.post("/")
async def picture_page(
    request: Request, services: CurrentServices, filter: Filter, offset: PageOffset = 0
) -> Response:
    """Show the hits for a picture, at an address of its own if it is kept."""

    def search(pixels_HWC: RgbArray, _: FormFields) -> Response:
        began = time.perf_counter()
        page = _page_of_hits(services, offset)
        picture = services.pictures.put(pixels_HWC)
        if picture is not None:
            kept = [(n, v) for n, v in request.query_params.multi_items() if n in FILTERS and v]
            address = urlencode([("picture", picture), *kept])
            return RedirectResponse(f"/?{address}", status_code=303)
        result = run_search(services, page, filter, pixels_HWC=pixels_HWC)
        preview = preview_url(pixels_HWC)
        return _results(request, result, page, filter, began, preview=preview)

    return await on_picture(request, services, search)


@router.get("/videos")
def videos_page(
    services: CurrentServices,
    filter: ListedVideos,
    order: VideoOrder = "path",
    offset: PageOffset = 0,
) -> Response:
    """List videos by name, state and folder."""
    rows = services.library.page(filter, order=order, limit=VIDEOS_PER_PAGE, offset=offset)
    total = services.library.count(filter)
    next_offset = offset + VIDEOS_PER_PAGE
    frames = services.timelines.frames_at([(row.video_id, 0.0) for row in rows])
    return render(
        "videos.html",
        videos=list(zip(rows, frames, strict=True)),
        total=total,
        filter=filter,
        order=order,
        folders=services.library.folders(filter.folder),
        kept={
            "name": filter.name,
            "state": filter.state,
            "folder": filter.folder,
            "order": None if order == "path" else order,
        },
        offset=offset,
        previous=max(0, offset - VIDEOS_PER_PAGE) if offset else None,
        next=next_offset if next_offset < total else None,
    )


@router.get("/videos/{video_id}")
def video_page(
    services: CurrentServices,
    video_id: VideoId,
    t: _Seconds = 0.0,
    start: Annotated[_Seconds | None, Query(alias="from")] = None,
    end: Annotated[_Seconds | None, Query(alias="to")] = None,
    span: _Seconds = 0.0,
    search: Annotated[str, Query(max_length=8000)] = "",
) -> Response:
    """Show the player at a second, and the moment that was found.

    Args:
        services: the store of videos.
        video_id: which video.
        t: the second.
        start: of the moment that was found; without it, that of the index around ``t``.
        end: of that moment.
        span: seconds that the strip of frames shows; 0: as many as are needed to show each frame.
        search: the query of the page of results that led here.
    """
    video = video_detail(services, video_id)
    ends = [moment.end_seconds for moment in video.moments]
    duration = max(video.duration_seconds or 0.0, *ends, 0.001)
    around = next((m for m in video.moments if m.start_seconds <= t < m.end_seconds), None)
    given = start is not None and end is not None and start < end
    found = MomentAnswer(start_seconds=start, end_seconds=end) if given else around
    strip = _strip(services, video, t, duration, span)
    [poster] = services.timelines.frames_at([(video_id, t)])
    back = _search_address(search)
    return render(
        "video.html",
        video=video,
        t=t,
        duration=duration,
        found=found,
        strip=strip,
        poster=poster,
        back=back,
        q=dict(parse_qsl(urlsplit(back).query)).get("q") if back else None,
        search=urlsplit(back).query if back else "",
        clip=_clip_address(video_id, found),
    )


def _strip(
    services: Services, video: VideoDetailAnswer, t: float, duration: float, span: float
) -> dict[str, Any]:
    """Return the frames around a second, and how many seconds they show."""
    least = duration * min(1.0, STRIP_FRAMES / max(video.frames or 0, 1))
    span = min(max(span, least), duration)
    start = min(max(0.0, t - span / 2), duration - span)
    found = services.timelines.frames(
        video.video_id, start_seconds=start, end_seconds=start + span, max_frames=STRIP_FRAMES
    )
    shown = frame_answers(video.video_id, found.frames, offset=video.media_offset_seconds)
    return {"frames": shown, "span": span, "least": least, "start": start, "end": start + span}


def _clip_address(video_id: int, found: MomentAnswer | None) -> str | None:
    """Return where the moment is a file of its own; None if it is too long for that."""
    if found is None or found.end_seconds > found.start_seconds + MAX_CLIP_SECONDS:
        return None
    times = urlencode({"from": found.start_seconds, "to": found.end_seconds})
    return f"/api/videos/{video_id}/clip.mp4?{times}"


def _search_address(search: str) -> str | None:
    """Return the address of a page of results; None if the parameters are of none."""
    kept = [(n, v) for n, v in parse_qsl(search) if n in _SEARCH_PARAMETERS]
    return f"/?{urlencode(kept)}" if any(n in _QUERIES for n, _ in kept) else None


@router.get("/duplicates")
def duplicates_page(services: CurrentServices, segments: bool = False) -> Response:
    """List copies, and other stretches that videos share."""
    found = services.similarity.segments(duplicates_only=not segments, limit=SEGMENTS_SHOWN)
    frames = services.timelines.frames_at(
        [
            place
            for segment in found
            for place in (
                (segment.video_a_id, segment.start_a_seconds),
                (segment.video_b_id, segment.start_b_seconds),
            )
        ]
    )
    rows = [
        {"segment": segment, "frame_a": frames[2 * row], "frame_b": frames[2 * row + 1]}
        for row, segment in enumerate(found)
    ]
    return render("duplicates.html", rows=rows, segments=segments)


@router.get("/docs")
def docs_page() -> Response:
    """Show the description of the API, to read and to try."""
    return render("docs.html")


@router.get("/status")
def status_page(request: Request, services: CurrentServices) -> Response:
    """Show what is searchable, what failed and why, with links to Dagster."""
    status = services.status()
    dagster = _dagster_url(request, services)
    failures = [
        {"failure": failure, "dagster": _partition_url(dagster, failure)}
        for failure in status.failures[:FAILURES_SHOWN]
    ]
    return render(
        "status.html",
        status=status,
        failures=failures,
        failures_shown=FAILURES_SHOWN,
        dagster=dagster,
    )


def _grouped(hits: Sequence[Hit]) -> list[tuple[str | None, list[Hit]]]:
    """Return hits by video, best first; videos with one hit follow each other without a name."""
    by_video: dict[str, list[Hit]] = {}
    for hit in hits:
        by_video.setdefault(hit.video, []).append(hit)
    groups: list[tuple[str | None, list[Hit]]] = []
    for video, found in by_video.items():
        if len(found) > 1:
            groups.append((video, found))
        elif groups and groups[-1][0] is None:
            groups[-1][1].extend(found)
        else:
            groups.append((None, found))
    return groups


def _other_group(in_order: bool) -> list[tuple[str, str]]:
    return [] if in_order else [("group", "0")]


def _permalink(
    request: Request, services: Services, result: SearchResult, filter: SearchFilter
) -> str | None:
    if result.pin is None:
        return None
    least = services.search.least_probability(filter)
    return permalink_of("/", request.query_params.multi_items(), result.pin, min_probability=least)


def _page_of_hits(services: Services, offset: int) -> HitRange:
    return HitRange(min(HITS_PER_PAGE, services.settings.http_max_k), offset)


def _results(
    request: Request,
    result: SearchResult,
    page: HitRange,
    filter: SearchFilter,
    began: float,
    **asked: Any,
) -> Response:
    # A picture that is not kept is not in the address, so its results have no next page.
    items = request.query_params.multi_items()
    has_next = any(asked.get(name) for name in ("q", "like", "picture"))
    following = page.next_url("/", items, len(result.hits)) if has_next else None
    in_order = request.query_params.get("group") == "0"
    without_filter = [(n, v) for n, v in items if n in (*_QUERIES, "seconds")]
    return render(
        "results.html",
        result=result,
        groups=[(None, list(result.hits))] if in_order else _grouped(result.hits),
        in_order=in_order,
        regrouped=urlencode([*((n, v) for n, v in items if n != "group"), *_other_group(in_order)]),
        rates_text=result.query.rates_text,
        offset=page.offset,
        milliseconds=round(1000 * (time.perf_counter() - began)),
        next=following,
        fields=filter_values(request),
        filtered=filter != SearchFilter(),
        search=urlencode(items),
        kept_filters="".join(f"&{urlencode([(n, v)])}" for n, v in items if n in FILTERS and v),
        unfiltered=f"/?{urlencode(without_filter)}" if without_filter else None,
        asked=urlencode([(n, v) for n, v in without_filter if v]),
        proof=proof_sentence(result.proof) if result.proof else None,
        again=urlencode([(n, v) for n, v in items if n not in ("prove", "permalink")]),
        **{"q": "", "like": None, "preview": None, "permalink": None, **asked},
    )


def _dagster_url(request: Request, services: Services) -> str | None:
    if services.settings.dagster_url:
        return services.settings.dagster_url.rstrip("/")
    up = running(services.settings.home)
    if up is None:
        return None
    if is_loopback(services.settings.dagster_host):
        return up.dagster_url if is_loopback(request.url.hostname or "") else None
    # `up` may have bound every address: link to the host of this request.
    port = up.dagster_url.rpartition(":")[2]
    return f"http://{request.url.hostname}:{port}"


def _partition_url(dagster: str | None, failure: Failure) -> str | None:
    if dagster is None:
        return None
    asset = f"{failure.shard}/{failure.stage}" if failure.shard else failure.stage
    key = quote(partition_key(failure.video), safe="")
    return f"{dagster}/assets/{quote(asset)}?view=partitions&partition={key}"
