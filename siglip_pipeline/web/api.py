"""Searches over HTTP. Handlers are plain functions: they run in threads, not on the event loop."""

from collections.abc import Iterable
from typing import Any, Final

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from siglip_pipeline.search import SearchResult, TextTerm
from siglip_pipeline.text.json_form import to_json_bytes
from siglip_pipeline.web.client_pictures import content_type_of, on_picture
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.parameters import StrictRoute, described
from siglip_pipeline.web.query import HitRange, checked_text, permalink_of, run_search, words_of
from siglip_pipeline.web.schemas import (
    FAILURES,
    BatchAnswer,
    BatchBody,
    EmbedAnswer,
    EmbedBody,
    EmbeddedItem,
    ErrorAnswer,
    HitAnswer,
    SearchAnswer,
)
from siglip_pipeline.web.search_parameters import (
    Search,
    SearchAddress,
    SearchBody,
    SimilarAddress,
    validated,
)
from siglip_pipeline.web.services import CurrentServices, Services, services_of

_PICTURE_FAILURES: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": ErrorAnswer, "description": "No such video, or the picture is not kept"},
    413: {"model": ErrorAnswer, "description": "The picture is too large"},
    415: {"model": ErrorAnswer, "description": "No picture that can be read"},
    503: {"model": ErrorAnswer, "description": "Too many pictures at once; see Retry-After"},
}
_PICTURE: Final = {"type": "string", "format": "binary"}


