"""HTTP routes of earlier evaluations of judged queries: the API and the page. They only read."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from siglip_pipeline.evaluation.past_evaluations import past_evaluations
from siglip_pipeline.store.quality_results import Purpose
from siglip_pipeline.web.parameters import StrictRoute
from siglip_pipeline.web.rendering import render
from siglip_pipeline.web.schemas import FAILURES, EvaluationsAnswer
from siglip_pipeline.web.services import CurrentServices
from siglip_pipeline.web.video_routes import PageLimit, PageOffset, next_page

PER_PAGE = 50

router = APIRouter(tags=["evaluations"], responses=FAILURES, route_class=StrictRoute)

_Judged = Annotated[
    str | None, Query(max_length=500, description="Of the file of judged queries of this name.")
]
_Purpose = Annotated[Purpose | None, Query(description="Only those that were made for this.")]


@router.get("/api/evaluations", summary="Earlier evaluations of judged queries")
def list_evaluations(
    request: Request,
    services: CurrentServices,
    judged: _Judged = None,
    purpose: _Purpose = None,
    limit: PageLimit = PER_PAGE,
    offset: PageOffset = 0,
) -> EvaluationsAnswer:
    """List how well judged queries were answered, newest first, with intervals and per tag."""
    found = past_evaluations(
        services.database, judged=judged, purpose=purpose, limit=limit, offset=offset
    )
    path = "/api/evaluations"
    return EvaluationsAnswer(
        evaluations=found.evaluations,
        total=found.total,
        next=next_page(request, path, limit=limit, offset=offset, total=found.total),
    )


@router.get("/evaluations", include_in_schema=False, response_class=HTMLResponse)
def evaluations_page(
    request: Request, services: CurrentServices, judged: _Judged = None, offset: PageOffset = 0
) -> Response:
    """Show the newest evaluation with all its metrics, and the history."""
    judged = judged or None
    found = past_evaluations(services.database, judged=judged, limit=PER_PAGE, offset=offset)
    rest = next_page(request, "/evaluations", limit=PER_PAGE, offset=offset, total=found.total)
    return render(
        "evaluations.html",
        evaluations=found.evaluations,
        newest=found.evaluations[0] if found.evaluations and not offset else None,
        decides=services.settings.quality_metric,
        judged=judged,
        next=rest,
    )
