"""The parameters of a search, the same for addresses, forms, JSON bodies and the page."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from datetime import datetime
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request

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
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.parameters import nearest
from siglip_pipeline.web.services import Services

Body = TypeVar("Body", bound=BaseModel)

MAX_ID = 2**31 - 1
MAX_SECONDS = 1e7
FILTERS = tuple(field.name for field in fields(SearchFilter))
"""Names of the parameters that limit a search."""
MAX_DIMENSIONS = 8192

# A form sends an empty input as an empty text.
_Blank = BeforeValidator(lambda value: None if value == "" else value)
_Time = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
_Seconds = Annotated[_Time | None, _Blank]

Videos = Annotated[
    list[str] | None,
    Query(
        max_length=50,
        description="Search these only: paths below the uploads, and globs (`*` stays within a "
        "folder, `**` does not). May be repeated.",
        examples=[["holiday/**"]],
    ),
]
FromSeconds = Annotated[_Seconds, Query(description="From this time of a video.")]
ToSeconds = Annotated[_Seconds, Query(description="Before this time.")]
UploadedSince = Annotated[
    Annotated[datetime | None, _Blank],
    Query(description="Uploads modified at this time or later; UTC."),
]
UploadedUntil = Annotated[
    Annotated[datetime | None, _Blank], Query(description="Uploads modified before this time.")
]
MinProbability = Annotated[
    Annotated[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None, _Blank],
    Query(description="Hide what is less probable."),
]
MaxPerVideo = Annotated[
    Annotated[Annotated[int, Field(ge=1, le=MAX_K)] | None, _Blank],
    Query(description="At most so many moments of one video."),
]
K = Annotated[
    int, Query(ge=1, le=MAX_K, description="How many moments (at most SIGLIP_HTTP_MAX_K).")
]
Offset = Annotated[int, Query(ge=0, le=MAX_K, description="How many to skip.")]
Text = Annotated[
    str,
    Query(
        min_length=1,
        description='What to look for, in the words of a caption; or a mix: `+"snow" -"people"`.',
        examples=["a red car on a bridge"],
    ),
]
Like = Annotated[
    str | None, Query(description="`VIDEO@SECONDS`.", examples=["holiday/beach.mp4@12.5"])
]
VideoNumber = Annotated[Annotated[int, Field(ge=1, le=MAX_ID)] | None, _Blank]
PictureId = Annotated[
    str | None,
    Query(
        pattern="^[0-9a-f]{32}$",
        description="`query.picture` of an earlier search by picture.",
    ),
]


async def _filter(
    videos: Videos = None,
    from_seconds: FromSeconds = None,
    to_seconds: ToSeconds = None,
    uploaded_since: UploadedSince = None,
    uploaded_until: UploadedUntil = None,
    min_probability: MinProbability = None,
    max_per_video: MaxPerVideo = None,
) -> SearchFilter:
    return _limits(
        videos,
        from_seconds=from_seconds,
        to_seconds=to_seconds,
        uploaded_since=uploaded_since,
        uploaded_until=uploaded_until,
        min_probability=min_probability,
        max_per_video=max_per_video,
    )


def _limits(videos: Sequence[str] | None, **others: Any) -> SearchFilter:
    """Return the filter of parameters by name; an empty name of a video is none."""
    return SearchFilter(videos=tuple(filter(None, videos or ())) or None, **others)


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

    def next_url(self, path: str, query_items: Iterable[tuple[str, str]], hits: int) -> str | None:
        """Return the address of the next page; None at the end."""
        offset = self.offset + self.k
        if hits < self.k or offset + self.k > MAX_K:
            return None
        kept = [(name, value) for name, value in query_items if name not in ("offset", "k")]
        return f"{path}?{urlencode([*kept, ('k', self.k), ('offset', offset)])}"


async def _hit_range(k: K = 10, offset: Offset = 0) -> HitRange:
    return HitRange(k, offset)


Page = Annotated[HitRange, Depends(_hit_range)]


def filter_values(request: Request) -> dict[str, str]:
    """Return the values of the filter inputs, valid or not, to show them again."""
    return {name: request.query_params.get(name, "")[:200] for name in FILTERS}


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


class SearchBody(BaseModel):
    """A search as JSON: what to look for, and the filters.

    Words, a moment and a stored picture may be given together; a vector stands alone.
    """

    model_config = ConfigDict(extra="forbid")

    q: Text | None = None
    like: Like = None
    video_id: VideoNumber = None
    seconds: _Seconds = None
    picture: PictureId = None
    vector: list[float] | None = Field(
        None,
        min_length=1,
        max_length=MAX_DIMENSIONS,
        description="A vector of the active model, as `/api/embed` returns it.",
    )
    vector_kind: Literal["picture", "text"] = Field(
        "picture", description="What the vector is of: how neighbouring moments are joined."
    )
    videos: Videos = None
    from_seconds: FromSeconds = None
    to_seconds: ToSeconds = None
    uploaded_since: UploadedSince = None
    uploaded_until: UploadedUntil = None
    min_probability: MinProbability = None
    max_per_video: MaxPerVideo = None
    k: K = 10
    offset: Offset = 0

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        for name in given if isinstance(given, dict) else ():
            if name not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown", "{problem}", {"problem": nearest(name, cls.model_fields)}
                )
        return given

    @classmethod
    def of_items(cls, items: Iterable[tuple[str, str]]) -> Self:
        """Return the search that an address or a form describes; later values win.

        Raises:
            RequestValidationError: a value cannot be used.
        """
        given: dict[str, Any] = {}
        for name, value in items:
            if name == "videos":
                given.setdefault(name, []).append(value)
            elif value:
                given[name] = value
        return cls.checked(given)

    @classmethod
    def checked(cls, document: object) -> Self:
        """Return the search that a JSON document describes.

        Raises:
            RequestValidationError: a value cannot be used.
        """
        return validated(cls, document)

    def items(self) -> list[tuple[str, str]]:
        """Return the same search as the parameters of an address."""
        given = self.model_dump(mode="json", exclude_defaults=True)
        return [
            (name, str(value))
            for name, values in given.items()
            for value in (values if isinstance(values, list) else [values])
        ]

    @property
    def page(self) -> HitRange:
        """Return the requested hits."""
        return HitRange(self.k, self.offset)

    @property
    def limits(self) -> SearchFilter:
        """Return the limits on hits."""
        return _limits(**{name: getattr(self, name) for name in FILTERS})

    def run(
        self,
        services: Services,
        pixels_HWC: RgbArray | None = None,
        *,
        words: Sequence[QueryTerm] | None = None,
    ) -> SearchResult:
        """Search; see :func:`run_search`."""
        return run_search(
            services,
            self.page,
            self.limits,
            q=self.q,
            words=words,
            moment=moment_of(services, self.like, self.video_id, self.seconds),
            picture=self.picture,
            pixels_HWC=pixels_HWC,
            vector=self.vector,
            vector_kind=self.vector_kind,
        )


def validated(kind: type[Body], document: object) -> Body:
    """Return a document as the body that it is to be.

    Raises:
        RequestValidationError: it is not.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        problems = [{**e, "loc": ("body", *e["loc"])} for e in error.errors()]
        raise RequestValidationError(problems) from error


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
        return MomentTerm(*parsed_moment("like", like))
    if like is None and video_id is not None and seconds is not None:
        return MomentTerm(services.name(video_id).video, seconds)
    raise HttpError(422, "give either like=VIDEO@SECONDS, or video_id and seconds")


