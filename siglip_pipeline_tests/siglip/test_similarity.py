"""numpy alone: shapes, types, bad values, and an order that does not depend on the block size."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from siglip_pipeline.siglip import cosine_similarity, find_similar_frames
from siglip_pipeline.siglip.similarity import probability

RNG = np.random.default_rng(5)

FLOATS = (np.float16, np.float32, np.float64)


def exact(query_D: NDArray[Any], rows_ND: NDArray[Any]) -> NDArray[np.float64]:
    rows, query = rows_ND.astype(np.float64), query_D.astype(np.float64)
    return np.array([r @ query / math.sqrt(r @ r) / math.sqrt(query @ query) for r in rows])


@pytest.mark.parametrize("dtype", FLOATS)
def test_cosine_of_known_angles(dtype: Any) -> None:
    east, north_east = np.array([3, 0], dtype), np.array([2, 2], dtype)
    assert cosine_similarity(east, north_east) == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert isinstance(cosine_similarity(east, -east), float)
    assert cosine_similarity(east, -east) == -1.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_cosine_of_arrays_agrees_with_row_by_row(dtype: Any) -> None:
    a, b = RNG.normal(size=(5, 8)).astype(dtype), RNG.normal(size=(3, 8)).astype(dtype)
    both = cosine_similarity(a, b)
    assert both.shape == (5, 3)
    assert both.dtype == (np.float64 if dtype is np.float64 else np.float32)
    for j in range(3):
        np.testing.assert_allclose(both[:, j], exact(b[j], a), atol=1e-6)
        np.testing.assert_allclose(cosine_similarity(a, b[j]), both[:, j], atol=1e-6)
        np.testing.assert_allclose(cosine_similarity(b[j], a), both[:, j], atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "magnitude"),
    [(np.float32, 1e-30), (np.float32, 1e30), (np.float64, 1e-300), (np.float64, 1e300)],
)
def test_extreme_lengths_neither_overflow_nor_vanish(dtype: Any, magnitude: float) -> None:
    rows = RNG.normal(size=(4, 16)).astype(dtype)
    huge = rows * dtype(magnitude)
    np.testing.assert_allclose(
        cosine_similarity(huge, rows), cosine_similarity(rows, rows), atol=1e-6
    )
    assert find_similar_frames(rows[2], huge, k=1).indices_K.tolist() == [2]


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (np.ones(3), np.ones(4), "3 dimensions and b 4"),
        (np.zeros(3), np.ones(3), "a is a zero vector"),
        (np.ones(3), np.array([1, np.nan, 0]), "b has NaN or infinity"),
        (np.ones(3), np.array([1, np.inf, 0]), "b has NaN or infinity"),
        (np.ones((2, 3)), np.array([[1.0, 1, 1], [0, 0, 0]]), r"b\[1\] is a zero vector"),
        (np.ones(3, np.int64), np.ones(3), "a has dtype int64, expected float16, float32"),
        (np.ones((1, 2, 3)), np.ones(3), r"a has shape \(1, 2, 3\), expected"),
        (np.ones(0), np.ones(0), "D > 0"),
    ],
)
def test_what_cannot_be_compared_says_why(a: NDArray[Any], b: NDArray[Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cosine_similarity(a, b)


@given(
    rows_ND=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 40), st.integers(2, 9)),
        elements=st.floats(-4, 4, width=16),
    ),
    k=st.integers(1, 12),
    block_rows=st.integers(1, 50),
)
def test_the_best_rows_come_first_whatever_the_block_size(
    rows_ND: NDArray[np.float32], k: int, block_rows: int
) -> None:
    rows_ND[~rows_ND.any(axis=1), 0] = 1
    query_D = rows_ND[len(rows_ND) // 2] + np.float32(0.25)
    if not query_D.any():
        query_D[0] = 1
    found = find_similar_frames(query_D, rows_ND, k=k, block_rows=block_rows)
    everything = find_similar_frames(query_D, rows_ND, k=len(rows_ND))
    truth = exact(query_D, rows_ND)
    assert len(found.indices_K) == min(k, len(rows_ND))
    assert found.indices_K.tolist() == everything.indices_K.tolist()[:k]
    np.testing.assert_allclose(found.scores_K, np.sort(truth)[::-1][:k], atol=1e-6)
    np.testing.assert_allclose(found.scores_K, truth[found.indices_K], atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
def test_equal_frames_come_in_their_order(dtype: Any, block_rows: int) -> None:
    # A still picture: 300 equal frames among others. A BLAS product gives equal rows scores that
    # differ in the last bit, depending on where in a block they stand.
    rows = RNG.normal(size=(1000, 48)).astype(dtype)
    still = np.sort(RNG.choice(1000, 300, replace=False))
    rows[still] = rows[still[0]]
    query = rows[still[0]].astype(np.float64) + 0.01
    found = find_similar_frames(query, rows, k=50, block_rows=block_rows)
    assert found.indices_K.tolist() == still[:50].tolist()


def test_rows_in_half_precision_are_ordered_as_in_double_precision() -> None:
    """Sums of squares in half precision are off by a thousandth: other rows would come first."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(16_000, 64)).astype(np.float16)
    for query in rng.normal(size=(5, 64)):
        found = find_similar_frames(query, rows, k=4000)
        best = np.argsort(-exact(query, rows), kind="stable")[:4000]
        assert found.indices_K.tolist() == best.tolist()


