"""Standing queries and their hits as `watch … --json` and HTTP show them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from siglip_pipeline.stages.webhooks import webhook_host
from siglip_pipeline.store.watches import Delivery, Watch, WatchHit
from siglip_pipeline.text.json_form import DOCUMENTED, Given, Rounded3, Rounded6


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchShown:
    """A standing query."""

    __pydantic_config__ = DOCUMENTED

    name: str
    query: str
    min_probability: Rounded6
    """Moments that are at least as probable are hits."""
    videos: Given[tuple[str, ...]] = None
    """Paths and globs; absent: all videos."""
    webhook: Given[str] = None
    """Host of the address that hits are posted to; the rest is secret."""
    calibration: Given[dict[str, Any]] = None
    """What the last calibration found."""
    hits: int
    late: int
    """Hits whose message could not be sent so far."""
    failed: int
    """Hits whose message could not be sent, and is not tried again."""

    @classmethod
    def of(cls, watch: Watch) -> "WatchShown":
        """Return a watch without its secret."""
        return cls(
            name=watch.name,
            query=watch.query,
            min_probability=watch.min_probability,
            videos=watch.videos,
            webhook=None if watch.webhook is None else webhook_host(watch.webhook) or "…",
            calibration=watch.calibration,
            hits=watch.hits,
            late=watch.late,
            failed=watch.failed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchesDocument:
    """Standing queries, by name."""

    watches: tuple[WatchShown, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchHitShown:
    """A moment that a standing query found."""

    __pydantic_config__ = DOCUMENTED

    id: int
    watch: str
    video: str
    video_id: int
    time_seconds: Rounded3
    """Of the best frame."""
    media_time_seconds: Rounded3
    """What a player's clock shows there."""
    frame_index: int
    start_seconds: Rounded3
    end_seconds: Rounded3
    score: Rounded6
    probability: Rounded6
    model_key: str
    found_at: datetime
    delivery: Delivery
    """`none`: no webhook; `waiting`, `late`, `sent`, or `failed` for good."""
    sent_at: Given[datetime] = None
    failure: Given[str] = None
    """Why the last attempt to send it failed."""
    thumbnail_url: str
    page_url: str

    @classmethod
    def of(cls, found: WatchHit) -> "WatchHitShown":
        """Return a hit with the addresses of its picture and of the player at it."""
        hit = found.hit
        return cls(
            id=found.hit_id,
            watch=found.watch,
            video=hit.video,
            video_id=hit.video_id,
            time_seconds=hit.time_seconds,
            media_time_seconds=hit.media_time_seconds,
            frame_index=hit.frame_index,
            start_seconds=hit.start_seconds,
            end_seconds=hit.end_seconds,
            score=hit.score,
            probability=hit.probability,
            model_key=found.model_key,
            found_at=found.found_at,
            delivery=found.delivery,
            sent_at=found.sent_at,
            failure=found.failure,
            thumbnail_url=f"/api/thumbnails/{hit.video_id}/{hit.frame_index}.jpg",
            page_url=f"/{hit.page_path}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchHitsDocument:
    """Hits of a standing query, newest first."""

    hits: tuple[WatchHitShown, ...]
