"""Decide whether two videos are copies of each other, from the segments that they share.

Shapes: N frames of a video.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from siglip_pipeline.records import FloatArray, IntArray
from siglip_pipeline.similarity.alignment import MIN_DIFFERENT, Segment

COVERED = 0.5
"""A copy: shared segments hold at least this share of the frame weights of the shorter video."""
COVERED_STILL = 0.8
"""… or this share of both videos, where too few frames differ for their order to prove it."""
STILL_COSINE = 0.97
"""… and the mean cosine of these frames is at least this."""
COMMON = 10
"""Omit a segment whose frames are in more videos than this: a station ident, an intro."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameWeights:
    """How much each frame of a video counts in the copy decision."""

    length_seconds: float
    weights_N: FloatArray
    """1 over the number of similar frames: the sum is the number of different frames."""
    spread_N: FloatArray
    """The number of other videos with a similar frame; at least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedSegment:
    """A shared segment to publish, with the copy decision about its two videos."""

    segment: Segment
    duplicate: bool
    covered: float
    """Share of the frame weights of the shorter video that the segments hold."""


def decide_copies(
    a: FrameWeights, b: FrameWeights, segments: Sequence[Segment], weak: Sequence[Segment] = ()
) -> Iterator[DecidedSegment]:
    """Decide whether two videos are copies, and select the segments to publish.

    Args:
        a: the first video.
        b: the second video.
        segments: segments that they share.
        weak: segments of weaker matches, used only if they show that the videos are copies.

    Yields:
        All segments of copies; of other videos those that are neither short nor common.
    """
    duplicate, covered = _copies(a, b, segments)
    if weak and not duplicate:
        weakly, covered_weakly = _copies(a, b, weak)
        if weakly:
            segments, duplicate, covered = weak, True, covered_weakly
    for segment in segments:
        common = float(np.mean(a.spread_N[segment.rows])) > COMMON
        # A single frame is no evidence, even if it is most of a video.
        if len(segment.rows) > 1 and (
            duplicate or (segment.different >= MIN_DIFFERENT and not common)
        ):
            yield DecidedSegment(segment=segment, duplicate=duplicate, covered=covered)


def _copies(a: FrameWeights, b: FrameWeights, segments: Sequence[Segment]) -> tuple[bool, float]:
    """Return whether the videos are copies, and the share of the shorter one in the segments."""
    # Frames of a still picture, and frames that many videos have, have little weight.
    share_a = _share(a, [segment.rows for segment in segments])
    share_b = _share(b, [segment.columns for segment in segments])
    covered = share_a if a.length_seconds <= b.length_seconds else share_b
    if max((segment.different for segment in segments), default=0.0) >= MIN_DIFFERENT:
        return covered >= COVERED, covered
    return _same_still(segments) and min(share_a, share_b) >= COVERED_STILL, covered


def _same_still(segments: Sequence[Segment]) -> bool:
    return min((segment.cosine for segment in segments), default=0.0) >= STILL_COSINE


def _share(video: FrameWeights, segments: Sequence[IntArray]) -> float:
    weight_N = video.weights_N / video.spread_N
    inside = np.zeros(len(weight_N), bool)
    for frames in segments:
        # Frames between two matches are in the segment too.
        inside[frames.min() : frames.max() + 1] = True
    return float(weight_N[inside].sum() / weight_N.sum())
