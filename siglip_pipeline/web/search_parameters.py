"""The parameters of a search, the same in addresses, forms and JSON bodies."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, Self, TypedDict, TypeVar

from fastapi import Depends, Query
from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from siglip_pipeline.records import RgbArray
from siglip_pipeline.search import MAX_K, MomentTerm, QueryTerm, Receipt, SearchFilter, SearchResult
from siglip_pipeline.text.date_time import DateTime
from siglip_pipeline.web.parameters import NUMBER, given_twice, nearest
from siglip_pipeline.web.query import MAX_ID, MAX_SECONDS, HitRange, moment_of, run_search
from siglip_pipeline.web.services import Services

Body = TypeVar("Body", bound=BaseModel)

FILTERS = tuple(field.name for field in fields(SearchFilter))
"""Names of the parameters that limit a search."""
NO_LIMITS = SearchFilter()
MAX_DIMENSIONS = 8192

BLANK = BeforeValidator(lambda value: None if value == "" else value)
"""A form sends an empty input as an empty text."""
_Time = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False), NUMBER]
_Seconds = Annotated[_Time | None, BLANK]

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
    Annotated[DateTime | None, BLANK],
    Query(description="Uploads modified at this time or later; UTC unless it says otherwise."),
]
UploadedUntil = Annotated[
    Annotated[DateTime | None, BLANK], Query(description="Uploads modified before this time.")
]
MinProbability = Annotated[
    Annotated[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NUMBER] | None, BLANK],
    Query(description="Hide what is less probable."),
]
MaxPerVideo = Annotated[
    Annotated[Annotated[int, Field(ge=1, le=MAX_K), NUMBER] | None, BLANK],
    Query(description="At most so many moments of one video."),
]
K = Annotated[
    int, Query(ge=1, le=MAX_K, description="How many moments (at most SIGLIP_HTTP_MAX_K)."), NUMBER
]
Offset = Annotated[int, Query(ge=0, le=MAX_K, description="How many to skip."), NUMBER]
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
VideoNumber = Annotated[Annotated[int, Field(ge=1, le=MAX_ID), NUMBER] | None, BLANK]
PictureId = Annotated[
    str | None,
    Query(
        pattern="^[0-9a-f]{32}$",
        description="`query.picture` of an earlier search by picture.",
    ),
]
Prove = Annotated[
    bool, Query(description="Also search exactly, and say what the index missed (`proof`).")
]
Permalink = Annotated[bool, Query(description="Name the state of the index (`pin`, `permalink`).")]
Pin = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=300,
        description="From a permalink: say whether the answer is still the same (`reproduced`).",
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


async def _hit_range(k: K = 10, offset: Offset = 0) -> HitRange:
    return HitRange(k, offset)


Page = Annotated[HitRange, Depends(_hit_range)]


def filter_values(request: Request) -> dict[str, str]:
    """Return the values of the filter inputs, valid or not, to show them again."""
    return {name: request.query_params.get(name, "")[:200] for name in FILTERS}


async def _receipt(prove: Prove = False, permalink: Permalink = False, pin: Pin = None) -> Receipt:
    return Receipt(prove=prove, permalink=permalink, pin=pin)


WithReceipt = Annotated[Receipt, Depends(_receipt)]


class _Vector(TypedDict, total=False):
    vector: list[float] | None
    vector_kind: Literal["picture", "text"]


class _Words(BaseModel):
    q: Text | None = None
    picture: PictureId = None


class _Moment(BaseModel):
    like: Like = None
    video_id: VideoNumber = None
    seconds: _Seconds = None

    def moment(self, services: Services) -> MomentTerm | None:
        """Return the moment to look like; None if there is none."""
        return moment_of(services, self.like, self.video_id, self.seconds)


class _Range(BaseModel):
    """Which hits, and the checks that all searches share."""

    model_config = ConfigDict(extra="forbid")

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
        """Return the search that an address, a form, or both describe.

        Raises:
            HttpError: 422, a parameter has two values.
            RequestValidationError: a value cannot be used.
        """
        given: dict[str, Any] = {}
        for name, value in items:
            if name == "videos":
                given.setdefault(name, []).append(value)
            elif value and given.setdefault(name, value) != value:
                raise given_twice(name)
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
        if self.model_fields_set.isdisjoint(FILTERS):
            return NO_LIMITS
        return _limits(**{name: getattr(self, name) for name in FILTERS})


class Search(_Range, _Moment, _Words):
    """What to look for, and the filters."""

    def run(
        self,
        services: Services,
        pixels_HWC: RgbArray | None = None,
        *,
        words: Sequence[QueryTerm] | None = None,
        receipt: Receipt | None = None,
    ) -> SearchResult:
        """Search; see :func:`run_search`."""
        return run_search(
            services,
            self.page,
            self.limits,
            q=self.q,
            words=words,
            moment=self.moment(services),
            picture=self.picture,
            pixels_HWC=pixels_HWC,
            receipt=receipt,
            **self._vector(),
        )

    def _vector(self) -> _Vector:
        return {}


class SearchBody(Search):
    """A search as JSON: what to look for, and the filters.

    Words, a moment and a stored picture may be given together; a vector stands alone.
    """

    vector: list[Annotated[float, Strict()]] | None = Field(
        None,
        min_length=1,
        max_length=MAX_DIMENSIONS,
        description="A vector of the active model, as `/api/embed` returns it.",
    )
    vector_kind: Literal["picture", "text"] = Field(
        "picture", description="What the vector is of: how neighbouring moments are joined."
    )

    def _vector(self) -> _Vector:
        return {"vector": self.vector, "vector_kind": self.vector_kind}


class _Receipt(BaseModel):
    prove: Prove = False
    permalink: Permalink = False
    pin: Pin = None

    @property
    def receipt(self) -> Receipt:
        """Return what the answer shall bring along."""
        return Receipt(prove=self.prove, permalink=self.permalink, pin=self.pin)


class SearchAddress(_Receipt, Search):
    """A search whose parameters are in its address."""


class SimilarAddress(_Receipt, _Range, _Moment):
    """A search for moments that look like another one, in its address."""


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
