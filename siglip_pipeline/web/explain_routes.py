"""HTTP routes that say why a search does not show a moment: the API and the page."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from siglip_pipeline.search import Explanation
from siglip_pipeline.text.json_form import to_json_bytes
from siglip_pipeline.web.parameters import StrictRoute
from siglip_pipeline.web.query import explain_moment
from siglip_pipeline.web.rendering import render
from siglip_pipeline.web.schemas import FAILURES
from siglip_pipeline.web.search_parameters import Filter, Page, filter_values
from siglip_pipeline.web.services import CurrentServices

router = APIRouter(route_class=StrictRoute)

_Text = Annotated[str, Query(min_length=1, description="The query, as `/api/search` takes it.")]


@router.get(
    "/api/explain",
    tags=["search"],
    summary="Why is a moment not found?",
    response_model=Explanation,
    responses=FAILURES,
)
def explain(
    services: CurrentServices,
    page: Page,
    filter: Filter,
    q: _Text,
    moment: Annotated[
        str,
        Query(
            min_length=3,
            description="The moment that was expected, `VIDEO@SECONDS`.",
            examples=["holiday/beach.mp4@12.5"],
        ),
    ],
) -> Response:
    """Say whether a search shows a moment among its `k` hits, and if not, each cause and remedy.

    Compares the query with every frame, so it takes longer than a search.
    """
    found = explain_moment(services, q, moment, page, filter)
    return Response(to_json_bytes(found), media_type="application/json")


@router.get("/explain", include_in_schema=False, response_class=HTMLResponse)
def explain_page(
    request: Request,
    services: CurrentServices,
    filter: Filter,
    page: Page,
    q: str = "",
    moment: str = "",
) -> Response:
    """Ask for the moment that was expected, and show why a search does not find it."""
    explanation = explain_moment(services, q, moment, page, filter) if q and moment else None
    video = None
    if explanation is not None and explanation.frame is not None:
        video = services.videos.get(explanation.video)
    return render(
        "explain.html",
        q=q[:1000],
        moment=moment[:3000],
        k=page.k,
        fields={name: value for name, value in filter_values(request).items() if value},
        explanation=explanation,
        video_id=video.video_id if video else None,
    )
