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
    _match_weights,
    _near,
    _one_to_one,
    _support,
    _vote,
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


def test_vectors_in_half_precision_make_no_cosine_above_one() -> None:
    """Their length is 1 to four digits: `duplicates` had scores such as 1.000012."""
    longer = frames(1, 10) * np.float32(1.0001)
    (segment,) = align(footage(frames(2, 7), longer), footage(longer, frames(3, 5)))
    assert segment.cosine == 1.0


def test_swapped_halves_are_two_segments() -> None:
    one, two = frames(1, 8), frames(2, 6)
    segments = align(footage(one, frames(3, 9), two), footage(copied(two), copied(one)))
    assert [times(segment) for segment in segments] == [
        pytest.approx([0, 8, 6, 14]),
        pytest.approx([17, 23, 0, 6]),
    ]


def test_of_many_segments_the_eight_with_the_most_frames_are_returned() -> None:
    parts = [frames(seed, 3 + seed) for seed in range(1, 11)]
    segments = align(footage(*parts), footage(*(copied(part) for part in reversed(parts))))
    assert [len(segment.rows) for segment in segments] == [*range(13, 5, -1)]


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


@pytest.mark.parametrize("speed", [1, 2 / 3, 3 / 4, 4 / 5, 5 / 4, 4 / 3, 3 / 2, 1 / 2, 2])
def test_each_usual_speed_gets_the_votes_of_its_matches(speed: float) -> None:
    """Three matches are too few to fit a line to them."""
    a, b = footage(frames(1, 130)), footage(frames(2, 260))
    rows = np.array([0, 60, 120])
    columns = np.round(speed * rows).astype(np.int64) + 7
    assert _vote(a, b, rows, columns, np.ones(3), 3.0) == pytest.approx((speed, 7))


def test_among_speeds_with_equal_votes_the_original_is_taken() -> None:
    """Four matches in a row lie on the lines of several speeds; the fifth lies on none of them."""
    a, b = footage(frames(1, 130)), footage(frames(2, 260))
    rows, columns = np.array([0, 1, 2, 3, 100]), np.array([7, 8, 9, 10, 0])
    assert _vote(a, b, rows, columns, np.ones(5), 5.0) == pytest.approx((1, 7))


@pytest.mark.parametrize(
    ("time_a", "time_b", "line"),
    [
        ([0, 1, 2], [5, 6, 7], False),
        ([0, 1, 2, 3], [5, 6, 7, 8], True),
        ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9], True),
        ([0, 1, 2, 2], [5, 6, 7, 7.1], False),
        ([0, 1, 2, 2.1], [5, 6, 7, 7], False),
    ],
)
def test_a_line_is_fitted_to_four_frames_of_either_video(
    time_a: list[float], time_b: list[float], line: bool
) -> None:
    fitted = _fit(np.array(time_a), np.array(time_b), np.ones(len(time_a)), 1.0)
    assert fitted == (pytest.approx((1, 5)) if line else None)


def test_a_single_frame_in_common_is_a_segment_of_one() -> None:
    one = frames(1, 1)
    (segment,) = align(footage(frames(2, 9), one), footage(copied(one), frames(3, 5)))
    assert times(segment) == pytest.approx([9, 10, 0, 1])
    assert segment.different == pytest.approx(1)


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


@pytest.mark.parametrize(
    ("places", "count"),
    [([0, 1], 0), ([0, 1, 2], 1), ([0, 1, 3], 1), ([0, 2, 3, 5, 6], 0), ([0, 1, 2, 4, 5, 7], 1)],
)
def test_weak_matches_are_at_least_three_and_most_of_their_segment(
    places: list[int], count: int
) -> None:
    """Places of the same pictures in both videos; all between them are different ones."""
    shared, a_ND, b_ND = frames(1, len(places)), frames(2, 20), frames(3, 20)
    a_ND[[5 + place for place in places]] = shared
    b_ND[[9 + place for place in places]] = copied(shared, noise=0.055)
    segments = weakly_shared_segments(footage(a_ND), footage(b_ND))
    assert [len(segment.rows) for segment in segments] == [len(places)] * count


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


