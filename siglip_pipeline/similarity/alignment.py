"""Find the segments that two videos share: similar frames in the same order.

Frames of one video are matched with frames of the other by cosine. Matches of a copied segment lie
on a line ``t_b = speed * t_a + offset``; all others are scattered, or fill a block where both
pictures are still. So matches vote for speeds and offsets, the line with the most votes is fitted
robustly, and its support is the number of *different* frames on it: a black opening counts as one
frame however long it is.

Copies have been found by voting on offsets since Law-To et al., "Video Copy Detection: a
Comparative Study" (CIVR 2007); the number of different frames is the similarity-sensitive diversity
of Leinster and Cobbold, "Measuring diversity" (Ecology 93, 2012), of order 0.

Shapes: A and B frames of the two videos, N matches, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import FloatArray, IntArray, SecondsArray

MATCH_COSINE = 0.94
"""Cosine from which two frames may be the same picture. Re-encoded copies are above 0.97."""
MIN_DIFFERENT = 2.0
"""A segment with fewer different frames proves nothing: still pictures resemble each other."""
WEAK_COSINE = 0.88
"""Cosine from which two frames may be the same picture cropped, if enough of them line up."""
WEAK_DIFFERENT = 3.0
"""The least number of different frames in a segment of such weak matches."""
WEAK_DENSITY = 0.75
"""The least share of its frames with a match: short runs occur in any order of scenes."""
SPEEDS = (1.0, 2 / 3, 3 / 4, 4 / 5, 5 / 4, 4 / 3, 3 / 2, 1 / 2, 2.0)
MAX_SEGMENTS = 8
_MATCHES_PER_FRAME = 8
_SHARPNESS = 0.01
"""A match whose cosine is this much below the best of its frames has the weight 1/e."""
_CLEARLY = 1.2
"""Ratio from which a distance is clearly larger than another; Lowe's ratio test has 1 / 0.8."""
_ROUNDING = 5e-4
"""The largest error of a cosine in half precision."""
_MAX_GAP_STEPS = 3.5
_FIT_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """The frames of one video, in time order."""

    time_seconds_N: SecondsArray
    embeddings_ND: FloatArray

    @property
    def step_seconds(self) -> float:
        """Return the mean time between frames."""
        if len(self.time_seconds_N) < 2:
            return 1.0
        span = float(self.time_seconds_N[-1] - self.time_seconds_N[0])
        return max(span / (len(self.time_seconds_N) - 1), 1e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Pairs of similar frames."""

    row_N: IntArray
    """Frame of the first video."""
    column_N: IntArray
    """Frame of the second video."""
    cosine_N: FloatArray

    def __len__(self) -> int:
        return len(self.row_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment that two videos share."""

    rows: IntArray
    """Its frames in the first video, as rows of :class:`Footage`."""
    columns: IntArray
    """The frames of the second video that match them."""
    start_a: float
    end_a: float
    start_b: float
    end_b: float
    speed: float
    """Seconds of the second video per second of the first."""
    cosine: float
    """Mean cosine of the matched frames."""
    different: float
    """The number of different frames; 1 for a still picture."""


def find_matches(a: Footage, b: Footage, *, min_cosine: float = MATCH_COSINE) -> Matches:
    """Return the best pairs of each frame, with a cosine of at least ``min_cosine``."""
    cosine_AB = a.embeddings_ND @ b.embeddings_ND.T
    strong_AB = cosine_AB >= min_cosine
    if strong_AB.any():
        strong_AB &= _among_best(cosine_AB) | _among_best(cosine_AB.T).T
    rows, columns = np.nonzero(strong_AB)
    return Matches(row_N=rows, column_N=columns, cosine_N=cosine_AB[rows, columns])


def _among_best(cosine_AB: FloatArray) -> NDArray[np.bool_]:
    """Return which columns are among the best of their row, bool [A, B]."""
    if cosine_AB.shape[1] <= _MATCHES_PER_FRAME:
        return np.ones(cosine_AB.shape, bool)
    floor_A = np.partition(cosine_AB, -_MATCHES_PER_FRAME, axis=1)[:, -_MATCHES_PER_FRAME]
    result: NDArray[np.bool_] = cosine_AB >= floor_A[:, None]
    return result


def difference_weights(embeddings_ND: FloatArray, min_cosine: float = MATCH_COSINE) -> FloatArray:
    """Return for each frame 1 over the number of similar frames, float32 [N].

    The sum is the number of different frames.

    Args:
        embeddings_ND: unit vectors.
        min_cosine: cosine from which two frames are the same picture.
    """
    similar_NN = embeddings_ND @ embeddings_ND.T >= min_cosine
    np.fill_diagonal(similar_NN, val=True)
    weights: FloatArray = (1 / similar_NN.sum(axis=1)).astype(np.float32)
    return weights


def shared_segments(a: Footage, b: Footage, matches: Matches) -> list[Segment]:
    """Return the segments that two videos share, the one with the most different frames first.

    No frame is in two of them. The first segment may be of any quality; the others have at least
    :data:`MIN_DIFFERENT` different frames.
    """
    segments: list[Segment] = []
    left_N = np.ones(len(matches), bool)
    while left_N.any() and len(segments) < MAX_SEGMENTS:
        segment = _best_segment(a, b, matches, left_N)
        if segment is None or (segments and segment.different < MIN_DIFFERENT):
            break
        segments.append(segment)
        left_N &= ~np.isin(matches.row_N, segment.rows)
        left_N &= ~np.isin(matches.column_N, segment.columns)
    return sorted(segments, key=lambda segment: (-segment.different, segment.start_a))


def weakly_shared_segments(a: Footage, b: Footage) -> list[Segment]:
    """Return shared segments of matches from :data:`WEAK_COSINE` on, which must be longer."""
    segments = shared_segments(a, b, find_matches(a, b, min_cosine=WEAK_COSINE))
    return [
        segment
        for segment in segments
        if segment.different >= WEAK_DIFFERENT
        and min(_density(segment.rows), _density(segment.columns)) >= WEAK_DENSITY
    ]


def _density(frames: IntArray) -> float:
    return len(frames) / float(frames.max() - frames.min() + 1)


def _best_segment(
    a: Footage, b: Footage, matches: Matches, left_N: NDArray[np.bool_]
) -> Segment | None:
    rows, columns = matches.row_N[left_N], matches.column_N[left_N]
    cosines = matches.cosine_N[left_N]
    time_a, time_b = a.time_seconds_N[rows], b.time_seconds_N[columns]
    weights = _match_weights(rows, columns, cosines)
    possible = _support(rows, columns, weights, np.ones(len(rows), bool))
    speed, offset = _vote(a, b, rows, columns, weights, possible)
    voted = speed
    support = _support(rows, columns, weights, _near(a, b, time_a, time_b, speed, offset))
    for _ in range(_FIT_ROUNDS):
        if support >= possible:
            break
        near = _near(a, b, time_a, time_b, speed, offset)
        fitted = _fit(time_a[near], time_b[near], weights[near], voted)
        if fitted is None:
            break
        # Matches of a still picture fill a block, on which any line fits.
        better = _support(rows, columns, weights, _near(a, b, time_a, time_b, *fitted))
        if better <= support:
            break
        (speed, offset), support = fitted, better
    miss = np.abs(time_b - speed * time_a - offset)
    chain = _one_to_one(rows, columns, miss, _tolerance(a, b, speed))
    if not len(chain):
        return None
    runs = _runs(a, b, rows[chain], columns[chain])
    made = [
        _segment(a, b, rows[chain[r]], columns[chain[r]], cosines[chain[r]], speed) for r in runs
    ]
    # The first of equals: runs are in the order of time.
    return max(made, key=lambda segment: (segment.different, len(segment.rows)))


def _match_weights(rows: IntArray, columns: IntArray, cosines: FloatArray) -> SecondsArray:
    """Return a weight per match: 1 for the best of both its frames, falling off exponentially."""
    best_row = np.full(rows.max() + 1, -1.0)
    best_column = np.full(columns.max() + 1, -1.0)
    np.maximum.at(best_row, rows, cosines)
    np.maximum.at(best_column, columns, cosines)
    behind = np.maximum(best_row[rows], best_column[columns]) - cosines
    weights: SecondsArray = np.exp(-behind / _SHARPNESS)
    return weights


def _vote(
    a: Footage,
    b: Footage,
    rows: IntArray,
    columns: IntArray,
    weights: SecondsArray,
    possible: float,
) -> tuple[float, float]:
    """Return the speed and offset with the most votes; among equals, the original speed.

    Once a line has the support of all matches, ``possible``, no other is tried.
    """
    time_a, time_b = a.time_seconds_N[rows], b.time_seconds_N[columns]
    step = max(a.step_seconds, b.step_seconds)
    most, line = -1.0, (1.0, 0.0)
    for speed in SPEEDS:
        offsets = time_b - speed * time_a
        # The bins overlap by half, so that an offset on an edge loses no votes.
        bins = np.floor(offsets / (step / 2)).astype(np.int64)
        bins -= bins.min()
        votes = np.bincount(bins, weights, minlength=int(bins.max()) + 2)
        top = int(np.argmax(votes[:-1] + votes[1:]))
        inside = (bins == top) | (bins == top + 1)
        offset = float(np.average(offsets[inside], weights=weights[inside]))
        near = _near(a, b, time_a, time_b, speed, offset)
        support = _support(rows, columns, weights, near)
        if support > most + 1e-9:
            most, line = support, (speed, offset)
        if most + 1e-9 >= possible:
            break
    return line


def _near(
    a: Footage,
    b: Footage,
    time_a: SecondsArray,
    time_b: SecondsArray,
    speed: float,
    offset: float,
) -> NDArray[np.bool_]:
    """Return which matches lie within a step of the line, bool [N]."""
    result: NDArray[np.bool_] = np.abs(time_b - speed * time_a - offset) <= _tolerance(a, b, speed)
    return result


def _support(
    rows: IntArray, columns: IntArray, weights: SecondsArray, near: NDArray[np.bool_]
) -> float:
    """Return the weight of the matches on a line; each frame of either video counts once."""
    total = []
    for frames in (rows, columns):
        best = np.zeros(int(frames.max()) + 1)
        np.maximum.at(best, frames[near], weights[near])
        total.append(float(best.sum()))
    return min(total)


def _tolerance(a: Footage, b: Footage, speed: float) -> float:
    """Return the largest distance from the line in seconds: sampling is off by up to a step."""
    return 1.01 * max(speed * a.step_seconds, b.step_seconds)


def _fit(
    time_a: SecondsArray, time_b: SecondsArray, weights: SecondsArray, speed: float
) -> tuple[float, float] | None:
    """Fit a line by weighted least squares with Huber's weights; None if frames are too few."""
    if len(np.unique(time_a)) < 4 or len(np.unique(time_b)) < 4:
        return None
    w = weights.copy()
    for _ in range(_FIT_ROUNDS):
        mean_a, mean_b = np.average(time_a, weights=w), np.average(time_b, weights=w)
        spread = float(np.sum(w * (time_a - mean_a) ** 2))
        if spread <= 0:
            return None
        slope = float(np.sum(w * (time_a - mean_a) * (time_b - mean_b)) / spread)
        offset = float(mean_b - slope * mean_a)
        miss = np.abs(time_b - slope * time_a - offset)
        scale = max(float(np.median(miss)), 1e-3)
        w = weights * np.minimum(1, 1.345 * scale / np.maximum(miss, 1e-9))
    # A fit over a few seconds must stay close to the voted speed.
    return (slope, offset) if 0.8 * speed <= slope <= 1.25 * speed else None


def _one_to_one(
    rows: IntArray, columns: IntArray, miss: SecondsArray, tolerance: float
) -> IntArray:
    """Return the matches near the line, at most one per frame of the first video, in its order."""
    near = np.flatnonzero(miss <= tolerance)
    near = near[np.lexsort((miss[near], rows[near]))]
    first = np.unique(rows[near], return_index=True)[1]
    chosen: IntArray = near[first]
    return chosen


def _runs(a: Footage, b: Footage, rows: IntArray, columns: IntArray) -> list[IntArray]:
    """Split the chain of matches where either video has a gap without a match."""
    gap_a = np.diff(a.time_seconds_N[rows]) > _MAX_GAP_STEPS * a.step_seconds
    gap_b = np.abs(np.diff(b.time_seconds_N[columns])) > 2 * _MAX_GAP_STEPS * b.step_seconds
    return np.split(np.arange(len(rows)), np.flatnonzero(gap_a | gap_b) + 1)


def _segment(
    a: Footage,
    b: Footage,
    rows: IntArray,
    columns: IntArray,
    cosines: FloatArray,
    speed: float,
) -> Segment:
    unique_columns = np.unique(columns)
    cosine = min(1.0, float(np.mean(cosines)))  # more in half precision
    # Frames differ if they are clearly further apart than a copy is from its original.
    min_cosine = 1 - max(_CLEARLY * (1 - cosine), _ROUNDING)
    different = min(
        float(difference_weights(a.embeddings_ND[rows], min_cosine).sum()),
        float(difference_weights(b.embeddings_ND[unique_columns], min_cosine).sum()),
    )
    return Segment(
        rows=rows,
        columns=unique_columns,
        start_a=float(a.time_seconds_N[rows[0]]),
        end_a=float(a.time_seconds_N[rows[-1]]) + a.step_seconds,
        start_b=float(b.time_seconds_N[unique_columns[0]]),
        end_b=float(b.time_seconds_N[unique_columns[-1]]) + b.step_seconds,
        speed=speed,
        cosine=cosine,
        different=different,
    )