def test_rows_that_single_precision_cannot_tell_apart_are_in_order() -> None:
    up = np.where(RNG.random((500, 256)) < 0.5, np.inf, -np.inf).astype(np.float32)
    rows = np.nextafter(RNG.normal(size=256).astype(np.float32), up)
    query = RNG.normal(size=256)
    best = np.argsort(-exact(query, rows), kind="stable")[:50]
    assert find_similar_frames(query, rows, k=50).indices_K.tolist() == best.tolist()


def test_ten_rows_are_found_unless_another_number_is_given() -> None:
    assert len(find_similar_frames(np.ones(4), RNG.normal(size=(12, 4))).indices_K) == 10


def test_fewer_rows_than_asked_for() -> None:
    assert len(find_similar_frames(np.ones(4), np.empty((0, 4)), k=3).indices_K) == 0
    assert len(find_similar_frames(np.ones(4), RNG.normal(size=(2, 4)), k=3).indices_K) == 2


@pytest.mark.parametrize(
    ("query", "rows", "k", "says"),
    [
        (np.ones(3), np.ones((2, 4)), 1, "different models"),
        (np.ones((1, 3)), np.ones((2, 3)), 1, r"query_D has shape \(1, 3\)"),
        (np.ones(3), np.ones(3), 1, r"embeddings_ND has shape \(3,\), expected \[N, D\]"),
        (np.ones(3), np.ones((2, 3)), 0, "at least 1"),
        (np.zeros(3), np.ones((2, 3)), 1, "query_D is a zero vector"),
    ],
)
def test_a_search_that_makes_no_sense_says_why(
    query: NDArray[Any], rows: NDArray[Any], k: int, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        find_similar_frames(query, rows, k=k)


def test_a_block_has_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="k=10 and block_rows=0: both must be at least 1"):
        find_similar_frames(np.ones(3), np.ones((2, 3)), block_rows=0)
    assert len(find_similar_frames(np.ones(3), np.ones((2, 3)), block_rows=1).indices_K) == 2


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_bad_row_is_named_by_its_number(bad: float) -> None:
    rows = RNG.normal(size=(100, 8)).astype(np.float32)
    rows[73] = bad
    with pytest.raises(ValueError, match=r"embeddings_ND\[73\]"):
        find_similar_frames(np.ones(8), rows, block_rows=10)


def test_a_large_array_is_streamed_not_copied() -> None:
    rows = RNG.normal(size=(60_000, 64)).astype(np.float32)
    tracemalloc.start()
    find_similar_frames(rows[0], rows, k=10, block_rows=2_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes / 5


def test_probability_is_the_sigmoid_of_the_scaled_cosine() -> None:
    assert probability(0.1, math.log(100), -8.0) == pytest.approx(1 / (1 + math.exp(-2)))
    values = probability(np.array([-1.0, 0.0, 1.0]), 4.7, -16.5)
    np.testing.assert_allclose(
        values, [1 / (1 + math.exp(16.5 - s * math.exp(4.7))) for s in (-1, 0, 1)], rtol=1e-9
    )
    # Two texts that fit equally well are both probable: nothing is shared out between them.
    assert probability(np.array([0.3, 0.3]), 4.7, -16.5).sum() > 1.9


@given(st.floats(-1, 1), st.floats(-2, 9), st.floats(-400, 400))
def test_probability_never_overflows(cosine: float, scale: float, bias: float) -> None:
    with np.errstate(all="raise", under="ignore"):
        assert 0.0 <= probability(cosine, scale, bias) <= 1.0
