"""HTTP routes of standing queries: the API and the pages. They only read."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import Hit
from siglip_pipeline.search.calibrating import (
    Answer,
    calibrate,
    calibration_sentence,
    command_of,
    judge,
    moments_around,
)
from siglip_pipeline.search.watching import MOST_NAME
from siglip_pipeline.stages.watch_documents import WatchHitShown, WatchShown
from siglip_pipeline.web.parameters import StrictRoute
from siglip_pipeline.web.rendering import render
from siglip_pipeline.web.schemas import (
    FAILURES,
    CalibrationAnswer,
    CalibrationBody,
    ErrorAnswer,
    HitAnswer,
    WatchesAnswer,
    WatchHitsAnswer,
    WatchMomentsAnswer,
)
from siglip_pipeline.web.services import CurrentServices, Services
from siglip_pipeline.web.video_routes import PageLimit, PageOffset, next_page

HITS_PER_PAGE = 48

router = APIRouter(tags=["watches"], responses=FAILURES, route_class=StrictRoute)

_UNKNOWN: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": ErrorAnswer, "description": "No such watch"}
}
_MOMENT: Final = re.compile(r"(?P<video>[0-9]{1,10})\.(?P<frame>[0-9]{1,10})")
"""Name of a parameter of the page that answers yes or no about a moment."""

_Name = Annotated[str, Path(max_length=MOST_NAME, description="Of the watch.")]


@router.get("/api/watches", summary="Standing queries")
def list_watches(
    request: Request,
    services: CurrentServices,
    limit: PageLimit = 500,
    offset: PageOffset = 0,
) -> WatchesAnswer:
    """List the standing queries by name, with their thresholds, hits and failed messages."""
    watches = services.watches.all()
    return WatchesAnswer(
        watches=tuple(map(WatchShown.of, watches[offset : offset + limit])),
        total=len(watches),
        next=next_page(request, "/api/watches", limit=limit, offset=offset, total=len(watches)),
    )


@router.get(
    "/api/watches/{name}/hits",
    summary="Hits of a standing query",
    responses=_UNKNOWN,
)
def list_watch_hits(
    request: Request,
    services: CurrentServices,
    name: _Name,
    limit: PageLimit = 50,
    offset: PageOffset = 0,
) -> WatchHitsAnswer:
    """List the moments that a standing query found, newest first."""
    watch = services.watches.get(name)
    found = services.watches.hits(watch.name, limit=limit, offset=offset)
    path = f"/api/watches/{quote(name, safe='')}/hits"
    return WatchHitsAnswer(
        hits=tuple(map(WatchHitShown.of, found)),
        total=watch.hits,
        next=next_page(request, path, limit=limit, offset=offset, total=watch.hits),
    )


@router.get(
    "/api/watches/{name}/calibration",
    summary="Moments to calibrate a standing query by",
    responses=_UNKNOWN,
)
def list_watch_moments(services: CurrentServices, name: _Name) -> WatchMomentsAnswer:
    """List twenty indexed moments whose probabilities are around the threshold, best first."""
    watch = services.watches.get(name)
    moments = moments_around(services.search, watch)
    return WatchMomentsAnswer(watch=WatchShown.of(watch), moments=tuple(map(HitAnswer.of, moments)))


@router.post(
    "/api/watches/{name}/calibration",
    summary="The threshold that answers ask for",
    responses=_UNKNOWN,
)
def calibrate_watch(
    services: CurrentServices, name: _Name, body: CalibrationBody
) -> CalibrationAnswer:
    """Return the threshold that makes the fewest mistakes, its precision with the 95% interval.

    Nothing is stored: `command` sets the threshold.
    """
    moments = moments_around(services.search, services.watches.get(name))
    answers = [Answer(**answer.model_dump()) for answer in body.answers]
    return _calibrated(services, name, answers, moments)


def _calibrated(
    services: Services, name: str, answers: Sequence[Answer], moments: Sequence[Hit]
) -> CalibrationAnswer:
    numbered = ((f"answer {number}", answer) for number, answer in enumerate(answers, 1))
    found = calibrate(judge(numbered, moments), model_key=services.search.active_model().key)
    return CalibrationAnswer(**asdict(found), command=command_of(name, answers))


@router.get("/watches", include_in_schema=False, response_class=HTMLResponse)
def watches_page(
    request: Request,
    services: CurrentServices,
    name: Annotated[str | None, Query(max_length=500)] = None,
    offset: PageOffset = 0,
) -> Response:
    """Show the standing queries, and the hits of one or of all, newest first."""
    watches = services.watches.all()
    chosen = [services.watches.get(name)] if name else watches
    total = sum(watch.hits for watch in chosen)
    found = services.watches.hits(name or None, limit=HITS_PER_PAGE, offset=offset)
    rest = next_page(request, "/watches", limit=HITS_PER_PAGE, offset=offset, total=total)
    return render(
        "watches.html",
        watches=[WatchShown.of(watch) for watch in watches],
        hits=found,
        chosen=name,
        next=rest,
    )


@router.get("/watches/calibration", include_in_schema=False, response_class=HTMLResponse)
def calibration_page(
    request: Request, services: CurrentServices, name: Annotated[str, Query(max_length=500)]
) -> Response:
    """Ask about the moments around a threshold; with answers, show the threshold they ask for."""
    watch = services.watches.get(name)
    moments = moments_around(services.search, watch)
    answers = _answers_of(request.query_params.multi_items(), moments)
    found = _calibrated(services, name, answers, moments) if answers else None
    return render(
        "calibration.html",
        watch=WatchShown.of(watch),
        moments=moments,
        fits={(answer.video, answer.frame_index): answer.fits for answer in answers},
        found=found,
        sentence=calibration_sentence(found) if found else None,
    )


def _answers_of(parameters: Iterable[tuple[str, str]], moments: Sequence[Hit]) -> list[Answer]:
    """Return the answers in an address: ``VIDEO_ID.FRAME_INDEX=yes`` or ``no``.

    Raises:
        QueryError: one is about a video of which no moment is shown.
    """
    videos = {str(hit.video_id): hit.video for hit in moments}
    answers = []
    for parameter, said in parameters:
        if (moment := _MOMENT.fullmatch(parameter)) is None or said not in ("yes", "no"):
            continue
        if moment["video"] not in videos:
            raise QueryError(
                f"{parameter} is none of the moments around the threshold; ask for "
                "them again, as the index or the threshold may have changed"
            )
        answers.append(
            Answer(
                video=videos[moment["video"]], frame_index=int(moment["frame"]), fits=said == "yes"
            )
        )
    return answers
