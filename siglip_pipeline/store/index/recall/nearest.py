"""Keep the nearest frames of each query while blocks of frames are compared in threads.

Shapes: Q queries, K kept of each, R rows of a block of frames, N new ones of them that are nearer.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import FloatArray

THREADS = 2
"""While one waits for the database, the other computes; a third would wait as well."""

T = TypeVar("T")


class Nearest:
    """The K nearest frames of each query so far, in any order. Threads may add to it."""

    def __init__(self, distances_QK: FloatArray, videos_QK: NDArray[np.int32]) -> None:
        self._distances_QK, self._videos_QK = distances_QK, videos_QK
        self._merging = threading.Lock()

    def add(self, distances_QR: FloatArray, video_id_R: NDArray[np.int64]) -> None:
        """Add the frames of a block that are nearer to a query than what is known.

        After the first blocks these are few, and only they are sorted.
        """
        # Another thread may replace what is known meanwhile: then a few too many are merged.
        farthest_Q1 = self._distances_QK.max(axis=1, keepdims=True)
        nearer_N = np.flatnonzero(distances_QR < farthest_Q1)
        if not len(nearer_N):
            return
        query_N, row_N = np.divmod(nearer_N, distances_QR.shape[1])
        count_Q = np.bincount(query_N, minlength=len(distances_QR))
        some_Q = np.flatnonzero(count_Q)
        place_N = np.arange(len(query_N)) - np.repeat(np.cumsum(count_Q) - count_Q, count_Q)
        line_N = np.repeat(np.arange(len(some_Q)), count_Q[some_Q])
        fresh_distances = np.full((len(some_Q), count_Q.max()), np.inf, np.float32)
        fresh_distances[line_N, place_N] = distances_QR.take(nearer_N)
        fresh_videos = np.zeros(fresh_distances.shape, np.int32)
        fresh_videos[line_N, place_N] = video_id_R[row_N]
        with self._merging:
            self._merge(some_Q, fresh_distances, fresh_videos)

    def _merge(
        self, some_Q: NDArray[np.int64], distances: FloatArray, videos: NDArray[np.int32]
    ) -> None:
        """Keep the K nearest for some queries, in new arrays: another thread reads the old ones."""
        depth = self._distances_QK.shape[1]
        both_distances = np.concatenate([self._distances_QK[some_Q], distances], axis=1)
        both_videos = np.concatenate([self._videos_QK[some_Q], videos], axis=1)
        picked = np.argpartition(both_distances, depth - 1, axis=1)[:, :depth]
        distances_QK, videos_QK = self._distances_QK.copy(), self._videos_QK.copy()
        distances_QK[some_Q] = np.take_along_axis(both_distances, picked, axis=1)
        videos_QK[some_Q] = np.take_along_axis(both_videos, picked, axis=1)
        self._distances_QK, self._videos_QK = distances_QK, videos_QK

    def ascending(self) -> tuple[FloatArray, NDArray[np.int32]]:
        """Return the distances and the videos, nearest first."""
        order_QK = np.argsort(self._distances_QK, axis=1)
        return (
            np.take_along_axis(self._distances_QK, order_QK, axis=1),
            np.take_along_axis(self._videos_QK, order_QK, axis=1),
        )


def use_in_threads(items: Iterator[T], use: Callable[[T], None]) -> None:
    """Call ``use`` with each item, in threads: while one makes the next item, another uses its own.

    The first error ends all of them.
    """
    making = threading.Lock()
    ended = threading.Event()

    def work() -> None:
        try:
            while not ended.is_set():
                with making:
                    item = next(items, None)
                if item is None:
                    return
                use(item)
        finally:
            ended.set()

    with ThreadPoolExecutor(THREADS, "recall-truth") as pool:
        try:
            for worker in [pool.submit(work) for _ in range(THREADS)]:
                worker.result()
        finally:
            ended.set()
