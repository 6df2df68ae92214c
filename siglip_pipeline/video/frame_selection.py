"""Select the frames of a video by a sampling policy. N frames."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.sampling import Sampling, SceneSampler


def select_frames(
    sampling: Sampling,
    pts_N: IntArray,
    *,
    time_base: Fraction,
    end_pts: int,
    key_N: NDArray[np.bool_] | None = None,
) -> IntArray:
    """Return the positions, in presentation order, of the frames to sample.

    For ``scenes`` these are those of a single shot, as of an animated picture: the shots of a video
    are found while it is decoded (:mod:`.scene_sampling`).

    Args:
        pts_N: strictly increasing presentation timestamps, in units of ``time_base``.
        time_base: seconds per unit.
        end_pts: end of the last frame; samples lie in [pts_N[0], end_pts).
        key_N: which frames are key frames; needed by ``keyframes``.
    """
    if pts_N.size == 0:
        return np.empty(0, np.int64)
    if sampling.kind == "fps":
        assert sampling.rate is not None
        return _select_fps(pts_N, sampling.rate, time_base=time_base, end_pts=end_pts)
    if sampling.kind == "every":
        return np.arange(0, pts_N.size, sampling.stride, dtype=np.int64)
    if sampling.kind == "keyframes":
        if key_N is None:
            raise ValueError("keyframes sampling needs key_N")
        return np.union1d(np.flatnonzero(key_N), [0]).astype(np.int64)
    return _select_shot(pts_N, time_base=time_base)


def _select_fps(pts_N: IntArray, rate: Fraction, *, time_base: Fraction, end_pts: int) -> IntArray:
    """Return positions of the frames on screen at 0, 1/rate, 2/rate … seconds from the first frame.

    Frame i is on screen over [t_i, t_{i+1}). It is chosen if a multiple of 1/rate lies in this
    interval, that is, if ceil(t_i · rate) < ceil(t_{i+1} · rate). Integers are exact, so 29.97
    frames per second do not drift. The work depends on the number of frames, not on the timestamps.
    """
    ratio = time_base * rate
    start = int(pts_N[0])
    end = max(end_pts, int(pts_N[-1]) + 1)
    if (end - start) * ratio.numerator < 2**62:
        edges = np.append(pts_N - start, end - start)
    else:  # with Python's integers, which do not overflow
        edges = np.array([int(pts) - start for pts in pts_N] + [end - start], dtype=object)
    ticks = -((-edges * ratio.numerator) // ratio.denominator)
    return np.flatnonzero(ticks[:-1] < ticks[1:]).astype(np.int64)


def _select_shot(pts_N: IntArray, *, time_base: Fraction) -> IntArray:
    """Return the positions that :class:`SceneSampler` selects of a single shot."""
    sampler = SceneSampler[int](time_base)
    chosen: list[int] = []
    for position, pts in enumerate(pts_N.tolist()):
        chosen += sampler.add(pts, position, begins_shot=False)
    return np.array(chosen + sampler.finish(), np.int64)
