"""The parameters of a search, the same for the API and the page."""

from dataclasses import fields
from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, Query
from pydantic import BeforeValidator, Field
from starlette.requests import Request

from siglip_pipeline.records import RgbArray
from siglip_pipeline.search import (
    MAX_K,
    MomentTerm,
    Receipt,
    SearchFilter,
    SearchResult,
    parse_moment,
    parse_query,
)
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.services import Services

MAX_ID = 2**31 - 1
MAX_SECONDS = 1e7
FILTERS = tuple(field.name for field in fields(SearchFilter))
"""Names of the parameters that limit a search."""

# A form sends an empty input as an empty text.
_Blank = BeforeValidator(lambda value: None if value == "" else value)
_Seconds = Annotated[
    Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)] | None, _Blank
]
_Share = Annotated[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None, _Blank]
_Count = Annotated[Annotated[int, Field(ge=1, le=MAX_K)] | None, _Blank]
_Day = Annotated[datetime | None, _Blank]


async def _filter(
    videos: Annotated[
        list[str] | None,
        Query(
            max_length=50,
            description="Search these only: paths below the uploads, and globs (`*` stays within a "
            "folder, `**` does not). May be repeated.",
            examples=[["holiday/**"]],
        ),
    ] = None,
    from_seconds: Annotated[_Seconds, Query(description="From this time of a video.")] = None,
    to_seconds: Annotated[_Seconds, Query(description="Before this time.")] = None,
    uploaded_since: Annotated[
        _Day, Query(description="Uploads modified at this time or later; UTC.")
    ] = None,
    uploaded_until: Annotated[_Day, Query(description="… before this time.")] = None,
    min_probability: Annotated[_Share, Query(description="Hide what is less probable.")] = None,
    max_per_video: Annotated[
        _Count, Query(description="At most so many moments of one video.")
    ] = None,
) -> SearchFilter:
    return SearchFilter(
        videos=tuple(video for video in videos or () if video) or None,
        from_seconds=from_seconds,
        to_seconds=to_seconds,
        uploaded_since=uploaded_since,
        uploaded_until=uploaded_until,
        min_probability=min_probability,
        max_per_video=max_per_video,
    )


Filter = Annotated[SearchFilter, Depends(_filter)]


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
            raise HttpError(422, f"k={self.k}: at most {most} moments at once; ask for more pages")
        if self.offset + self.k > MAX_K:
            raise HttpError(
                422, f"offset={self.offset}, k={self.k}: no search goes beyond {MAX_K} moments"
            )
        return self

    def next_url(self, path: str, query_items: list[tuple[str, str]], hits: int) -> str | None:
        """Return the address of the next page; None at the end."""
        offset = self.offset + self.k
        if hits < self.k or offset + self.k > MAX_K:
            return None
        kept = [(name, value) for name, value in query_items if name not in ("offset", "k")]
        return f"{path}?{urlencode([*kept, ('k', self.k), ('offset', offset)])}"


async def _hit_range(
    k: Annotated[
        int, Query(ge=1, le=MAX_K, description="How many moments (at most SIGLIP_HTTP_MAX_K).")
    ] = 10,
    offset: Annotated[int, Query(ge=0, le=MAX_K, description="How many to skip.")] = 0,
) -> HitRange:
    return HitRange(k, offset)


Page = Annotated[HitRange, Depends(_hit_range)]


def filter_values(request: Request) -> dict[str, str]:
    """Return the values of the filter inputs, valid or not, to show them again."""
    return {name: request.query_params.get(name, "")[:200] for name in FILTERS}


def check_text_length(services: Services, text: str) -> None:
    """Refuse a text that is too long.

    Raises:
        HttpError: 422.
    """
    most = services.settings.http_max_query_length
    if len(text) > most:
        raise HttpError(
            422,
            f"the query has {len(text)} characters, at most {most} (SIGLIP_HTTP_MAX_QUERY_"
            "LENGTH); a model reads 64 tokens of it",
        )


async def _receipt(
    prove: Annotated[
        bool, Query(description="Also search exactly, and say what the index missed (`proof`).")
    ] = False,
    permalink: Annotated[
        bool, Query(description="Name the state of the index (`pin`, `permalink`).")
    ] = False,
    pin: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=300,
            description="From a permalink: say whether the answer is still the same "
            "(`reproduced`).",
        ),
    ] = None,
) -> Receipt:
    return Receipt(prove=prove, permalink=permalink, pin=pin)


WithReceipt = Annotated[Receipt, Depends(_receipt)]


def permalink_of(
    path: str, items: list[tuple[str, str]], result: SearchResult, *, min_probability: float
) -> str | None:
    """Return the address that asks the same again and pins the state; None without a pin.

    Args:
        path: of the address.
        items: the parameters of the request.
        result: the answer.
        min_probability: which hits were hidden, which a setting may change.
    """
    if result.pin is None:
        return None
    kept = [(n, v) for n, v in items if n not in ("pin", "permalink", "prove") and v]
    if "min_probability" not in dict(kept):
        kept.append(("min_probability", f"{min_probability:g}"))
    return f"{path}?{urlencode([*kept, ('pin', result.pin)])}"


def search_text(
    services: Services,
    text: str,
    page: HitRange,
    filter: SearchFilter,
    receipt: Receipt | None = None,
) -> SearchResult:
    """Find moments for words, or for a mix such as ``+"snow" -"people"``.

    Raises:
        HttpError: 422, the text is too long.
        SearchError: as :class:`~siglip_pipeline.search.SearchService`.
    """
    check_text_length(services, text)
    page.check(services)
    return services.search.with_receipt(
        parse_query(text), receipt or Receipt(), k=page.k, offset=page.offset, filter=filter
    )


def search_picture(
    services: Services, pixels_HWC: RgbArray, page: HitRange, filter: SearchFilter
) -> SearchResult:
    """Find moments that look like a picture.

    Raises:
        HttpError: 422, more hits than may be asked for.
        SearchError: as :class:`~siglip_pipeline.search.SearchService`.
    """
    page.check(services)
    with services.image_lock:
        return services.search.by_image(pixels_HWC, k=page.k, offset=page.offset, filter=filter)


def search_similar(
    services: Services,
    page: HitRange,
    filter: SearchFilter,
    *,
    like: str | None,
    video_id: int | None,
    seconds: float | None,
    receipt: Receipt | None = None,
) -> SearchResult:
    """Find moments that look like another one: ``VIDEO@SECONDS``, or an id and a time.

    Raises:
        HttpError: 404 for an unknown video, 422 unless exactly one moment is given.
        SearchError: as :class:`~siglip_pipeline.search.SearchService`.
    """
    page.check(services)
    if like is not None and video_id is None and seconds is None:
        video, at = parse_moment(like)
        if at > MAX_SECONDS:
            raise HttpError(422, f"like={like!r}: the time is beyond {MAX_SECONDS:g} s")
    elif like is None and video_id is not None and seconds is not None:
        video, at = services.name(video_id).video, seconds
    else:
        raise HttpError(422, "give either like=VIDEO@SECONDS, or video_id and seconds")
    return services.search.with_receipt(
        [MomentTerm(video, at)], receipt or Receipt(), k=page.k, offset=page.offset, filter=filter
    )
