"""Search exactly, and compute how much of it an index found.

One pass over the frames gives the truth for all queries and filters; over new frames alone, where
a truth of the others is known. A frame counts as found if it is as near as the last frame of the
truth, so that ties and equal frames do not lower the recall.

Shapes: Q queries, K depth of the truth, R rows of a block of frames.
"""

import contextlib
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.copy import read_vectors
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.index.recall.nearest import Nearest, use_in_threads
from siglip_pipeline.store.index.recall.queries import SEED, TIE, Query
from siglip_pipeline.store.kinds import Generation, Scope

_Block = tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]
"""Video ids, frame indexes and vectors of some frames."""

_LOADS = "SELECT video_id, ingest_id FROM ingests WHERE model_id = %s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The nearest frames of each query among those of some loads."""

    loads: dict[int, int]
    """The ``ingest_id`` of each video that was compared."""
    distances_QK: FloatArray
    """Ascending, padded with ``inf``."""
    videos_QK: NDArray[np.int32]
    """The video of each."""


def find_truth(
    connection: Connection,
    target: Generation,
    queries: Sequence[Query],
    scopes: Sequence[Scope],
    depth: int,
    *,
    known: Sequence[Truth | None] | None = None,
    stop: threading.Event | None = None,
) -> list[Truth]:
    """Return the nearest frames of each query, per scope.

    Every frame is compared with every query, in one pass; where a truth is known, only frames of
    loads that it lacks. Vectors and queries are rounded to half precision as the database rounds
    them.

    Raises:
        CancelledError: ``stop`` was set by another thread.
    """
    q = len(queries)
    rounded_QD = np.array([query.embedding_D for query in queries], dtype=np.float16)
    # Distances are negative products.
    away_QD = -rounded_QD.astype(np.float32).reshape(q, target.dim)
    loads: dict[int, int] = dict(connection.execute(_LOADS, [target.model_id]).fetchall())
    inside = [_inside(scope, loads) for scope in scopes]
    truths = [
        _still_true(before, now, (q, depth))
        for before, now in zip(known or [None] * len(scopes), inside, strict=True)
    ]
    fresh = [
        np.array([*now.keys() - truth.loads.keys()], np.int64)
        for now, truth in zip(inside, truths, strict=True)
    ]
    best = [Nearest(truth.distances_QK, truth.videos_QK) for truth in truths]
    held = {int(_keys(*query.held_out)): i for i, query in enumerate(queries) if query.held_out}

    def compare(block: _Block) -> None:
        video_id_R, frame_index_R, vectors_RD = block
        distances_QR = away_QD @ vectors_RD.T
        keys_R = _keys(video_id_R, frame_index_R)
        for row in np.flatnonzero(np.isin(keys_R, list(held))):
            distances_QR[held[int(keys_R[row])], row] = np.inf
        for nearest, wanted in zip(best, fresh, strict=True):
            inside_R = np.isin(video_id_R, wanted)
            if inside_R.all():
                nearest.add(distances_QR, video_id_R)
            elif inside_R.any():
                nearest.add(np.compress(inside_R, distances_QR, axis=1), video_id_R[inside_R])

    blocks = _frames(connection, target, fresh, len(loads), stop)
    # Threads of BLAS spin while they wait for each other, and here are threads already.
    with contextlib.closing(blocks), threadpool_limits(1, "blas"):
        use_in_threads(blocks, compare)
    return [
        Truth(loads=now, distances_QK=distances_QK, videos_QK=videos_QK)
        for now, (distances_QK, videos_QK) in zip(
            inside, (nearest.ascending() for nearest in best), strict=True
        )
    ]


def _inside(scope: Scope, loads: dict[int, int]) -> dict[int, int]:
    """Return the loads of the videos in a scope."""
    if scope.video_ids is None:
        return loads
    return {video_id: loads[video_id] for video_id in scope.video_ids if video_id in loads}


def _still_true(before: Truth | None, loads: dict[int, int], shape: tuple[int, int]) -> Truth:
    """Return what is known of some loads: nothing if a frame that was found is gone."""
    if before is not None and before.distances_QK.shape == shape:
        same = {video: load for video, load in before.loads.items() if loads.get(video) == load}
        found_QK = np.isfinite(before.distances_QK)
        if np.isin(before.videos_QK[found_QK], list(same)).all():
            return replace(before, loads=same)
    nothing_QK = np.full(shape, np.inf, np.float32)
    return Truth(loads={}, distances_QK=nothing_QK, videos_QK=np.zeros(shape, np.int32))


def _frames(
    connection: Connection,
    target: Generation,
    fresh: Sequence[NDArray[np.int64]],
    videos: int,
    stop: threading.Event | None,
) -> Generator[_Block, None, None]:
    """Yield the frames of fresh videos in blocks, and others too where most are fresh.

    Raises:
        CancelledError: ``stop`` was set.
    """
    wanted = np.unique(np.concatenate(fresh)).tolist()
    if wanted:
        some = wanted if 2 * len(wanted) < videos else None
        frames = tables.frames(target.model_id)
        for block in read_vectors(connection, frames, target.dim, some):
            if stop is not None and stop.is_set():
                raise CancelledError
            yield block


def _keys(
    video_id_R: NDArray[np.int64] | int, frame_index_R: NDArray[np.int64] | int
) -> NDArray[np.int64]:
    """Return one number per frame."""
    return (np.asarray(video_id_R, np.int64) << 32) + frame_index_R


def found_share(
    truth_K: FloatArray, found: Sequence[float], depth: int, *, tie: float = TIE
) -> float:
    """Return the recall at a depth: the share of the nearest frames that was found.

    Args:
        truth_K: true distances, ascending; ``inf`` where there are no more frames.
        found: distances found, ascending.
        depth: how many of them count.
        tie: how much farther than the last of these a frame may be that counts as one.
    """
    wanted = min(depth, int(np.isfinite(truth_K).sum()))
    if wanted == 0:
        return 1.0
    limit = float(truth_K[wanted - 1]) + tie
    return min(wanted, sum(distance <= limit for distance in found[:depth])) / wanted


def bootstrap(values_Q: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95% interval of the mean (percentile method) of a thousand resamplings."""
    rng = np.random.default_rng(SEED)
    picks = rng.integers(0, len(values_Q), size=(1000, len(values_Q)))
    low, high = np.percentile(values_Q[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
