"""Answers of the API. Times are seconds; ranges are half-open."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool

from siglip_pipeline.evaluation.past_evaluations import EvaluationsDocument
from siglip_pipeline.hits import MAX_PATTERN, Hit, Proof, QueryShown, Reproduction
from siglip_pipeline.search import VideoLabels
from siglip_pipeline.search.calibrating import SHOWN, Calibration
from siglip_pipeline.similarity.similar_videos import SharedSegment
from siglip_pipeline.stages.watch_documents import WatchHitShown, WatchShown
from siglip_pipeline.store.library import Folder
from siglip_pipeline.store.videos import VideoRow, VideoState
from siglip_pipeline.text.json_form import DOCUMENTED, Given, Rounded6, describe_fields
from siglip_pipeline.web.parameters import NUMBER
from siglip_pipeline.web.query import MAX_ID
from siglip_pipeline.web.search_parameters import SearchBody

describe_fields()

_HIT: dict[str, JsonValue] = {
    "video": "holiday/beach.mp4",
    "video_id": 7,
    "time_seconds": 12.0,
    "frame_index": 300,
    "score": 0.31,
    "probability": 0.87,
    "start_seconds": 11.0,
    "end_seconds": 14.0,
    "media_time_seconds": 12.0,
    "thumbnail_url": "/api/thumbnails/7/300.jpg",
    "page_url": "/videos/7?t=12",
    "stream_url": "/api/videos/7/stream",
}


class ErrorBody(BaseModel):
    """What went wrong."""

    type: str = Field(examples=["QueryError"])
    message: str = Field(
        examples=["the query text is empty; say what to look for, e.g. 'a red car'"]
    )


class ErrorAnswer(BaseModel):
    """Every failure looks like this."""

    error: ErrorBody


@dataclass(frozen=True, slots=True, kw_only=True)
class HitAnswer(Hit):
    """A moment that answers the query, by its best frame, and where to see it."""

    __pydantic_config__ = ConfigDict(**DOCUMENTED, json_schema_extra={"examples": [_HIT]})

    thumbnail_url: str
    page_url: str
    stream_url: str

    @classmethod
    def of(cls, hit: Hit) -> "HitAnswer":
        """Return a hit with the addresses of its picture, of the player at it, and of the file."""
        return cls(
            **{name: getattr(hit, name) for name in _HIT_FIELDS},
            thumbnail_url=f"/api/thumbnails/{hit.video_id}/{hit.frame_index}.jpg",
            page_url=f"/{hit.page_path}",
            stream_url=f"/api/videos/{hit.video_id}/stream",
        )


_HIT_FIELDS = tuple(field.name for field in fields(Hit))


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchAnswer:
    """Moments, best first."""

    __pydantic_config__ = ConfigDict(
        **DOCUMENTED,
        json_schema_extra={
            "examples": [
                {
                    "query": {"text": "a red car", "k": 10},
                    "model": "google/siglip2-base-patch16-256",
                    "hits": [_HIT],
                    "next": "/api/search?q=a+red+car&k=10&offset=10",
                }
            ]
        },
    )

    query: QueryShown
    """The query as it was understood."""
    model: str
    """The model whose vectors were searched."""
    hits: tuple[HitAnswer, ...]
    next: str | None
    """Address of the next page; null at the end."""
    proof: Given[Proof] = None
    """With `prove`: what the index missed."""
    pin: Given[str] = None
    """With `permalink`: names the state of the index."""
    permalink: Given[str] = None
    """With `permalink`: the address that asks the same again and says if it changed."""
    reproduced: Given[Reproduction] = None
    """With `pin`: whether the answer is that of the pinned state."""


class BatchBody(BaseModel):
    """Several searches."""

    model_config = ConfigDict(extra="forbid")

    queries: list[SearchBody] = Field(
        min_length=1, max_length=1000, description="At most SIGLIP_HTTP_MAX_BATCH."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """The answers of several searches, in their order."""

    results: tuple[SearchAnswer, ...]


class EmbedBody(BaseModel):
    """Texts to embed."""

    model_config = ConfigDict(extra="forbid")

    texts: list[str] = Field(
        min_length=1, max_length=1000, description="At most SIGLIP_HTTP_MAX_BATCH."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedItem:
    """A text or a picture as the model sees it."""

    __pydantic_config__ = DOCUMENTED

    vector: list[float]
    """Of length 1."""
    truncated: Given[bool] = None
    """True if the text has more tokens than the model reads."""
    tokens: Given[int] = None
    """How many, if it has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedAnswer:
    """Vectors under the active model, in the order of what was sent."""

    __pydantic_config__ = DOCUMENTED

    model: str
    model_key: str
    """Vectors of another key cannot be compared with these."""
    dimensions: int
    items: tuple[EmbeddedItem, ...]


class VideoAnswer(BaseModel):
    """A video, and how far it has come."""

    video_id: int
    video: str = Field(description="Path below the uploads.", examples=["holiday/beach.mp4"])
    state: VideoState
    stage: str | None = Field(description="The stage that failed.")
    reason: str | None = Field(description="Why it failed.")
    duration_seconds: float | None
    frames: int | None = Field(description="Stored frames.")
    sampling: str | None = Field(examples=["fps:1"])
    size_bytes: int | None
    modified_at: datetime | None
    warnings: list[str] = Field(
        description="What is not as the file shows it: footage left out, colours approximated.",
        examples=[["a second video track is left out"]],
    )
    media_offset_seconds: float = Field(
        description="What a player's clock shows at the first frame: add it to other times."
    )

    @classmethod
    def of(cls, row: VideoRow) -> "VideoAnswer":
        """Return the public part of a row."""
        return cls(**{name: getattr(row, name) for name in VideoAnswer.model_fields})


