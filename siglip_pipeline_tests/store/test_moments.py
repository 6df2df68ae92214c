"""Moments tile a video, keep similar frames together, and separate different ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_pipeline.store.moments import MAX_FRAMES, Moments, cut_moments
from siglip_pipeline_tests.store import made


def cut(vectors_ND: np.ndarray, threshold: float = 0.9, max_frames: int = MAX_FRAMES) -> Moments:
    batch = made.batch("v", vectors_ND.astype(np.float32))
    return cut_moments(
        batch.embeddings_ND,
        batch.frame_index_N,
        batch.time_seconds_N,
        threshold=threshold,
        max_frames=max_frames,
    )


def test_a_scene_is_a_moment() -> None:
    moments = cut(made.footage(3, frames=24))
    assert moments.first_frame_M.tolist() == [0, 200, 400]
    assert moments.last_frame_M.tolist() == [175, 375, 575]
    assert moments.start_seconds_M.tolist() == [0.0, 8.0, 16.0]
    assert moments.end_seconds_M.tolist() == [8.0, 16.0, 24.0]


@given(
    seed=st.integers(0, 1000),
    frames=st.integers(1, 60),
    noise=st.floats(0.0, 0.6),
    threshold=st.floats(0.5, 0.99),
    max_frames=st.integers(1, 20),
)
@settings(max_examples=60)
def test_moments_tile_the_video_in_order(
    seed: int, frames: int, noise: float, threshold: float, max_frames: int
) -> None:
    vectors_ND = made.footage(seed, frames=frames, noise=noise)
    moments = cut(vectors_ND, threshold, max_frames)
    assert moments.frames == frames
    assert moments.start_row_M[0] == 0
    lengths = np.diff(np.append(moments.start_row_M, frames))
    assert (lengths >= 1).all()
    assert (lengths <= max_frames).all()
    assert moments.end_seconds_M[:-1].tolist() == moments.start_seconds_M[1:].tolist()
    assert (
        moments.last_frame_M.tolist()
        == ((np.append(moments.start_row_M[1:], frames) - 1) * 25).tolist()
    )
    np.testing.assert_allclose(np.linalg.norm(moments.means_MD, axis=1), 1, atol=1e-5)
    for start, length, mean_D in zip(moments.start_row_M, lengths, moments.means_MD, strict=True):
        total_D = vectors_ND[start : start + length].sum(axis=0)
        np.testing.assert_allclose(mean_D, total_D / np.linalg.norm(total_D), atol=1e-4)


def starts_by_definition(vectors_ND: np.ndarray, threshold: float, max_frames: int) -> list[int]:
    """Where moments start, from the mean of all frames of the moment; -1 at the end if unclear."""
    vectors_ND = vectors_ND.astype(np.float64)
    starts = [0]
    for row in range(1, len(vectors_ND)):
        mean_D = vectors_ND[starts[-1] : row].mean(axis=0)
        cosine = float(vectors_ND[row] @ mean_D / np.linalg.norm(mean_D))
        if abs(cosine - threshold) < 1e-5:
            return [*starts, -1]
        if cosine < threshold or row - starts[-1] == max_frames:
            starts.append(row)
    return starts


@given(
    seed=st.integers(0, 10_000),
    noise=st.floats(0.01, 0.15),
    threshold=st.floats(0.7, 0.98),
    max_frames=st.integers(2, 20),
)
@settings(max_examples=60, derandomize=True)
def test_cuts_are_those_of_the_mean_of_all_frames(
    seed: int, noise: float, threshold: float, max_frames: int
) -> None:
    vectors_ND = made.footage(seed, frames=60, noise=noise)
    expected = starts_by_definition(vectors_ND, threshold, max_frames)
    found = cut(vectors_ND, threshold, max_frames).start_row_M.tolist()
    if expected[-1] == -1:  # rounding decides where the next one starts
        expected.pop()
        found = found[: len(expected)]
    assert found == expected


def test_the_mean_runs_along_with_a_slow_change() -> None:
    """Each frame is near the last one, but the far end has left the mean behind."""
    angles = np.linspace(0, np.pi / 2, 40)
    turning_ND = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert 1 < len(cut(turning_ND, 0.95)) < 6


def test_a_static_camera_is_cut_into_pieces() -> None:
    still_ND = np.tile(made.footage(1, frames=1), (200, 1))
    assert np.diff(cut(still_ND).start_row_M).tolist() == [64] * 3


def test_a_frame_at_exactly_the_threshold_stays() -> None:
    vectors_ND = np.array([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]])  # of cosine 0.5, without rounding
    assert cut(vectors_ND, 0.5).start_row_M.tolist() == [0]
    assert cut(vectors_ND, np.nextafter(0.5, 1)).start_row_M.tolist() == [0, 1]


def test_no_frames_no_moments() -> None:
    moments = cut(np.zeros((0, 4)))
    assert (len(moments), moments.frames) == (0, 0)
    assert moments.means_MD.shape == (0, 4)
    for rows in (moments.start_row_M, moments.first_frame_M, moments.last_frame_M):
        assert rows.size == 0
    assert moments.start_seconds_M.size == moments.end_seconds_M.size == 0


def test_one_frame_is_a_moment_of_a_second() -> None:
    moments = cut(made.footage(1, frames=1))
    assert (moments.start_seconds_M[0], moments.end_seconds_M[0]) == (0.0, 1.0)


def test_the_last_frame_lasts_as_long_as_the_median_one() -> None:
    vectors_ND = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    times = np.array([10.0, 10.5, 12.5, 22.5])
    moments = cut_moments(vectors_ND, np.array([0, 12, 60, 300]), times, threshold=0.9)
    assert moments.first_frame_M.tolist() == [0, 60]
    assert moments.last_frame_M.tolist() == [12, 300]
    assert moments.start_seconds_M.tolist() == [10.0, 12.5]
    assert moments.end_seconds_M.tolist() == [12.5, 24.5]
    two = cut_moments(vectors_ND[:2], np.array([0, 12]), times[:2], threshold=0.9)
    assert two.end_seconds_M.tolist() == [11.0]


@pytest.mark.parametrize(("threshold", "fewer"), [(0.9, 0.999), (0.5, 0.9)])
def test_a_lower_threshold_cuts_less(threshold: float, fewer: float) -> None:
    vectors_ND = made.footage(5, frames=60, noise=0.1)
    assert len(cut(vectors_ND, threshold)) < len(cut(vectors_ND, fewer))
