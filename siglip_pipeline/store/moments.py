"""Moments: runs of consecutive similar frames.

Neighbouring frames of a video are nearly equal. An index over the mean vector of each moment is a
fraction of the size of one over frames, and has a higher recall; see docs/indexes.md.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import FloatArray, IntArray, SecondsArray

# Without a limit an hour of a static camera is one moment: too coarse a hit, too long to rerank.
MAX_FRAMES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """The moments of one video, in time order. M moments; ``[start, end)`` tile the video."""

    start_row_M: IntArray
    """Row of the moment's first frame in the arrays that it was cut from."""
    first_frame_M: IntArray
    last_frame_M: IntArray
    """Frame index of the last frame, inclusive."""
    start_seconds_M: SecondsArray
    end_seconds_M: SecondsArray
    means_MD: FloatArray
    """Unit vectors in the direction of the mean of the moment's frames."""

    frames: int
    """Number of frames in all moments."""

    def __len__(self) -> int:
        return len(self.start_row_M)


def cut_moments(
    embeddings_ND: FloatArray,
    frame_index_N: IntArray,
    time_seconds_N: SecondsArray,
    *,
    threshold: float,
    max_frames: int = MAX_FRAMES,
) -> Moments:
    """Cut a video into moments, greedily in time order.

    A frame starts a new moment when its cosine to the mean of the current one falls below
    ``threshold``, or when the current one has ``max_frames`` frames.

    Args:
        embeddings_ND: unit vectors in time order.
        frame_index_N: ascending.
        time_seconds_N: ascending.
        threshold: cosine in (0, 1).
        max_frames: at least 1.
    """
    n = len(frame_index_N)
    if n == 0:
        return _no_moments(embeddings_ND.shape[1])
    starts = _cuts(embeddings_ND, threshold, max_frames)
    ends = np.append(starts[1:], n)
    sums_MD = np.add.reduceat(embeddings_ND.astype(np.float32, copy=False), starts, axis=0)
    norms_M1 = np.linalg.norm(sums_MD, axis=1, keepdims=True)
    # The last frame lasts as long as the median frame.
    step = float(np.median(np.diff(time_seconds_N))) if n > 1 else 1.0
    return Moments(
        start_row_M=starts,
        first_frame_M=frame_index_N[starts],
        last_frame_M=frame_index_N[ends - 1],
        start_seconds_M=time_seconds_N[starts],
        end_seconds_M=np.append(time_seconds_N[starts[1:]], time_seconds_N[-1] + step),
        means_MD=(sums_MD / norms_M1).astype(np.float32),
        frames=n,
    )


def _no_moments(dim: int) -> Moments:
    indexes, seconds = np.zeros(0, np.int64), np.zeros(0, np.float64)
    return Moments(
        start_row_M=indexes,
        first_frame_M=indexes,
        last_frame_M=indexes,
        start_seconds_M=seconds,
        end_seconds_M=seconds,
        means_MD=np.zeros((0, dim), np.float32),
        frames=0,
    )


def _cuts(embeddings_ND: FloatArray, threshold: float, max_frames: int) -> NDArray[np.int64]:
    """Return the rows at which a moment starts."""
    starts: list[int] = []
    total_D = np.zeros(embeddings_ND.shape[1], np.float32)
    squared = 0.0  # squared length of total_D, updated: computing it would double the cost
    length = 0
    for row, vector_D in enumerate(embeddings_ND):
        # cosine(vector, mean) = <vector, sum> / |sum|, the vector being of unit length
        projection = float(vector_D @ total_D)
        if 0 < length < max_frames and projection >= threshold * squared**0.5:
            total_D += vector_D
            squared += 2 * projection + 1
            length += 1
        else:
            starts.append(row)
            total_D[:] = vector_D
            squared = 1.0
            length = 1
    return np.asarray(starts, dtype=np.int64)
