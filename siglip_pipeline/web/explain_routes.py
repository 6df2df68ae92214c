"""HTTP routes that say why a search does not show a moment: the API and the page."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from siglip_pipeline.search import Explanation
from siglip_pipeline.text.json_form import to_json_bytes
from siglip_pipeline.web.parameters import StrictRoute
from siglip_pipeline.web.query import MAX_ID, MAX_SECONDS, explain_moment, moment_of
from siglip_pipeline.web.rendering import render
from siglip_pipeline.web.schemas import FAILURES, ErrorAnswer
from siglip_pipeline.web.search_parameters import (
    Filter,
    Like,
    Page,
    PictureId,
    Text,
    filter_values,
)
from siglip_pipeline.web.services import CurrentServices

router = APIRouter(route_class=StrictRoute)

_VideoId = Annotated[int | None, Query(ge=1, le=MAX_ID)]
_Seconds = Annotated[float | None, Query(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]


@router.get(
    "/api/explain",
    tags=["search"],
    summary="Why is a moment not found?",
    response_model=Explanation,
    responses={
        **FAILURES,
        404: {"model": ErrorAnswer, "description": "No such video, or the picture is not kept"},
    },
)
def explain(
    services: CurrentServices,
    page: Page,
    filter: Filter,
    moment: Annotated[
        str,
        Query(
            min_length=3,
            description="The moment that was expected, `VIDEO@SECONDS`.",
            examples=["holiday/beach.mp4@12.5"],
        ),
    ],
    q: Text | None = None,
    like: Like = None,
    video_id: _VideoId = None,
    seconds: _Seconds = None,
    picture: PictureId = None,
) -> Response:
    """Say whether a search shows a moment among its `k` hits, and if not, each cause and remedy.

    The query is what `/api/search` takes. It is compared with every frame, so this takes longer
    than a search.
    """
    found = explain_moment(
        services,
        moment,
        page,
        filter,
        q=q,
        moment=moment_of(services, like, video_id, seconds),
        picture=picture,
    )
    return Response(to_json_bytes(found), media_type="application/json")


@router.get("/explain", include_in_schema=False, response_class=HTMLResponse)
def explain_page(
    request: Request,
    services: CurrentServices,
    filter: Filter,
    page: Page,
    q: str = "",
    video_id: _VideoId = None,
    seconds: _Seconds = None,
    picture: PictureId = None,
    moment: str = "",
) -> Response:
    """Ask for the moment that was expected, and show why a search does not find it."""
    like = moment_of(services, None, video_id, seconds)
    explanation = None
    if moment and (q or like or picture):
        explanation = explain_moment(
            services, moment, page, filter, q=q or None, moment=like, picture=picture
        )
    video = None
    if explanation is not None and explanation.frame is not None:
        video = services.videos.get(explanation.video)
    given = {"video_id": video_id, "seconds": seconds, "picture": picture}
    asked = {name: value for name, value in given.items() if value is not None}
    return render(
        "explain.html",
        q=q[:1000],
        asked=asked,
        back=urlencode({"q": q, **asked} if q else asked),
        like=like,
        moment=moment[:3000],
        k=page.k,
        fields={name: value for name, value in filter_values(request).items() if value},
        explanation=explanation,
        video_id=video.video_id if video else None,
    )
