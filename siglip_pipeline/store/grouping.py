"""Hits are runs of moments whose scores belong together.

The index cuts a video by what it looks like, whatever is asked for. What answers a query is often
several such cuts in a row: a long take that was cut at its 64th frame, or a dialogue of shot and
reverse shot. Here, the best moment takes in its neighbours as long as they score nearly as well.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_LIKELY = 1.5
"""How many peaks to look ahead for each that is wanted: some will be in the reach of others."""

MomentKey = tuple[int, int]
"""(video_id, moment): moments of a video are numbered in time order."""


class ScoredMoment(NamedTuple):
    """A moment as the index cuts it, with its best frame."""

    video: str
    video_id: int
    moment: int
    frame_index: int
    time_seconds: float
    score: float
    """Cosine similarity of the best frame with the query, in [-1, 1]."""
    start_seconds: float
    end_seconds: float

    @property
    def key(self) -> MomentKey:
        """Its place."""
        return self.video_id, self.moment

    @property
    def rank(self) -> tuple[float, str, int]:
        """Sorts best first; ties by path, then frame."""
        return -self.score, self.video, self.frame_index


class Reach(NamedTuple):
    """How far to both sides of a peak moments score nearly as well; they tile the video."""

    first: int
    """Number of the first moment."""
    last: int
    """… and of the last one, inclusive."""
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentGroup:
    """Neighbouring moments that are one answer."""

    peak: ScoredMoment
    reach: Reach
    """Of its own: without what better peaks took."""


@dataclass(slots=True)
class Grouping:
    """What could be told from the peaks whose reach is known."""

    groups: list[MomentGroup] = field(default_factory=list)
    """Best first."""
    unknown: list[ScoredMoment] = field(default_factory=list)
    """Peaks whose reach decides what comes next; the first one for certain."""
    below: bool = False
    """A moment under the least score was met: there are no better ones left."""


def group_moments(
    peaks: Iterable[ScoredMoment],
    reaches: Mapping[MomentKey, Reach],
    *,
    k: int,
    within: float,
    min_score: float = -2.0,
    max_per_video: int | None = None,
) -> Grouping:
    """The ``k`` best groups.

    From best to worst, a moment that is in no group yet is the peak of a new one. The group goes on
    to both sides over moments that are in no group, as long as each scores at least the peak's
    score less ``within``, and at least ``min_score``. So each moment is in one group, and which one
    depends on scores alone, not on the order in which an index found them.

    Args:
        peaks: moments that an index found; sorted here.
        reaches: how far each peak goes; grouping stops at the first one that is missing.
        k: at most so many groups.
        within: cosine that two scores may differ by and still belong together; negative: a group
            is one moment.
        min_score: groups whose peak scores less are left out, and no group takes such moments in.
        max_per_video: at most so many groups of one video.
    """
    result = Grouping()
    taken: dict[int, list[Reach]] = {}
    seen: dict[int, int] = {}
    likely = 0
    for peak in sorted(peaks, key=lambda moment: moment.rank):
        if len(result.groups) == k or likely >= (k - len(result.groups)) * _LIKELY:
            break
        if peak.score < min_score:
            result.below = not result.unknown
            break
        others = taken.setdefault(peak.video_id, [])
        if any(other.first <= peak.moment <= other.last for other in others):
            continue
        seen[peak.video_id] = seen.get(peak.video_id, 0) + 1
        if max_per_video is not None and seen[peak.video_id] > max_per_video:
            # Its neighbours would be too many as well, whatever group they are in.
            continue
        reach = _alone(peak) if within < 0 else reaches.get(peak.key)
        if reach is not None:
            for other in others:
                reach = _up_to(reach, peak.moment, other)
            others.append(reach)
        if reach is None or result.unknown:
            # Those that follow the first are peaks unless one whose reach is not known takes them.
            likely += 1
            result.unknown += [peak] if reach is None else []
        else:
            result.groups.append(MomentGroup(peak=peak, reach=reach))
    return result


def _alone(peak: ScoredMoment) -> Reach:
    return Reach(peak.moment, peak.moment, peak.start_seconds, peak.end_seconds)


def _up_to(reach: Reach, moment: int, other: Reach) -> Reach:
    """What is left of a reach around a moment beside what another one has taken."""
    if other.last < moment and other.last >= reach.first:
        return reach._replace(first=other.last + 1, start_seconds=other.end_seconds)
    if other.first > moment and other.first <= reach.last:
        return reach._replace(last=other.first - 1, end_seconds=other.start_seconds)
    return reach
