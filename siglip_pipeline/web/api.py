"""Searches over HTTP. Handlers are plain functions: they run in threads, not on the event loop."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from siglip_pipeline.search import SearchFilter, SearchResult
from siglip_pipeline.text.json_form import to_json_bytes
from siglip_pipeline.web.client_pictures import on_picture
from siglip_pipeline.web.query import (
    MAX_ID,
    MAX_SECONDS,
    Filter,
    HitRange,
    Page,
    WithReceipt,
    permalink_of,
    search_picture,
    search_similar,
    search_text,
)
from siglip_pipeline.web.schemas import FAILURES, ErrorAnswer, HitAnswer, SearchAnswer
from siglip_pipeline.web.services import CurrentServices, Services

_MEDIA_FAILURES: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorAnswer, "description": "The picture is too large"},
    415: {"model": ErrorAnswer, "description": "No picture that can be read"},
    503: {"model": ErrorAnswer, "description": "Too many pictures at once; see Retry-After"},
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

router = APIRouter(responses=FAILURES)


@router.get("/api/search", tags=["search"], summary="Search by text", response_model=SearchAnswer)
def search_by_text(
    request: Request,
    services: CurrentServices,
    page: Page,
    filter: Filter,
    receipt: WithReceipt,
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
    """Return moments that show what the text says, best first."""
    result = search_text(services, q, page, filter, receipt)
    return _answer(request, services, page, result, filter)


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
    """Return moments that look like the picture in the body, raw or as the form field `image`."""
    page.check(services)
    result = await on_picture(
        request, services, lambda pixels: search_picture(services, pixels, page, filter)
    )
    # Its next page would need the picture again: send it with another offset.
    return _answer(request, services, page, result, filter, has_next=False)


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
    receipt: WithReceipt,
    like: Annotated[
        str | None, Query(description="`VIDEO@SECONDS`.", examples=["holiday/beach.mp4@12.5"])
    ] = None,
    video_id: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
    seconds: Annotated[float | None, Query(ge=0, le=MAX_SECONDS, allow_inf_nan=False)] = None,
) -> Response:
    """Return moments that look like another one: `like`, or `video_id` and `seconds`."""
    result = search_similar(
        services, page, filter, like=like, video_id=video_id, seconds=seconds, receipt=receipt
    )
    return _answer(request, services, page, result, filter)


def _answer(
    request: Request,
    services: Services,
    page: HitRange,
    result: SearchResult,
    filter: SearchFilter,
    *,
    has_next: bool = True,
) -> Response:
    """Return the answer ready to send: FastAPI would validate it again, on another thread."""
    items = request.query_params.multi_items()
    following = page.next_url(request.url.path, items, len(result.hits)) if has_next else None
    answer = SearchAnswer(
        query=result.query,
        model=result.model,
        hits=tuple(map(HitAnswer.of, result.hits)),
        next=following,
        proof=result.proof,
        pin=result.pin,
        permalink=permalink_of(
            request.url.path,
            items,
            result,
            min_probability=services.search.least_probability(filter),
        ),
        reproduced=result.reproduced,
    )
    return Response(to_json_bytes(answer), media_type="application/json")
