"""HTTP routes of standing queries: the API and the page. They only read."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from siglip_pipeline.stages.watch_documents import WatchesDocument, WatchHitShown, WatchShown
from siglip_pipeline.web.parameters import StrictRoute
from siglip_pipeline.web.query import MAX_ID
from siglip_pipeline.web.rendering import render
from siglip_pipeline.web.schemas import FAILURES, ErrorAnswer, WatchHitsAnswer
from siglip_pipeline.web.services import CurrentServices
from siglip_pipeline.web.video_routes import next_page

HITS_PER_PAGE = 48

router = APIRouter(tags=["watches"], responses=FAILURES, route_class=StrictRoute)

_Offset = Annotated[int, Query(ge=0, le=MAX_ID)]


@router.get("/api/watches", summary="Standing queries")
def list_watches(services: CurrentServices) -> WatchesDocument:
    """List the standing queries by name, with their thresholds, hits and failed messages."""
    return WatchesDocument(watches=tuple(map(WatchShown.of, services.watches.all())))


@router.get(
    "/api/watches/{name}/hits",
    summary="Hits of a standing query",
    responses={404: {"model": ErrorAnswer, "description": "No such watch"}},
)
def list_watch_hits(
    request: Request,
    services: CurrentServices,
    name: str,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: _Offset = 0,
) -> WatchHitsAnswer:
    """List the moments that a standing query found, newest first."""
    watch = services.watches.get(name)
    found = services.watches.hits(watch.name, limit=limit, offset=offset)
    return WatchHitsAnswer(
        hits=tuple(map(WatchHitShown.of, found)),
        total=watch.hits,
        next=next_page(
            request,
            f"/api/watches/{quote(name, safe='')}/hits",
            limit=limit,
            offset=offset,
            total=watch.hits,
        ),
    )


@router.get("/watches", include_in_schema=False, response_class=HTMLResponse)
def watches_page(
    request: Request,
    services: CurrentServices,
    name: Annotated[str | None, Query(max_length=500)] = None,
    offset: _Offset = 0,
) -> Response:
    """Show the standing queries, and the hits of one or of all, newest first."""
    watches = services.watches.all()
    total = services.watches.get(name).hits if name else sum(watch.hits for watch in watches)
    found = services.watches.hits(name or None, limit=HITS_PER_PAGE, offset=offset)
    rest = next_page(request, "/watches", limit=HITS_PER_PAGE, offset=offset, total=total)
    return render(
        "watches.html",
        watches=[WatchShown.of(watch) for watch in watches],
        hits=found,
        chosen=name,
        next=rest,
    )