@pytest.mark.parametrize(
    ("seconds", "step"), [([0, 0.5, 3], 1.5), ([7, 9], 2), ([4], 1), ([], 1), ([5, 5, 5], 1e-3)]
)
def test_a_step_is_the_mean_time_between_frames(seconds: list[float], step: float) -> None:
    times_N = np.array(seconds, np.float64)
    assert Footage(time_seconds_N=times_N, embeddings_ND=frames(1, 1)).step_seconds == step


@pytest.mark.parametrize(("strangers", "segments"), [(2, 1), (3, 2)])
def test_a_gap_of_more_than_three_steps_ends_a_segment(strangers: int, segments: int) -> None:
    one, two = frames(1, 6), frames(2, 9)
    a = footage(one, frames(3, strangers), two, step=0.4)
    b = footage(copied(one), frames(4, strangers), copied(two), step=0.4)
    found = align(a, b)
    assert len(found) == segments
    assert found[0].end_a == found[0].end_b == pytest.approx(0.4 * (15 + strangers))
    assert found[0].start_a == pytest.approx(0 if segments == 1 else 0.4 * (6 + strangers))


def test_a_frame_matches_those_it_is_among_the_best_of() -> None:
    """Frames of three dimensions, so that most are alike: the eight best of either side count."""
    a_ND, b_ND = frames(1, 25)[:, :3], frames(2, 30)[:, :3]
    matches = find_matches(footage(a_ND), footage(b_ND), min_cosine=0.01)
    cosine_AB = a_ND @ b_ND.T
    expected = {
        (row, column)
        for row in range(25)
        for column in range(30)
        if (cosine := cosine_AB[row, column]) >= 0.01
        and ((cosine_AB[row] > cosine).sum() < 8 or (cosine_AB[:, column] > cosine).sum() < 8)
    }
    assert len(expected) < (cosine_AB >= 0.01).sum()
    assert {*zip(matches.row_N.tolist(), matches.column_N.tolist(), strict=True)} == expected
    np.testing.assert_array_equal(matches.cosine_N, cosine_AB[matches.row_N, matches.column_N])


@pytest.mark.parametrize("seed", range(5))
def test_matches_on_a_line_count_as_they_are_defined_to(seed: int) -> None:
    """Against the same, one match after the other; times are irregular, and frames are shared."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(0, 9, (2, 40))
    cosines = rng.uniform(0.9, 1, 40).astype(np.float32)
    a, b = (
        Footage(time_seconds_N=np.cumsum(rng.uniform(0.2, 1.5, 9)), embeddings_ND=frames(1, 9))
        for _ in range(2)
    )
    matches = [*zip(rows.tolist(), columns.tolist(), cosines.tolist(), strict=True)]
    weights = [
        np.exp(-(max(c for r, k, c in matches if r == row or k == column) - cosine) / 0.01)
        for row, column, cosine in matches
    ]
    found = _match_weights(rows, columns, cosines)
    np.testing.assert_allclose(found, weights, rtol=1e-4)

    time_a, time_b = a.time_seconds_N[rows], b.time_seconds_N[columns]
    speed, offset = 1.4, -0.7
    tolerance = 1.01 * max(speed * a.step_seconds, b.step_seconds)
    miss = [abs(y - speed * x - offset) for x, y in zip(time_a, time_b, strict=True)]
    near = _near(a, b, time_a, time_b, speed, offset)
    assert near.tolist() == [each <= tolerance for each in miss]

    def best(frames_N: list[int]) -> float:
        on_line = [(f, w) for f, w, n in zip(frames_N, weights, near, strict=True) if n]
        most = (max(w for f, w in on_line if f == frame) for frame in {f for f, _ in on_line})
        return float(sum(most))

    assert _support(rows, columns, found, near) == pytest.approx(
        min(best(rows.tolist()), best(columns.tolist())), rel=1e-4
    )
    chosen = _one_to_one(rows, columns, np.array(miss), tolerance)
    closest = {
        row: min(m for r, m in zip(rows.tolist(), miss, strict=True) if r == row)
        for row in {r for r, n in zip(rows.tolist(), near, strict=True) if n}
    }
    assert rows[chosen].tolist() == sorted(closest)
    assert [miss[index] for index in chosen] == [closest[row] for row in sorted(closest)]
