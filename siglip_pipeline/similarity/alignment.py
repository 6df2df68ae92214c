"""What two videos share: stretches whose frames look alike in the same order.

Frames of one video are matched with frames of another by cosine. Matches of a copied stretch lie
on a line ``t_b = speed * t_a + offset``; all others are scattered, or fill a block where both
pictures stand still. So matches vote for speeds and offsets, the line with the most votes is fitted
robustly, and what counts in its favour is the number of *different* frames on it: a black opening
counts as one frame however long it is.

Voting on offsets is how copies have been told since Law-To et al., "Video Copy Detection: a
Comparative Study" (CIVR 2007); counting by likeness is the similarity-sensitive diversity of
Leinster and Cobbold, "Measuring diversity" (Ecology 93, 2012), of order 0.

Shapes: A and B frames of the two videos, N matches, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import FloatArray, IntArray, SecondsArray

MATCH_COSINE = 0.94
"""Frames at least as alike may be the same picture. Re-encoded copies lie above 0.97."""
MIN_DIFFERENT = 2.0
"""A stretch of fewer different frames proves nothing: pictures that stand still look alike."""
WEAK_COSINE = 0.88
"""… or the same picture cropped, where more of them line up:"""
WEAK_DIFFERENT = 3.0
"""Different frames that a stretch of such weak matches has at least."""
WEAK_DENSITY = 0.75
"""Share of its frames that have a match: some in a row are found in any order of scenes."""
SPEEDS = (1.0, 2 / 3, 3 / 4, 4 / 5, 5 / 4, 4 / 3, 3 / 2, 1 / 2, 2.0)
MAX_SEGMENTS = 8
_MATCHES_PER_FRAME = 8
_SHARPNESS = 0.01
"""Cosine by which a match must stay behind the best of its frames to count for 1/e of it."""
_CLEARLY = 1.2
"""Ratio of distances from which one is clearly the larger; Lowe's ratio test is 1 / 0.8."""
_ROUNDING = 5e-4
"""What half precision does to a cosine, at the most."""
_MAX_GAP_STEPS = 3.5
_FIT_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """The frames of one video, in time order."""

    time_seconds_N: SecondsArray
    embeddings_ND: FloatArray

    @property
    def step_seconds(self) -> float:
        """The mean time between frames."""
        if len(self.time_seconds_N) < 2:
            return 1.0
        span = float(self.time_seconds_N[-1] - self.time_seconds_N[0])
        return max(span / (len(self.time_seconds_N) - 1), 1e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Pairs of frames that look alike."""

    row_N: IntArray
    """Frame of the first video."""
    column_N: IntArray
    """Frame of the second one."""
    cosine_N: FloatArray

    def __len__(self) -> int:
        return len(self.row_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch that two videos share."""

    rows: IntArray
    """Its frames in the first video."""
    columns: IntArray
    """The frames of the second one that they meet."""
    start_a: float
    end_a: float
    start_b: float
    end_b: float
    speed: float
    """Seconds of the second video that pass in a second of the first."""
    cosine: float
    """Mean over the frames that meet."""
    different: float
    """How many different frames it has, 1 for a still picture."""


def find_matches(a: Footage, b: Footage, *, alike: float = MATCH_COSINE) -> Matches:
    """Pairs of frames with a cosine of at least ``alike``, the best of each frame."""
    cosine_AB = a.embeddings_ND @ b.embeddings_ND.T
    strong_AB = cosine_AB >= alike
    if strong_AB.any():
        strong_AB &= _among_best(cosine_AB) | _among_best(cosine_AB.T).T
    rows, columns = np.nonzero(strong_AB)
    return Matches(row_N=rows, column_N=columns, cosine_N=cosine_AB[rows, columns])


def _among_best(cosine_AB: FloatArray) -> NDArray[np.bool_]:
    """Which columns are among the best of their row."""
    if cosine_AB.shape[1] <= _MATCHES_PER_FRAME:
        return np.ones(cosine_AB.shape, bool)
    floor_A = np.partition(cosine_AB, -_MATCHES_PER_FRAME, axis=1)[:, -_MATCHES_PER_FRAME]
    result: NDArray[np.bool_] = cosine_AB >= floor_A[:, None]
    return result


def difference_weights(embeddings_ND: FloatArray, alike: float = MATCH_COSINE) -> FloatArray:
    """For each frame, 1 over the number of frames like it: they add up to the different ones.

    Args:
        embeddings_ND: unit vectors.
        alike: cosine from which two frames are the same picture.
    """
    like_NN = embeddings_ND @ embeddings_ND.T >= alike
    np.fill_diagonal(like_NN, val=True)
    weights: FloatArray = (1 / like_NN.sum(axis=1)).astype(np.float32)
    return weights


def shared_segments(a: Footage, b: Footage, matches: Matches) -> list[Segment]:
    """The stretches that both videos have, the one of the most different frames first.

    A frame is in one of them at the most. A first stretch is given whatever it is worth, further
    ones only with :data:`MIN_DIFFERENT` different frames.
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
    """Stretches of matches from :data:`WEAK_COSINE` on: more must line up to prove anything."""
    segments = shared_segments(a, b, find_matches(a, b, alike=WEAK_COSINE))
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
    speed, offset = _vote(a, b, rows, columns, weights)
    voted = speed
    support = _support(rows, columns, weights, _near(a, b, time_a, time_b, speed, offset))
    for _ in range(_FIT_ROUNDS):
        near = _near(a, b, time_a, time_b, speed, offset)
        fitted = _fit(time_a[near], time_b[near], weights[near], voted)
        if fitted is None:
            break
        # Matches of a picture that stands still fill a block, along which any line fits.
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
    return max(made, key=lambda segment: (segment.different, len(segment.rows), -segment.start_a))


def _match_weights(rows: IntArray, columns: IntArray, cosines: FloatArray) -> SecondsArray:
    """Near 1 for the best match of both its frames, falling off fast behind it."""
    best_row = np.full(rows.max() + 1, -1.0)
    best_column = np.full(columns.max() + 1, -1.0)
    np.maximum.at(best_row, rows, cosines)
    np.maximum.at(best_column, columns, cosines)
    behind = np.maximum(best_row[rows], best_column[columns]) - cosines
    weights: SecondsArray = np.exp(-behind / _SHARPNESS)
    return weights


def _vote(
    a: Footage, b: Footage, rows: IntArray, columns: IntArray, weights: SecondsArray
) -> tuple[float, float]:
    """The speed and offset that most frames agree on; of equals, the natural speed."""
    time_a, time_b = a.time_seconds_N[rows], b.time_seconds_N[columns]
    step = max(a.step_seconds, b.step_seconds)
    most, line = -1.0, (1.0, 0.0)
    for speed in SPEEDS:
        offsets = time_b - speed * time_a
        # Bins that overlap by half: an offset on an edge loses no votes.
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
    return line


def _near(
    a: Footage,
    b: Footage,
    time_a: SecondsArray,
    time_b: SecondsArray,
    speed: float,
    offset: float,
) -> NDArray[np.bool_]:
    """Which matches lie on the line, to within a step."""
    result: NDArray[np.bool_] = np.abs(time_b - speed * time_a - offset) <= _tolerance(a, b, speed)
    return result


def _support(
    rows: IntArray, columns: IntArray, weights: SecondsArray, near: NDArray[np.bool_]
) -> float:
    """Weight of the matches on a line, each frame of either video counted once."""
    total = []
    for frames in (rows, columns):
        best = np.zeros(int(frames.max()) + 1)
        np.maximum.at(best, frames[near], weights[near])
        total.append(float(best.sum()))
    return min(total)


def _tolerance(a: Footage, b: Footage, speed: float) -> float:
    """Frames are taken at different times of the same footage: off by up to a step."""
    return 1.01 * max(speed * a.step_seconds, b.step_seconds)


def _fit(
    time_a: SecondsArray, time_b: SecondsArray, weights: SecondsArray, speed: float
) -> tuple[float, float] | None:
    """Weighted least squares with Huber's weights; None: too little to fit a speed on."""
    if len(np.unique(time_a)) < 4 or len(np.unique(time_b)) < 4:
        return None
    w = weights.copy()
    slope, offset = speed, float(np.average(time_b - speed * time_a, weights=w))
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
    # A fit over few seconds must not run away from what was voted for.
    return (slope, offset) if 0.8 * speed <= slope <= 1.25 * speed else None


def _one_to_one(
    rows: IntArray, columns: IntArray, miss: SecondsArray, tolerance: float
) -> IntArray:
    """Matches near the line, each frame of the first video in one at the most, in its order."""
    near = np.flatnonzero(miss <= tolerance)
    near = near[np.lexsort((miss[near], rows[near]))]
    first = np.unique(rows[near], return_index=True)[1]
    chosen: IntArray = near[first]
    return chosen


def _runs(a: Footage, b: Footage, rows: IntArray, columns: IntArray) -> list[IntArray]:
    """The chain, cut where either video goes on for a while without a match."""
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
    cosine = float(np.mean(cosines))
    # Frames are different when they are clearly further apart than a copy is from its original.
    alike = 1 - max(_CLEARLY * (1 - cosine), _ROUNDING)
    different = min(
        float(difference_weights(a.embeddings_ND[rows], alike).sum()),
        float(difference_weights(b.embeddings_ND[unique_columns], alike).sum()),
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