class VideosAnswer(BaseModel):
    """A page of videos, by path."""

    videos: list[VideoAnswer]
    total: int
    next: str | None = Field(examples=["/api/videos?limit=50&offset=50"])


class FoldersAnswer(BaseModel):
    """Folders by name."""

    folders: tuple[Folder, ...]
    next: str | None = Field(description="Address of the next page; null at the end.")


class PlayableAnswer(BaseModel):
    """How far the conversion of a whole video has come."""

    state: Literal["absent", "making", "ready", "failed"]
    share: float = Field(description="How much is done, 0 to 1.")
    reason: str | None = Field(description="Why it failed, or why it has no sound.")
    url: str | None = Field(description="Of the file, once it is ready.")


class FrameAnswer(BaseModel):
    """A stored frame."""

    frame_index: int
    time_seconds: float
    media_time_seconds: float = Field(description="What a player's clock shows there.")
    thumbnail_url: str
    vector: Given[list[float]] = Field(
        None, description="Of the active model, with `include=vector`."
    )


class FramesAnswer(BaseModel):
    """Stored frames in order of time."""

    frames: list[FrameAnswer]
    total: int = Field(description="Stored frames in this range, returned or not.")
    next: str | None = Field(description="With `offset`: address of the frames that follow.")


class MomentAnswer(BaseModel):
    """Frames in a row that belong together."""

    start_seconds: float
    end_seconds: float


class VideoDetailAnswer(VideoAnswer):
    """A video with what a player shows of it."""

    info: dict[str, Any] | None = Field(description="What the container says.")
    stream_url: str
    timeline: list[FrameAnswer] = Field(description="Stored frames, evenly spaced.")
    moments: list[MomentAnswer]


class DuplicatesAnswer(BaseModel):
    """Stretches that videos share, copies first."""

    segments: tuple[SharedSegment, ...]
    next: str | None = Field(examples=["/api/duplicates?limit=50&offset=50"])


class WatchesAnswer(BaseModel):
    """Standing queries, by name."""

    watches: tuple[WatchShown, ...]
    total: int = Field(description="Watches in all pages.")
    next: str | None = Field(description="Address of the next page; null at the end.")


class WatchHitsAnswer(BaseModel):
    """Moments that a standing query found, newest first."""

    hits: tuple[WatchHitShown, ...]
    total: int = Field(description="Hits in all pages.")
    next: str | None = Field(description="Address of the next page; null at the end.")


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchMomentsAnswer:
    """The moments that a calibration asks about, best first."""

    watch: WatchShown
    moments: tuple[HitAnswer, ...]


class AnswerBody(BaseModel):
    """Whether a moment fits a standing query."""

    model_config = ConfigDict(extra="forbid")

    video: str = Field(max_length=MAX_PATTERN, examples=["gate/one.mp4"])
    frame_index: Annotated[int, Field(ge=0, le=MAX_ID, examples=[300]), NUMBER]
    fits: StrictBool


class CalibrationBody(BaseModel):
    """Answers about moments that the same address lists."""

    model_config = ConfigDict(extra="forbid")

    answers: list[AnswerBody] = Field(min_length=1, max_length=SHOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationAnswer(Calibration):
    """The threshold that answers ask for; it is not set."""

    __pydantic_config__ = DOCUMENTED

    command: str
    """Sets this threshold by the same answers, in a shell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationsAnswer(EvaluationsDocument):
    """Earlier evaluations of judged queries, newest first."""

    __pydantic_config__ = DOCUMENTED

    next: str | None
    """Address of the next page; null at the end."""


class SignBody(BaseModel):
    """Addresses to sign."""

    model_config = ConfigDict(extra="forbid")

    urls: list[str] = Field(
        min_length=1,
        max_length=1000,
        description="Of pictures and videos, as answers name them.",
        examples=[["/api/thumbnails/7/300.jpg?width=320"]],
    )
    seconds: Annotated[
        float, Field(gt=0, le=7 * 86_400, description="How long they hold."), NUMBER
    ] = 3600


class SignAnswer(BaseModel):
    """Signed addresses, in the order of those that were sent."""

    urls: list[str]


class HealthAnswer(BaseModel):
    """The process answers."""

    status: str = Field(examples=["ok"])


class LabelsAnswer(BaseModel):
    """Labels over some videos, by path."""

    model: str
    labels: dict[str, Rounded6] = Field(
        description="Share of all judged frames that have each label.",
        examples=[{"a red car": 0.12, "a bridge": 0.4}],
    )
    videos: tuple[VideoLabels, ...]
    total: int = Field(description="Videos in all pages.")
    next: str | None = Field(description="Address of the next page; null at the end.")


FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The query makes no sense"},
    401: {"model": ErrorAnswer, "description": "A key is needed"},
    409: {"model": ErrorAnswer, "description": "Nothing is indexed yet"},
    422: {"model": ErrorAnswer, "description": "A parameter cannot be used"},
    429: {"model": ErrorAnswer, "description": "Too many requests; see Retry-After"},
    503: {"model": ErrorAnswer, "description": "The database does not answer; see Retry-After"},
}