def parsed_moment(parameter: str, text: str) -> tuple[str, float]:
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
    services: Services, text: str, moment: str, page: HitRange, filter: SearchFilter
) -> Explanation:
    """Say why a search for ``text`` does not show the moment ``VIDEO@SECONDS``.

    Raises:
        HttpError: 422, too long a text, too late a moment, or too many hits.
        SearchError: as :class:`~siglip_pipeline.search.SearchService`.
    """
    words = words_of(services, text)
    page.check(services)
    video, seconds = parsed_moment("moment", moment)
    k = page.offset + page.k
    return services.search.explain(words, video, seconds, k=k, filter=filter)


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
    terms = [*(words_of(services, q) if words is None else words)]
    if moment is not None:
        terms.append(moment)
    if vector is not None:
        if terms or picture is not None or pixels_HWC is not None:
            raise QueryError("a vector is a query of its own: give nothing else to look for")
        return services.search.by_vector(
            vector, kind=vector_kind, k=page.k, offset=page.offset, filter=filter
        )
    if pixels_HWC is not None:
        picture = services.pictures.put(pixels_HWC)
    if picture is not None:
        pixels_HWC = stored_picture(services, picture)
    if pixels_HWC is not None:
        terms.append(ImageTerm(pixels_HWC))
    if not terms:
        raise HttpError(
            422, "nothing to look for: give q, like, video_id and seconds, picture or vector"
        )
    with nullcontext() if pixels_HWC is None else services.embedding_picture():
        result = services.search.with_receipt(
            terms, receipt or Receipt(), k=page.k, offset=page.offset, filter=filter
        )
    if q is not None and not page.offset:
        services.log_query(q)
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


def stored_picture(services: Services, picture: str) -> RgbArray:
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
