"""The request and the result of a search, in one form each from HTTP down to SQL.

Shapes: Q vectors of one query, D dimensions. Times are seconds; ranges are half-open.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field, PlainSerializer

from siglip_pipeline.errors import QueryError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.text.json_form import DOCUMENTED, Given, Rounded3, Rounded6

MAX_K = 1000
"""Most hits of one search."""
MAX_WILDCARDS = 40
"""Most wildcards in a glob; the database's work grows with the square of the asterisks."""
MAX_DIFFERENT = 128
"""Most different characters in a glob: the database compares each with each wildcard."""
MAX_PATTERN = 2000
"""Longest path or glob, in characters; no upload has a longer name."""
APART = -1.0
"""Value of ``within`` that makes every moment of the index a hit of its own."""
ABOUT_VIDEOS = ("videos", "uploaded_since", "uploaded_until")
"""Fields of a filter that limit the videos, which are looked up before the search."""

_Time = Annotated[datetime, PlainSerializer(datetime.isoformat, return_type=str)]


def check_text(text: str) -> None:
    """Refuse text that the tokenizer or the database cannot take.

    Raises:
        QueryError: NUL, or a lone surrogate (a terminal's form of bytes that are not UTF-8).
    """
    if re.search("[\0\ud800-\udfff]", text):
        raise QueryError(f"{text!r} is not valid Unicode text; type it again")


def check_range(k: int, offset: int) -> None:
    """Refuse a range of hits that no search returns.

    Raises:
        QueryError: ``k`` or ``offset`` is out of range.
    """
    if not 1 <= k <= MAX_K:
        raise QueryError(f"k={k} is not between 1 and {MAX_K}")
    if not 0 <= offset <= MAX_K - k:
        raise QueryError(f"offset={offset}, k={k}: offset and k are at most {MAX_K} together")


def player_path(video_id: int, time_seconds: float) -> str:
    """Return where the player shows a second of a video, below the address of the search service.

    All decimals of a long film are kept: its frames may be 17 ms apart.
    """
    return f"videos/{video_id}?t={time_seconds:.10g}"


def _check_pattern(video: str) -> None:
    if not video:
        raise QueryError("videos: an empty name is no video; leave the filter out to search all")
    check_text(video)
    if len(video) > MAX_PATTERN:
        raise QueryError(f"videos={video[:40]!r}…: {len(video)} characters, at most {MAX_PATTERN}")
    wildcards = sum(map(video.count, "*?["))
    if wildcards > MAX_WILDCARDS:
        raise QueryError(
            f"videos={video[:40]!r}…: {wildcards} of the wildcards * ? and [, at most "
            f"{MAX_WILDCARDS}"
        )
    if wildcards and len(set(video)) > MAX_DIFFERENT:
        raise QueryError(
            f"videos={video[:40]!r}…: {len(set(video))} different characters beside wildcards, at "
            f"most {MAX_DIFFERENT}; give the whole path, or a shorter pattern"
        )


