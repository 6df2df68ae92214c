"""The document of `status --json` and `GET /api/status`.

Fields are described in annotations: to read docstrings of fields takes 20 ms, which `status` does
without.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from siglip_pipeline.store.videos import VideoWarnings


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTotals:
    """Numbers of videos by their state."""

    total: int
    indexed: int
    failed: int
    pending: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedVideo:
    """The last failure of one stage of a video."""

    video: str
    stage: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedFile:
    """A file that cannot become a video."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfDateVideos:
    """Numbers of videos whose results were made with other settings."""

    frames: int
    vectors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """The model whose vectors are counted."""

    name: str
    key: str
    dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStatus:
    """The index that answers searches."""

    kind: str
    state: str = "ready"
    recall_at_10: float | None
    recall_queries: Annotated[
        int, Field(description="Queries of its recall check; a small collection has fewer.")
    ]
    rows: Annotated[int, Field(description="Frames that it covers.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingStatus:
    """The restrictions of processes that decode."""

    sandbox: str
    closed: Annotated[
        bool, Field(description="Whether they can reach neither files nor the network.")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTotals:
    """Numbers of standing queries and of their hits."""

    watches: int
    hits: int
    late: Annotated[int, Field(description="Hits whose message could not be sent so far.")]
    failed: Annotated[
        int, Field(description="Hits whose message could not be sent, and is not tried again.")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusDocument:
    """The state of the whole pipeline at one moment."""

    videos: VideoTotals
    failures: tuple[FailedVideo, ...]
    refused: tuple[RefusedFile, ...]
    out_of_date: OutOfDateVideos
    warnings: tuple[str, ...]
    video_warnings: Annotated[
        tuple[VideoWarnings, ...],
        Field(
            description="Videos that are indexed, but not wholly or not surely as their files "
            "show them."
        ),
    ]
    frames: int
    vectors: int
    model: ModelStatus | None
    index: IndexStatus | None
    decoding: DecodingStatus
    watches: WatchTotals
