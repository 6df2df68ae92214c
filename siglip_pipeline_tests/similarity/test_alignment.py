"""Alignment of generated footage finds copies and their times, but no blocks or coincidences."""

from collections.abc import Sequence

import numpy as np
import pytest

from siglip_pipeline.records import FloatArray
from siglip_pipeline.similarity.alignment import (
    MIN_DIFFERENT,
    Footage,
    Segment,
    _fit,
    difference_weights,
    find_matches,
    shared_segments,
    weakly_shared_segments,
)

DIM = 64


def frames(seed: int, count: int) -> FloatArray:
    """Unit vectors that have nothing in common."""
    vectors_ND = np.random.default_rng(seed).standard_normal((count, DIM))
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND.astype(np.float32)


def still(seed: int, count: int) -> FloatArray:
    return frames(seed, 1).repeat(count, axis=0)


def copied(vectors_ND: FloatArray, *, noise: float = 0.02, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    copy_ND = vectors_ND + noise * rng.standard_normal(vectors_ND.shape).astype(np.float32)
    copy_ND /= np.linalg.norm(copy_ND, axis=1, keepdims=True)
    return copy_ND.astype(np.float32)


def footage(*parts: FloatArray, step: float = 1.0) -> Footage:
    vectors_ND = np.concatenate(parts)
    return Footage(
        time_seconds_N=step * np.arange(len(vectors_ND), dtype=np.float64), embeddings_ND=vectors_ND
    )


def align(a: Footage, b: Footage) -> list[Segment]:
    return shared_segments(a, b, find_matches(a, b))


def times(segment: Segment) -> Sequence[float]:
    return [segment.start_a, segment.end_a, segment.start_b, segment.end_b]


def test_a_copied_segment_has_its_times() -> None:
    shared = frames(1, 10)
    a = footage(frames(2, 7), shared, frames(3, 5))
    b = footage(frames(4, 20), copied(shared))
    (segment,) = align(a, b)
    assert times(segment) == pytest.approx([7, 17, 20, 30])
    assert segment.speed == pytest.approx(1, abs=0.02)
    assert segment.different == pytest.approx(10)


def test_swapped_halves_are_two_segments() -> None:
    one, two = frames(1, 8), frames(2, 6)
    segments = align(footage(one, frames(3, 9), two), footage(copied(two), copied(one)))
    assert [times(segment) for segment in segments] == [
        pytest.approx([0, 8, 6, 14]),
        pytest.approx([17, 23, 0, 6]),
    ]


@pytest.mark.parametrize("speed", [0.5, 2 / 3, 1.25, 1.4, 1.5, 2.0])
def test_speed_is_measured(speed: float) -> None:
    """The footage is a slow pan: nearby frames are similar, so frames of both speeds match."""
    rng = np.random.default_rng(5)
    knots = np.cumsum(rng.standard_normal((80, DIM)), axis=0)

    def at(seconds: np.ndarray[tuple[int], np.dtype[np.float64]]) -> FloatArray:
        vectors_ND = np.stack(
            [np.interp(seconds, np.arange(80), knots[:, d]) for d in range(DIM)], axis=1
        )
        vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return vectors_ND.astype(np.float32)

    original = footage(at(np.arange(0, 60, 1.0)))
    played = footage(at(np.arange(0, 60, speed)))
    segment = align(original, played)[0]
    assert segment.speed == pytest.approx(1 / speed, rel=0.04)
    assert segment.end_a - segment.start_a > 50


def test_a_black_opening_is_one_frame_of_evidence() -> None:
    black = still(9, 12)
    segments = align(footage(black, frames(1, 20)), footage(copied(black), frames(2, 20)))
    assert all(segment.different < MIN_DIFFERENT for segment in segments)


def test_nothing_in_common_gives_nothing() -> None:
    assert align(footage(frames(1, 30)), footage(frames(2, 30))) == []


def test_chance_matches_out_of_order_prove_nothing() -> None:
    """The same pictures, shuffled: a slide deck shown in another order."""
    slides = frames(1, 24)
    order = np.random.default_rng(3).permutation(24)
    segments = align(footage(slides), footage(copied(slides)[order]))
    assert all(segment.different < 5 for segment in segments)


def test_irregular_times_make_no_gaps() -> None:
    """Variable frame rate: samples come in pairs."""
    shared = frames(1, 16)
    seconds = np.arange(16) // 2 * 2 + np.tile([0, 0.36], 8)
    a = Footage(time_seconds_N=seconds, embeddings_ND=shared)
    (segment,) = align(a, Footage(time_seconds_N=seconds, embeddings_ND=copied(shared)))
    assert len(segment.rows) == 16


def test_a_still_counts_once_and_the_rest_by_itself() -> None:
    weights = difference_weights(np.concatenate([still(1, 10), frames(2, 4)]))
    assert float(weights.sum()) == pytest.approx(5)
    assert float(weights[:10].sum()) == pytest.approx(1)


def test_no_frame_is_in_two_segments() -> None:
    """The same opening twice in one video: it is a copy of one place, not of both."""
    opening = frames(1, 8)
    once = footage(opening, frames(2, 10))
    twice = footage(copied(opening), frames(3, 12), copied(opening, seed=4))
    for a, b in ((once, twice), (twice, once)):
        (segment,) = align(a, b)
        assert len(segment.rows) == len(segment.columns) == 8


def test_weak_matches_count_when_many_line_up() -> None:
    """Frames at a cosine of about 0.91, as of a crop: too weak one by one."""
    shared = frames(1, 12)
    a = footage(frames(2, 5), shared)
    b = footage(frames(3, 9), copied(shared, noise=0.055))
    cosine_N = (shared * b.embeddings_ND[9:]).sum(axis=1)
    assert ((cosine_N > 0.88) & (cosine_N < 0.94)).all()
    assert align(a, b) == []
    (segment,) = weakly_shared_segments(a, b)
    assert times(segment) == pytest.approx([5, 17, 9, 21])


def test_few_weak_matches_prove_nothing() -> None:
    shared = frames(1, 2)
    a = footage(frames(2, 5), shared)
    assert weakly_shared_segments(a, footage(frames(3, 9), copied(shared, noise=0.055))) == []


def test_outliers_hardly_move_the_line() -> None:
    rng = np.random.default_rng(8)
    time_a = np.arange(40.0)
    time_b = 1.1 * time_a + 3 + 0.01 * rng.standard_normal(40)
    time_b[35:] += 1.0
    fitted = _fit(time_a, time_b, np.ones(40), 1.0)
    assert fitted is not None
    by_squares = np.polyfit(time_a, time_b, 1)
    assert abs(by_squares[0] - 1.1) > 0.01
    assert abs(fitted[0] - 1.1) < 0.5 * abs(by_squares[0] - 1.1)
