"""Make one continuous time line for packets whose timestamps restart, jump back or wrap.

Concatenated recordings, captures over a reset of the clock, and DVDs hold several time lines in one
file. Their frames are placed after each other in the order of the file. A jump forward is a pause
in a recording, and stays.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import IntArray

BoolArray = NDArray[np.bool_]

UNKNOWN: Final = -(2**63)
"""FFmpeg's value for a missing timestamp."""

MAX_REORDERED: Final = 16
"""Frames that can be decoded before one that is shown earlier, in H.264 and H.265."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLine:
    """The shift of each packet's timestamps, in decoding order."""

    shift_P: IntArray
    restarts: int


def time_line(
    pts_P: IntArray, dts_P: IntArray, key_P: BoolArray, *, frame_duration: int, max_pause: int
) -> TimeLine | None:
    """Return the shifts that make the time line continuous; None if it is continuous.

    A piece begins at each key frame, and at each packet whose decoding time falls back. Frames
    decoded from a key frame on are shown after those decoded before it. So a piece that begins
    before the end of the pieces before it starts a new recording. One that begins exactly there
    repeats a time, as any frame may. Packets before the first key frame are not shown, and times of
    some are guessed wrongly by FFmpeg: they may overlap it.

    Args:
        pts_P: presentation times in decoding order; UNKNOWN if missing.
        dts_P: decoding times; UNKNOWN if missing.
        key_P: which packets are key frames.
        frame_duration: distance of a new recording from the last frame of the one before.
        max_pause: a longer pause is a jump of the clock; 0 allows any pause.
    """
    max_disorder = MAX_REORDERED * frame_duration
    starts = _pieces(pts_P, dts_P, key_P, max_disorder=max_disorder)
    last_P, first_P = pts_P, np.where(pts_P == UNKNOWN, np.iinfo(np.int64).max, pts_P)
    ends_S = np.maximum.reduceat(last_P, starts)
    begins_S = np.minimum.reduceat(first_P, starts)
    if not max_pause and (begins_S[1:] >= np.maximum.accumulate(ends_S)[:-1]).all():
        return None
    shifts, shift, restarts = [], 0, 0
    end: int | None = None
    undecodable = not key_P[0] and starts.size > 1 and bool(key_P[starts[1]])
    for number, (begin, last) in enumerate(zip(begins_S.tolist(), ends_S.tolist(), strict=True)):
        if last != UNKNOWN:  # otherwise no packet of the piece has a time
            gap = 1 if end is None else begin + shift - end
            if number == 1 and undecodable and -max_disorder <= gap < 0:
                gap, end = 1, None
            if end is not None and (gap < 0 or (max_pause and gap > max_pause)):
                shift = end + frame_duration - begin
                restarts += 1
            end = max(last + shift, last + shift if end is None else end)
        shifts.append(shift)
    if not restarts or max(map(abs, shifts)) > 2**61:
        return None
    lengths = np.diff(np.append(starts, pts_P.size))
    return TimeLine(shift_P=np.repeat(np.array(shifts, np.int64), lengths), restarts=restarts)


def _pieces(pts_P: IntArray, dts_P: IntArray, key_P: BoolArray, *, max_disorder: int) -> IntArray:
    """Return the first packets of the pieces."""
    order_P = np.where(dts_P == UNKNOWN, pts_P, dts_P)
    known = np.flatnonzero(order_P != UNKNOWN)
    falls = known[1:][order_P[known[1:]] < order_P[known[:-1]] - max_disorder]
    if key_P.all():  # frames are decoded in time order: pieces begin only where times fall back
        return np.union1d([0], falls).astype(np.int64)
    return np.union1d(np.append(np.flatnonzero(key_P), 0), falls).astype(np.int64)