def _aware(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One moment that answers a query: its best frame, and the moment around it."""

    video: Annotated[str, Field(description="Path below the uploads.")]
    video_id: Annotated[int, Field(description="The database's number of the video.")]
    time_seconds: Annotated[Rounded3, Field(description="Of the best frame.")]
    frame_index: int
    score: Annotated[Rounded6, Field(description="Cosine similarity of the best frame, -1 to 1.")]
    probability: Annotated[
        Rounded6, Field(description="SigLIP's sigmoid, 0 to 1: does the text fit at all?")
    ]
    start_seconds: Rounded3
    end_seconds: Rounded3
    media_time_seconds: Annotated[
        Rounded3,
        Field(
            description="What a player's clock shows at the best frame: `time_seconds`, and what "
            "the file plays before its first frame."
        ),
    ]
    rank_score: Annotated[
        Given[Rounded6], Field(description="What the hit ranks by, where SIGLIP_RANKING says so.")
    ] = None
    steps: Annotated[
        Given[tuple["Hit", ...]],
        Field(description="Of a sequence: its moments in order. The hit spans all of them."),
    ] = None

    @property
    def ranked_by(self) -> float:
        """What hits are ordered by: ``rank_score``, or else ``score``."""
        return self.score if self.rank_score is None else self.rank_score

    @property
    def page_path(self) -> str:
        """Where the player shows it, below the address of the search service."""
        return player_path(self.video_id, self.time_seconds)

    @property
    def media_offset_seconds(self) -> float:
        """What a player's clock shows at the first frame of the video."""
        return self.media_time_seconds - self.time_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A place in a video."""

    __pydantic_config__ = DOCUMENTED

    video: str
    time_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFilter:
    """Limits on the moments that a search returns; the default lets all of them through.

    A search returns ``k`` moments whenever ``k`` pass the filter. An invalid value raises
    :class:`~siglip_pipeline.errors.QueryError`.
    """

    __pydantic_config__ = DOCUMENTED

    videos: Given[tuple[str, ...]] = None
    """Paths below UPLOADS and globs: ``*`` and ``?`` stay within a folder, ``**`` does not, and a
    glob without ``/`` matches the file's name. None: all videos."""
    from_seconds: Given[float] = None
    """Moments with a frame at this time of the video or later."""
    to_seconds: Given[float] = None
    """… before this time."""
    uploaded_since: Given[_Time] = None
    """The upload was modified at this time or later; UTC where it names no zone."""
    uploaded_until: Given[_Time] = None
    """… before this time."""
    min_probability: Given[float] = None
    """Hide less probable moments, 0 to 1. None: SIGLIP_SEARCH_MIN_PROBABILITY."""
    max_per_video: Given[int] = None
    """Most moments of one video."""

    def __post_init__(self) -> None:
        if isinstance(self.videos, str):
            raise QueryError(f"videos={self.videos!r}: give a sequence of paths or globs")
        for video in self.videos or ():
            _check_pattern(video)
        for name in ("from_seconds", "to_seconds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise QueryError(f"{name}={value}: a time within a video is 0 s or later")
        start, end = self.time_range or (0.0, 1.0)
        if not start < end:
            raise QueryError(
                f"from_seconds={self.from_seconds} is not before to_seconds={self.to_seconds}"
            )
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise QueryError(f"min_probability={self.min_probability} is not between 0 and 1")
        if self.max_per_video is not None and self.max_per_video < 1:
            raise QueryError(f"max_per_video={self.max_per_video}: at least 1")
        since, until = _aware(self.uploaded_since), _aware(self.uploaded_until)
        if since is not None and until is not None and not since < until:
            raise QueryError(
                f"uploaded_since={since.isoformat()} is not before "
                f"uploaded_until={until.isoformat()}"
            )
        object.__setattr__(self, "uploaded_since", since)
        object.__setattr__(self, "uploaded_until", until)

    @property
    def time_range(self) -> tuple[float, float] | None:
        """Return seconds within the video, half-open; None: all of it."""
        if self.from_seconds is None and self.to_seconds is None:
            return None
        end = float("inf") if self.to_seconds is None else self.to_seconds
        return self.from_seconds or 0.0, end

    @property
    def is_about_videos(self) -> bool:
        """Return whether the filter limits the videos, which must then be looked up first."""
        return any(getattr(self, name) is not None for name in ABOUT_VIDEOS)

    def narrowed_to(self, videos: Sequence[str] | None) -> "SearchFilter":
        """Return the same filter on these videos; None changes nothing."""
        return self if videos is None else replace(self, videos=tuple(videos))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchRequest:
    """What a search looks for under one model, and where.

    Raises:
        QueryError: ``k`` is out of range.
    """

    query_QD: FloatArray
    """Unit vectors; a moment's score is that of the nearest."""
    k: int
    """Most hits."""
    filter: SearchFilter = SearchFilter()
    """The caller applies its ``min_probability``, which may depend on more than the score."""
    within: float = APART
    """Neighbouring moments whose scores differ by at most this are one hit."""
    min_score: float = -2.0
    """Moments that score less are no hits."""
    ef_search: int | None = None
    """``ef_search`` of HNSW or ``probes`` of IVFFlat; None: the value of the recall check."""
    exact: bool = False
    """Compare every frame in scope instead of asking the index."""

    def __post_init__(self) -> None:
        check_range(self.k, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TermShown:
    """A term of a mix: one of text, image and like, and its weight."""

    __pydantic_config__ = DOCUMENTED

    text: Given[str] = None
    image: Given[str] = None
    like: Given[Moment] = None
    weight: float
    truncated: Given[bool] = None
    """True if the text has more tokens than the model reads."""
    tokens: Given[int] = None
    """How many, if it has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceShown:
    """Texts of moments that follow each other."""

    __pydantic_config__ = DOCUMENTED

    texts: tuple[str, ...]
    within_seconds: float
    """Longest time from one moment to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryShown:
    """A query as it was interpreted; unused fields are None, and absent from its JSON."""

    __pydantic_config__ = DOCUMENTED

    text: Given[str] = None
    image: Given[str] = None
    like: Given[Moment] = None
    """The stored frame that was the query."""
    clip: Given[str] = None
    clip_frames: Given[int] = None
    """How many frames of the clip were sampled."""
    picture: Given[str] = None
    """Over HTTP: the id of the picture, for another search by it."""
    vector: Given[str] = None
    """What the vector that was the query is of: ``picture`` or ``text``."""
    truncated: Given[bool] = None
    """True if the text has more tokens than the model reads (64 of SigLIP's)."""
    tokens: Given[int] = None
    """How many, if it has more."""
    mix: Given[tuple[TermShown, ...]] = None
    sequence: Given[SequenceShown] = None
    k: Given[int] = None
    filter: Given[SearchFilter] = None
    offset: Given[int] = None

    @property
    def rates_text(self) -> bool:
        """Return whether probabilities mean something: the model was trained for texts alone."""
        mixed = any(term.text is not None for term in self.mix or ())
        in_words = self.text is not None or self.vector == "text" or self.sequence is not None
        return in_words or mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The answer of an index beside that of an exact search over everything in scope."""

    __pydantic_config__ = DOCUMENTED

    complete: bool
    """Whether the index missed nothing."""
    recall: Rounded6
    """Share of the exact hits that the index found."""
    missed: tuple[Hit, ...]
    """Hits of the exact search that the index missed."""
    index_seconds: Rounded6
    exact_seconds: Rounded6


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """Whether an answer is still the one that was pinned."""

    __pydantic_config__ = DOCUMENTED

    same: bool
    reason: Given[str] = None
    """What has changed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The result of one query, best hit first."""

    query: QueryShown
    model: str
    """Name of the model whose vectors were searched."""
    hits: tuple[Hit, ...] = ()
    """Empty if no moment is probable enough."""
    proof: Given[Proof] = None
    """What the index missed, if that was asked."""
    pin: Given[str] = None
    """Names the state of the index, if that was asked: search again with it."""
    reproduced: Given[Reproduction] = None
    """Whether the answer is that of the pin that was given."""
