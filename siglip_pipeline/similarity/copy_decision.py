"""Whether what two videos share makes them copies of each other.

Shapes: N frames of a video.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from siglip_pipeline.records import FloatArray, IntArray
from siglip_pipeline.similarity.alignment import MIN_DIFFERENT, Segment

COVERED = 0.5
"""A copy: the shared stretches are at least this share of what the shorter video shows."""
COVERED_STILL = 0.8
"""… of both videos, where so few frames differ that their order proves nothing."""
STILL_COSINE = 0.97
"""… and their frames are at least as alike as this."""
COMMON = 10
"""A stretch whose frames are in more videos than this is no news: a station's ident, an intro."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Substance:
    """What a video shows, as far as telling copies goes."""

    length_seconds: float
    weights_N: FloatArray
    """1 over the number of frames like it: they add up to the different ones."""
    spread_N: FloatArray
    """In how many other videos there is a frame like it; at least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A stretch that is worth telling."""

    segment: Segment
    duplicate: bool
    covered: float


def judge(
    a: Substance, b: Substance, segments: Sequence[Segment], weak: Sequence[Segment] = ()
) -> Iterator[Judged]:
    """What two videos share, and whether that makes them copies.

    Args:
        a: the first video.
        b: the second one.
        segments: stretches that they share.
        weak: stretches of weaker matches, which count only where they make the videos copies.
    """
    duplicate, covered = _copies(a, b, segments)
    if weak and not duplicate:
        weakly, covered_weakly = _copies(a, b, weak)
        if weakly:
            segments, duplicate, covered = weak, True, covered_weakly
    for segment in segments:
        common = float(np.mean(a.spread_N[segment.rows])) > COMMON
        # One frame is a coincidence, however much of a video it is.
        if len(segment.rows) > 1 and (
            duplicate or (segment.different >= MIN_DIFFERENT and not common)
        ):
            yield Judged(segment=segment, duplicate=duplicate, covered=covered)


def _copies(a: Substance, b: Substance, segments: Sequence[Segment]) -> tuple[bool, float]:
    """Whether these make two videos copies, and how much of the shorter one they hold."""
    # A frame that stands still, or that many videos have, says little about what a video shows.
    share_a = _share(a, [segment.rows for segment in segments])
    share_b = _share(b, [segment.columns for segment in segments])
    covered = share_a if a.length_seconds <= b.length_seconds else share_b
    if max((segment.different for segment in segments), default=0.0) >= MIN_DIFFERENT:
        return covered >= COVERED, covered
    return _same_still(segments) and min(share_a, share_b) >= COVERED_STILL, covered


def _same_still(segments: Sequence[Segment]) -> bool:
    return min((segment.cosine for segment in segments), default=0.0) >= STILL_COSINE


def _share(video: Substance, parts: Sequence[IntArray]) -> float:
    weight_N = video.weights_N / video.spread_N
    inside = np.zeros(len(weight_N), bool)
    for part in parts:
        # Frames between two that match are in the stretch too.
        inside[part.min() : part.max() + 1] = True
    return float(weight_N[inside].sum() / weight_N.sum())
