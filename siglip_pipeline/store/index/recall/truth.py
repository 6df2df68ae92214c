"""Search exactly, and compute how much of it an index found.

One pass over the frames gives the truth for all queries and filters. A frame counts as found if it
is as near as the last frame of the truth, so that ties and equal frames do not lower the recall.

Shapes: Q queries, K depth of the truth, R rows of a block of frames.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.copy import read_vectors
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.index.recall.queries import SEED, Query
from siglip_pipeline.store.kinds import Generation, Scope

# Two frames whose inner products differ by less than this rounding error are equally near.
TIE = 1e-5


def find_truth(
    connection: Connection,
    target: Generation,
    queries: Sequence[Query],
    scopes: Sequence[Scope],
    depth: int,
) -> list[FloatArray]:
    """Return the ascending distances [Q, K] of the nearest frames per scope, padded with ``inf``.

    Every frame is compared with every query, in one pass. Vectors and queries are rounded to half
    precision as the database rounds them.
    """
    q = len(queries)
    rounded_QD = np.array([query.embedding_D for query in queries], dtype=np.float16)
    # Distances are negative products.
    away_QD = -rounded_QD.astype(np.float32).reshape(q, target.dim)
    best = [np.full((q, depth), np.inf, np.float32) for _ in scopes]
    ids = [None if s.video_ids is None else np.array(s.video_ids) for s in scopes]
    held = {int(_keys(*query.held_out)): i for i, query in enumerate(queries) if query.held_out}
    for video_id_R, frame_index_R, vectors_RD in read_vectors(
        connection, tables.frames(target.model_id), target.dim
    ):
        distances_QR = away_QD @ vectors_RD.T
        keys_R = _keys(video_id_R, frame_index_R)
        for row in np.flatnonzero(np.isin(keys_R, list(held))):
            distances_QR[held[int(keys_R[row])], row] = np.inf
        for i, wanted in enumerate(ids):
            inside_QR = distances_QR
            if wanted is not None:
                inside_QR = distances_QR[:, np.isin(video_id_R, wanted)]
            best[i] = _nearest(best[i], inside_QR)
    return [np.sort(nearest_QK, axis=1) for nearest_QK in best]


def _nearest(best_QK: FloatArray, distances_QR: FloatArray) -> FloatArray:
    """Return the K least of both [Q, K], in any order.

    After the first blocks few frames are nearer to any query than what is known: only these are
    sorted.
    """
    nearer_R = (distances_QR < best_QK.max(axis=1, keepdims=True)).any(axis=0)
    if not nearer_R.any():
        return best_QK
    both = np.concatenate([best_QK, distances_QR[:, nearer_R]], axis=1)
    return np.partition(both, best_QK.shape[1] - 1, axis=1)[:, : best_QK.shape[1]]


def _keys(
    video_id_R: NDArray[np.int64] | int, frame_index_R: NDArray[np.int64] | int
) -> NDArray[np.int64]:
    """Return one number per frame."""
    return (np.asarray(video_id_R, np.int64) << 32) + frame_index_R


def found_share(truth_K: FloatArray, found: Sequence[float], depth: int) -> float:
    """Return the recall at a depth: the share of the nearest frames that was found.

    Args:
        truth_K: true distances, ascending; ``inf`` where there are no more frames.
        found: distances found, ascending.
        depth: how many of them count.
    """
    wanted = min(depth, int(np.isfinite(truth_K).sum()))
    if wanted == 0:
        return 1.0
    limit = float(truth_K[wanted - 1]) + TIE
    return min(wanted, sum(distance <= limit for distance in found[:depth])) / wanted


def bootstrap(values_Q: NDArray[np.float64], *, seed: int = SEED) -> tuple[float, float]:
    """Return the 95% interval of the mean (percentile method) of a thousand resamplings."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values_Q), size=(1000, len(values_Q)))
    low, high = np.percentile(values_Q[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
