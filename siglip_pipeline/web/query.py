"""Run searches: the same for addresses, forms, JSON bodies, the page and MCP."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Literal
from urllib.parse import urlencode

from siglip_pipeline.errors import QueryError
from siglip_pipeline.records import RgbArray
from siglip_pipeline.search import (
    MAX_K,
    Explanation,
    ImageTerm,
    MomentTerm,
    QueryTerm,
    Receipt,
    SearchFilter,
    SearchResult,
    parse_moment,
    parse_query,
)
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.services import Services

MAX_ID = 2**31 - 1
MAX_SECONDS = 1e7


class HitRange:
    """The requested hits of a result: ``k`` of them, from ``offset`` on."""

    def __init__(self, k: int, offset: int) -> None:
        self.k = k
        self.offset = offset

    def check(self, services: Services) -> "HitRange":
        """Return itself, if it is within the limits.

        Raises:
            HttpError: 422, more hits than may be asked for.
        """
        most = services.settings.http_max_k
        if self.k > most:
            raise HttpError(
                422, f"k={self.k}: at most {counted(most, 'moment')} at once; ask for more pages"
            )
        if self.offset + self.k > MAX_K:
            raise HttpError(
                422, f"offset={self.offset}, k={self.k}: no search goes beyond {MAX_K} moments"
            )
        return self

    def next_url(self, path: str, query_items: Iterable[tuple[str, str]], hits: int) -> str | None:
        """Return the address of the next page; None at the end."""
        offset = self.offset + self.k
        if hits < self.k or offset + self.k > MAX_K:
            return None
        kept = [(name, value) for name, value in query_items if name not in ("offset", "k")]
        return f"{path}?{urlencode([*kept, ('k', self.k), ('offset', offset)])}"


def permalink_of(
    path: str, items: list[tuple[str, str]], pin: str, *, min_probability: float
) -> str:
    """Return the address that asks the same again and pins the state.

    Args:
        path: of the address.
        items: the parameters of the request.
        pin: of the answer.
        min_probability: which hits were hidden, which a setting may change.
    """
    kept = [(n, v) for n, v in items if n not in ("pin", "permalink", "prove") and v]
    if "min_probability" not in dict(kept):
        kept.append(("min_probability", f"{min_probability:.10g}"))
    return f"{path}?{urlencode([*kept, ('pin', pin)])}"


def moment_of(
    services: Services, like: str | None, video_id: int | None, seconds: float | None
) -> MomentTerm | None:
    """Return the moment to look like, by path or by id; None if there is none.

    Raises:
        HttpError: 404 for an unknown video, 422 for half a moment, or two.
    """
    if like is None and video_id is None and seconds is None:
        return None
    if like is not None and video_id is None and seconds is None:
        return MomentTerm(*_parsed_moment("like", like))
    if like is None and video_id is not None and seconds is not None:
        return MomentTerm(services.name(video_id).video, seconds)
    raise HttpError(422, "give either like=VIDEO@SECONDS, or video_id and seconds")


def _parsed_moment(parameter: str, text: str) -> tuple[str, float]:
    """Return the video and the seconds of a parameter ``VIDEO@SECONDS``.

    Raises:
        QueryError: it is not of this form.
        HttpError: 422, no video is so long.
    """
    video, seconds = parse_moment(text)
    if seconds > MAX_SECONDS:
        raise HttpError(422, f"{parameter}={text!r}: the time is beyond {MAX_SECONDS:g} s")
    return video, seconds


def explain_moment(
    services: Services,
    expected: str,
    page: HitRange,
    filter: SearchFilter,
    *,
    q: str | None = None,
    moment: MomentTerm | None = None,
    picture: str | None = None,
) -> Explanation:
    """Say why a search does not show the moment ``VIDEO@SECONDS`` that was expected.

    Raises:
        HttpError: 404 for an unknown picture, 422 for too long a text, too late a moment, or too
            many hits.
        SearchError: as :class:`~siglip_pipeline.search.SearchService`.
    """
    page.check(services)
    video, seconds = _parsed_moment("moment", expected)
    k = page.offset + page.k
    with _terms(services, words_of(services, q), moment, picture) as terms:
        return services.search.explain(terms, video, seconds, k=k, filter=filter)


@contextmanager
def _terms(
    services: Services,
    words: Sequence[QueryTerm],
    moment: MomentTerm | None,
    picture: str | None,
    pixels_HWC: RgbArray | None = None,
) -> Iterator[list[QueryTerm]]:
    """Open the terms of a query; with a picture it is its turn to go through the model.

    Raises:
        HttpError: 404 for an unknown picture, 422 if there is nothing to look for, 503 if too many
            pictures wait.
    """
    terms = [*words]
    if moment is not None:
        terms.append(moment)
    if picture is not None:
        pixels_HWC = _stored_picture(services, picture)
    if pixels_HWC is not None:
        terms.append(ImageTerm(pixels_HWC))
    if not terms:
        raise HttpError(
            422, "nothing to look for: give q, like, video_id and seconds, picture or vector"
        )
    with nullcontext() if pixels_HWC is None else services.embedding_picture():
        yield terms


def run_search(
    services: Services,
    page: HitRange,
    filter: SearchFilter,
    *,
    q: str | None = None,
    words: Sequence[QueryTerm] | None = None,
    moment: MomentTerm | None = None,
    picture: str | None = None,
    pixels_HWC: RgbArray | None = None,
    vector: Sequence[float] | None = None,
    vector_kind: Literal["picture", "text"] = "picture",
    receipt: Receipt | None = None,
) -> SearchResult:
    """Search for words, a moment, a picture, or several of these; or for a vector.

    Args:
        services: the search, and the pictures of earlier searches.
        page: the requested hits.
        filter: limits on them.
        q: words, or a mix such as ``+"snow" -"people"``.
        words: the terms of ``q``, where they are known (:func:`words_of`).
        moment: to look like.
        picture: id of a picture that is kept.
        pixels_HWC: a picture that the client sent; it is kept.
        vector: of the active model.
        vector_kind: what the vector is of.
        receipt: what else is wanted of the answer.

    Raises:
        HttpError: 404 for an unknown picture, 422 for too long a text or too many hits.
        SearchError: as :class:`~siglip_pipeline.search.SearchService`.
    """
    page.check(services)
    words = words_of(services, q) if words is None else words
    if vector is not None:
        if words or moment is not None or picture is not None or pixels_HWC is not None:
            raise QueryError("a vector is a query of its own: give nothing else to look for")
        return services.search.by_vector(
            vector, kind=vector_kind, k=page.k, offset=page.offset, filter=filter
        )
    if pixels_HWC is not None:
        picture = services.pictures.put(pixels_HWC)
    with _terms(services, words, moment, picture, pixels_HWC) as terms:
        result = services.search.with_receipt(
            terms, receipt or Receipt(), k=page.k, offset=page.offset, filter=filter
        )
    if q is not None and not page.offset:
        services.log_query(q)
    if picture is None:
        return result
    return replace(result, query=replace(result.query, picture=picture))


def words_of(services: Services, q: str | None) -> list[QueryTerm]:
    """Return the terms of a text; none without one.

    Raises:
        HttpError: 422, it is too long.
        QueryError: it cannot be parsed.
    """
    return [] if q is None else parse_query(checked_text(services, q))


def checked_text(services: Services, text: str) -> str:
    """Return a text that is not too long.

    Raises:
        HttpError: 422, it is.
    """
    most = services.settings.http_max_query_length
    if len(text) > most:
        raise HttpError(
            422,
            f"the query has {len(text)} characters, at most {most} (SIGLIP_HTTP_MAX_QUERY_"
            "LENGTH); a model reads 64 tokens of it",
        )
    return text


def _stored_picture(services: Services, picture: str) -> RgbArray:
    """Return a picture that was searched by before.

    Raises:
        HttpError: 404, it is not kept any more.
    """
    pixels_HWC = services.pictures.pixels(picture)
    if pixels_HWC is None:
        raise HttpError(
            404,
            "the picture of this search is not kept any more (SIGLIP_HTTP_PICTURES_KEPT_MIB); "
            "search by it again",
        )
    return pixels_HWC