def _bodies(model: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a body that is JSON, a raw picture, or a form with a picture."""
    form = {"type": "object", "required": ["image"], "properties": {"image": _PICTURE, **fields}}
    content = {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}},
        "image/*": {"schema": _PICTURE},
        "multipart/form-data": {"schema": form},
    }
    return {"requestBody": {"required": True, "content": content}}


router = APIRouter(responses=FAILURES, route_class=StrictRoute)


@router.get(
    "/api/search",
    tags=["search"],
    summary="Search by text",
    response_model=SearchAnswer,
    responses={404: _PICTURE_FAILURES[404]},
    openapi_extra=described(SearchAddress),
)
def search_by_text(request: Request) -> Response:
    """Return moments that show what the text says, best first.

    A moment (`like`, or `video_id` and `seconds`) and a `picture` of an earlier search may be given
    beside the text or instead of it.
    """
    services = services_of(request)
    asked = SearchAddress.of_items(request.query_params.multi_items())
    result = asked.run(services, receipt=asked.receipt)
    return _answer_address(request, services, asked, result)


@router.post(
    "/api/search",
    tags=["search"],
    summary="Search by picture, or by anything as JSON",
    response_model=SearchAnswer,
    responses=_PICTURE_FAILURES,
    openapi_extra=described(Search)
    | _bodies("SearchBody", Search.model_json_schema()["properties"]),
)
async def search_by_picture(request: Request, services: CurrentServices) -> Response:
    """Return moments that look like the picture in the body, raw or as the form field `image`.

    Words and filters go into the address, or beside the picture into the form. The answer's
    `query.picture` is the id of the picture for further searches. A JSON body may ask for anything.
    """
    if content_type_of(request) == "application/json":
        body = SearchBody.checked(await _json_of(request))
        result = await run_in_threadpool(body.run, services)
        return _answer(result, body.page, "/api/search", body.items(), has_next=body.vector is None)
    items = request.query_params.multi_items()
    Search.of_items(items).page.check(services)

    def search(pixels_HWC: Any, fields: list[tuple[str, str]]) -> Response:
        asked = Search.of_items([*items, *fields])
        found = asked.run(services, pixels_HWC)
        kept = [*asked.items(), ("picture", found.query.picture or "")]
        has_next = found.query.picture is not None
        return _answer(found, asked.page, "/api/search", kept, has_next=has_next)

    return await on_picture(request, services, search)


@router.post("/api/search/batch", tags=["search"], summary="Several searches at once")
def search_batch(services: CurrentServices, batch: BatchBody) -> BatchAnswer:
    """Return the answers of several searches, in their order; all texts are embedded together."""
    _check_batch(services, len(batch.queries), "queries")
    words = [words_of(services, query.q) for query in batch.queries]
    texts = [term.text for terms in words for term in terms if isinstance(term, TextTerm)]
    services.search.vectors_of_texts(texts)
    answers = (
        _document(
            query.run(services, words=terms),
            query.page,
            "/api/search",
            query.items(),
            query.vector is None,
        )
        for query, terms in zip(batch.queries, words, strict=True)
    )
    return BatchAnswer(results=tuple(answers))


@router.post(
    "/api/embed",
    tags=["search"],
    summary="Vectors of texts, or of a picture",
    response_model=EmbedAnswer,
    responses=_PICTURE_FAILURES,
    openapi_extra=_bodies("EmbedBody", {}),
)
async def embed(request: Request, services: CurrentServices) -> Response:
    """Return the unit vectors that the active model gives texts (JSON), or a picture."""
    if content_type_of(request) == "application/json":
        body = validated(EmbedBody, await _json_of(request))
        answer = await run_in_threadpool(_embed_texts, services, body.texts)
    else:
        answer = await on_picture(request, services, lambda pixels, _: _embed(services, pixels))
    return Response(to_json_bytes(answer), media_type="application/json")


@router.get(
    "/api/similar",
    tags=["search"],
    summary="More like a moment",
    response_model=SearchAnswer,
    responses={404: {"model": ErrorAnswer, "description": "No such video"}},
    openapi_extra=described(SimilarAddress),
)
def search_similar(request: Request, services: CurrentServices) -> Response:
    """Return moments that look like another one: `like`, or `video_id` and `seconds`."""
    asked = SimilarAddress.of_items(request.query_params.multi_items())
    moment = asked.moment(services)
    if moment is None:
        raise HttpError(422, "give either like=VIDEO@SECONDS, or video_id and seconds")
    result = run_search(services, asked.page, asked.limits, moment=moment, receipt=asked.receipt)
    return _answer_address(request, services, asked, result)


def _embed_texts(services: Services, texts: list[str]) -> EmbedAnswer:
    _check_batch(services, len(texts), "texts")
    for text in texts:
        checked_text(services, text)
    model, vectors_ND = services.search.vectors_of_texts(texts)
    tokens = [services.search.tokens_if_cut(text) for text in texts]
    return EmbedAnswer(
        model=model.name,
        model_key=model.key,
        dimensions=model.dim,
        items=tuple(
            EmbeddedItem(vector=vector, truncated=cut is not None or None, tokens=cut)
            for vector, cut in zip(vectors_ND.tolist(), tokens, strict=True)
        ),
    )


def _embed(services: Services, pixels_HWC: Any) -> EmbedAnswer:
    with services.embedding_picture():
        model, vectors_ND = services.search.vectors_of_images([pixels_HWC])
    items = (EmbeddedItem(vector=vectors_ND[0].tolist()),)
    return EmbedAnswer(model=model.name, model_key=model.key, dimensions=model.dim, items=items)


def _check_batch(services: Services, size: int, name: str) -> None:
    most = services.settings.http_max_batch
    if size > most:
        raise HttpError(422, f"{size} {name}: at most {most} at once (SIGLIP_HTTP_MAX_BATCH)")


async def _json_of(request: Request) -> object:
    if request.query_params:
        name = next(iter(request.query_params))
        raise HttpError(
            422, f"{name}: a JSON body holds all parameters; take it out of the address"
        )
    try:
        return await request.json()
    except (ValueError, RecursionError) as error:
        raise HttpError(422, f"the body is no JSON: {error}") from error


def _answer_address(
    request: Request,
    services: Services,
    asked: SearchAddress | SimilarAddress,
    result: SearchResult,
) -> Response:
    """Return the answer to a search whose parameters are in its address."""
    path, items = request.scope["path"], request.query_params.multi_items()
    permalink = None
    if result.pin is not None:
        least = services.search.least_probability(asked.limits)
        permalink = permalink_of(path, items, result.pin, min_probability=least)
    return _answer(result, asked.page, path, items, permalink=permalink)


def _answer(
    result: SearchResult,
    page: HitRange,
    path: str,
    items: Iterable[tuple[str, str]],
    *,
    has_next: bool = True,
    permalink: str | None = None,
) -> Response:
    """Return the answer ready to send: FastAPI would validate it again, on another thread."""
    answer = _document(result, page, path, items, has_next, permalink)
    return Response(to_json_bytes(answer), media_type="application/json")


def _document(
    result: SearchResult,
    page: HitRange,
    path: str,
    items: Iterable[tuple[str, str]],
    has_next: bool,
    permalink: str | None = None,
) -> SearchAnswer:
    return SearchAnswer(
        query=result.query,
        model=result.model,
        hits=tuple(map(HitAnswer.of, result.hits)),
        next=page.next_url(path, items, len(result.hits)) if has_next else None,
        proof=result.proof,
        pin=result.pin,
        permalink=permalink,
        reproduced=result.reproduced,
    )
