"""Compute the similarity of vectors, with numpy alone.

Shapes: N rows, M rows of a second array, D dimensions, K results. Vectors need not be of unit
length; float16, float32 and float64 are accepted, and float16 is computed in float32.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_FLOATS = (np.float16, np.float32, np.float64)

# The error of a float32 dot product of unit vectors is less than this for every D in use (at most
# 4e-7 at 2,048 dimensions), so rows closer than this to the k-th are scored again.
_FLOAT32_SLACK = 1e-5


class SimilarFrames(NamedTuple):
    """The rows most similar to a query, best first."""

    indices_K: NDArray[np.int64]
    """Row numbers; rows with equal scores are in ascending order."""
    scores_K: NDArray[np.float32]
    """Cosine similarities in [-1, 1]."""


def cosine_similarity(a: NDArray[Any], b: NDArray[Any]) -> Any:
    """Return the cosine of the angle between vectors.

    Args:
        a: [D] or [N, D], float16, float32 or float64.
        b: [D] or [M, D] with the same D.

    Returns:
        A float for two vectors, [N] (or [M]) for an array and a vector, [N, M] for two arrays;
        float64 when an argument is float64, else float32, clipped to [-1, 1].

    Raises:
        ValueError: other shapes or types, different D, a zero vector, NaN or infinity.
    """
    a_unit, b_unit = _unit("a", _checked("a", a)), _unit("b", _checked("b", b))
    _same_dimensions("a", a_unit, "b", b_unit)
    product = np.clip(a_unit @ b_unit.T, -1.0, 1.0)
    return product if product.ndim else product.item()


def find_similar_frames(
    query_D: NDArray[Any],
    embeddings_ND: NDArray[Any],
    *,
    k: int = 10,
    block_rows: int = 16_384,
) -> SimilarFrames:
    """Return the k rows of ``embeddings_ND`` with the highest cosine similarity to ``query_D``.

    Rows are read in blocks, so the memory needed beyond the input is that of one or two blocks, and
    a memory-mapped array works too. The result does not depend on ``block_rows``, and rows with
    equal scores are in ascending order: candidates that a float32 product cannot distinguish are
    scored again in float64.

    Args:
        query_D: [D], float16, float32 or float64.
        embeddings_ND: [N, D]; N may be 0.
        k: the number of rows; fewer are returned if N is smaller.
        block_rows: rows per block.

    Raises:
        ValueError: other shapes or types, different D, a zero vector, NaN, infinity, or ``k`` or
            ``block_rows`` below 1. The message names the first bad row.
    """
    if k < 1 or block_rows < 1:
        raise ValueError(f"k={k} and block_rows={block_rows}: both must be at least 1")
    query = _checked("query_D", query_D)
    if query.ndim != 1:
        raise ValueError(f"query_D has shape {query.shape}, expected one vector [D]")
    rows_ND = np.asanyarray(embeddings_ND)
    _check_array("embeddings_ND", rows_ND)
    if rows_ND.ndim != 2:
        raise ValueError(f"embeddings_ND has shape {rows_ND.shape}, expected [N, D]")
    _same_dimensions("query_D", query, "embeddings_ND", rows_ND)
    exact_query_D = _unit("query_D", query.astype(np.float64))
    fast_query_D = exact_query_D.astype(np.float32)

    best_indices = np.empty(0, np.int64)
    best_scores = np.empty(0, np.float64)
    for start in range(0, len(rows_ND), block_rows):
        block = rows_ND[start : start + block_rows]
        scores = _fast_scores(block, fast_query_D, first_row=start)
        floor = -np.inf
        if len(scores) > k:
            floor = float(np.partition(scores, len(scores) - k)[len(scores) - k])
        if len(best_scores) == k:
            floor = max(floor, float(best_scores[-1]))
        candidates = np.flatnonzero(scores >= floor - _FLOAT32_SLACK)
        exact = _exact_scores(block[candidates], exact_query_D)
        best_indices = np.concatenate([best_indices, candidates + start])
        best_scores = np.concatenate([best_scores, exact])
        order = np.lexsort((best_indices, -best_scores))[:k]
        best_indices, best_scores = best_indices[order], best_scores[order]
    return SimilarFrames(best_indices, np.clip(best_scores, -1.0, 1.0).astype(np.float32))


def probability(cosine: Any, logit_scale: float, logit_bias: float) -> Any:
    """Return the probability that image and text match, according to SigLIP's training.

    ``sigmoid(exp(logit_scale) * cosine + logit_bias)``: pairs are independent, so the values of
    several texts do not add up to 1 (Zhai et al., "Sigmoid Loss for Language Image
    Pre-Training", 2023, arXiv:2303.15343).

    Args:
        cosine: cosine similarities of any shape.
        logit_scale: natural logarithm of the scale, as stored in the checkpoint.
        logit_bias: as stored in the checkpoint.

    Returns:
        float64 of the same shape; a float for a scalar.
    """
    logits = np.exp(np.float64(logit_scale)) * np.asarray(cosine, np.float64) + logit_bias
    # exp of a non-positive number never overflows.
    small = np.exp(-np.abs(logits))
    result = np.where(logits >= 0, 1.0 / (1.0 + small), small / (1.0 + small))
    return result if result.ndim else result.item()


def _check_array(name: str, array: NDArray[Any]) -> None:
    if array.dtype.type not in _FLOATS:
        raise ValueError(f"{name} has dtype {array.dtype}, expected float16, float32 or float64")
    if array.ndim not in (1, 2) or array.shape[-1] == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected [D] or [N, D] with D > 0")


def _checked(name: str, array: NDArray[Any]) -> NDArray[Any]:
    array = np.asanyarray(array)
    _check_array(name, array)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _same_dimensions(a_name: str, a: NDArray[Any], b_name: str, b: NDArray[Any]) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"{a_name} has {a.shape[-1]} dimensions and {b_name} {b.shape[-1]}: "
            "they come from different models"
        )


def _unit(name: str, vectors: NDArray[Any]) -> NDArray[Any]:
    """Return ``vectors`` scaled to length 1 along the last axis."""
    norms = _norms(name, vectors if vectors.ndim == 2 else vectors[None], first_row=None)
    scaled = vectors / (norms[:, None] if vectors.ndim == 2 else norms[0])
    return scaled.astype(vectors.dtype)


def _norms(name: str, rows_ND: NDArray[Any], *, first_row: int | None) -> NDArray[np.float64]:
    """Return the length of each row; use float64 where float32 squares overflow or underflow."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", rows_ND, rows_ND)
        norms: NDArray[np.float64] = np.sqrt(squares).astype(np.float64)
    doubtful = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-15))
    for i in doubtful:
        row = rows_ND[i].astype(np.float64)
        # Scaled by the largest entry, so that extreme float64 values do not overflow.
        largest = np.abs(row).max()
        where = (
            name if first_row is None and len(rows_ND) == 1 else f"{name}[{(first_row or 0) + i}]"
        )
        if not np.isfinite(largest):
            raise ValueError(f"{where} has NaN or infinity in it")
        if largest == 0:
            raise ValueError(f"{where} is a zero vector: it has no direction to compare")
        norms[i] = largest * np.sqrt(np.sum((row / largest) ** 2))
    return norms


def _fast_scores(
    block_ND: NDArray[Any], query_D: NDArray[np.float32], *, first_row: int
) -> NDArray[np.float64]:
    block_ND = block_ND.astype(np.float32) if block_ND.dtype == np.float16 else block_ND
    norms = _norms("embeddings_ND", block_ND, first_row=first_row)
    with np.errstate(over="ignore", invalid="ignore"):
        scores: NDArray[np.float64] = (block_ND @ query_D) / norms
    overflown = np.flatnonzero(~np.isfinite(scores))
    scores[overflown] = _exact_scores(block_ND[overflown], query_D.astype(np.float64))
    return scores


def _exact_scores(rows_ND: NDArray[Any], unit_query_D: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return float64 cosines, summed per row so that equal rows have equal scores."""
    rows = rows_ND.astype(np.float64)
    if not len(rows):
        return np.empty(0)
    rows /= np.abs(rows).max(axis=1, keepdims=True)
    exact: NDArray[np.float64] = (rows * unit_query_D).sum(axis=1) / np.sqrt((rows**2).sum(axis=1))
    return exact
