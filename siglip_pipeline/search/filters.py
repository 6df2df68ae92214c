"""What a search may return."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from siglip_pipeline.errors import QueryError
from siglip_pipeline.search.parts import check_text

MAX_WILDCARDS = 40
"""Most asterisks in a glob; the database's work grows with their square."""

MAX_PATTERN = 2000
"""Longest path or glob, in characters; no upload has a longer name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFilter:
    """Limits on the moments that a search returns; the default lets all of them through.

    ``k`` moments come back whenever ``k`` pass the filter.

    Raises:
        QueryError: a value that makes no sense.
    """

    videos: tuple[str, ...] | None = None
    """Paths below UPLOADS and globs: ``*`` and ``?`` stay within a folder, ``**`` does not, and a
    glob without ``/`` is about the file's name. None: all videos."""
    from_seconds: float | None = None
    """Moments with a frame at this time of the video or later."""
    to_seconds: float | None = None
    """… before this time."""
    uploaded_since: datetime | None = None
    """The upload was modified at this time or later; UTC where it names no zone."""
    uploaded_until: datetime | None = None
    """… before this time."""
    min_probability: float | None = None
    """Less probable moments are hidden, 0 to 1. None: what SIGLIP_SEARCH_MIN_PROBABILITY says."""
    max_per_video: int | None = None
    """At most so many moments of one video."""

    def __post_init__(self) -> None:
        if isinstance(self.videos, str):
            raise QueryError(f"videos={self.videos!r}: give a sequence of paths or globs")
        for video in self.videos or ():
            check_text(video)
            if len(video) > MAX_PATTERN:
                raise QueryError(
                    f"videos={video[:40]!r}…: {len(video)} characters, at most {MAX_PATTERN}"
                )
            if video.count("*") > MAX_WILDCARDS:
                raise QueryError(
                    f"videos={video[:40]!r}…: {video.count('*')} asterisks, at most {MAX_WILDCARDS}"
                )
        for name in ("from_seconds", "to_seconds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise QueryError(f"{name}={value}: a time within a video is 0 s or later")
        if not self._start < self._end:
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
    def _start(self) -> float:
        return 0.0 if self.from_seconds is None else self.from_seconds

    @property
    def _end(self) -> float:
        return float("inf") if self.to_seconds is None else self.to_seconds

    @property
    def time_range(self) -> tuple[float, float] | None:
        """Seconds within the video, half-open; None: all of it."""
        if self.from_seconds is None and self.to_seconds is None:
            return None
        return self._start, self._end

    def narrowed_to(self, videos: Sequence[str] | None) -> "SearchFilter":
        """The same filter on these videos; None leaves it as it is."""
        return self if videos is None else replace(self, videos=tuple(videos))

    def to_json(self) -> dict[str, Any]:
        """What is set, for the ``query`` of a result."""
        since, until = self.uploaded_since, self.uploaded_until
        document = {
            "videos": None if self.videos is None else list(self.videos),
            "from_seconds": self.from_seconds,
            "to_seconds": self.to_seconds,
            "uploaded_since": None if since is None else since.isoformat(),
            "uploaded_until": None if until is None else until.isoformat(),
            "min_probability": self.min_probability,
            "max_per_video": self.max_per_video,
        }
        return {name: value for name, value in document.items() if value is not None}


def _aware(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
