"""Hits are runs of moments whose scores belong together.

The index cuts a video by what it looks like, whatever is asked for. What answers a query is often
several such cuts in a row: a long take that was cut at its 64th frame, or a dialogue of shot and
reverse shot. Here, the best moment takes in its neighbours as long as they score nearly as well.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

MomentKey = tuple[int, int]
"""(video_id, moment): moments of a video are numbered in time order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredMoment:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentGroup:
    """Neighbouring moments that are one answer."""

    peak: ScoredMoment
    start_seconds: float
    end_seconds: float
    moments: int
    """How many there are."""


@dataclass(slots=True)
class Grouping:
    """What could be told from the moments whose scores are known."""

    groups: list[MomentGroup] = field(default_factory=list)
    """Best first."""
    unknown: set[MomentKey] = field(default_factory=set)
    """Moments whose scores decide where a group ends."""
    below: bool = False
    """A moment under the least score was met: there are no better ones left."""


def group_moments(
    peaks: Iterable[ScoredMoment],
    known: Mapping[MomentKey, ScoredMoment | None],
    *,
    k: int,
    within: float,
    min_score: float = -2.0,
    max_per_video: int | None = None,
) -> Grouping:
    """The ``k`` best groups.

    From best to worst, a moment that is in no group yet is the peak of a new one. The group goes on
    to both sides over moments that are in no group, as long as each scores at least the peak's
    score less ``within``. So each moment is in one group, and which one depends on scores alone,
    not on the order in which an index found them.

    Args:
        peaks: moments that an index found; sorted here.
        known: the score of every moment that was looked at; None: there is none, or it is out of
            scope.
        k: at most so many groups.
        within: cosine that two scores may differ by and still belong together; negative: a group
            is one moment.
        min_score: groups whose peak scores less are left out, and no group takes such moments in.
        max_per_video: at most so many groups of one video.
    """
    result = Grouping()
    taken: set[MomentKey] = set()
    of_video: dict[int, int] = {}
    for peak in sorted(peaks, key=lambda moment: moment.rank):
        if len(result.groups) == k:
            break
        if peak.score < min_score:
            result.below = True
            break
        if peak.key in taken:
            continue
        of_video[peak.video_id] = of_video.get(peak.video_id, 0) + 1
        if max_per_video is not None and of_video[peak.video_id] > max_per_video:
            # Its neighbours would be too many as well, whatever group they are in.
            continue
        floor = max(peak.score - within, min_score)
        members = [peak]
        for step in (-1, 1) if within >= 0 else ():
            members += _reach(peak, step, known, floor, taken, result.unknown)
        taken.update(member.key for member in members)
        result.groups.append(
            MomentGroup(
                peak=peak,
                start_seconds=min(member.start_seconds for member in members),
                end_seconds=max(member.end_seconds for member in members),
                moments=len(members),
            )
        )
    return result


def _reach(
    peak: ScoredMoment,
    step: int,
    known: Mapping[MomentKey, ScoredMoment | None],
    floor: float,
    taken: Container[MomentKey],
    unknown: set[MomentKey],
) -> list[ScoredMoment]:
    """Moments to one side of the peak that belong to it."""
    members: list[ScoredMoment] = []
    moment = peak.moment + step
    while moment >= 0 and (key := (peak.video_id, moment)) not in taken:
        if key not in known:
            unknown.add(key)
            break
        found = known[key]
        if found is None or found.score < floor:
            break
        members.append(found)
        moment += step
    return members
