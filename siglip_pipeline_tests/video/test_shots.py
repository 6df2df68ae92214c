"""Shot boundaries are found where shots were joined, and nowhere else."""

import colorsys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from siglip_pipeline.records import RgbArray
from siglip_pipeline.video import shots
from siglip_pipeline.video.decode import DecodeCounts, decode_frames
from siglip_pipeline.video.plan import plan_everything
from siglip_pipeline.video.scan import scan
from siglip_pipeline.video.scene_sampling import decode_scenes
from siglip_pipeline.video.shots import (
    HUES,
    THRESHOLD,
    ContentScore,
    CutFinder,
    content_difference,
    hue_saturation_value,
)
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.video.rendering import numbered_picture, render

DATA = Path(__file__).parent.parent / "data" / "videos"


def scores_of(path: Path) -> tuple[NDArray[np.float64], list[int]]:
    source = MediaSource(path.name, path=path)
    scanned = scan(source)
    everything = plan_everything(scanned.packets, np.arange(scanned.packets.pts_N.size))
    score = ContentScore()
    frames = decode_frames(source, scanned, everything)
    scores_N = np.array([score.of(decoded.frame) for decoded in frames])
    return scores_N, cuts_of(scores_N, scanned.packets.pts_N.tolist(), scanned.time_base)


def cuts_of(scores_N: NDArray[np.float64], pts: list[int], time_base: Fraction) -> list[int]:
    finder = CutFinder(time_base)
    return [n for n, at in enumerate(pts) if finder.begins_shot(float(scores_N[n]), at)]


def test_cuts_are_found_to_the_frame(tmp_path: Path) -> None:
    shots = [
        [numbered_picture(n) for n in range(40)],
        [255 - numbered_picture(n) // 3 for n in range(30)],
        [numbered_picture(n)[::-1, ::-1, ::-1] // 2 for n in range(50)],
    ]
    path = render(tmp_path / "shots.mp4", pictures=[picture for shot in shots for picture in shot])
    scores_N, cuts = scores_of(path)
    assert cuts == [40, 70]
    assert scores_N[0] == 0
    assert np.delete(scores_N, cuts).max() < THRESHOLD


@pytest.mark.parametrize("frames", [1, 4])
def test_scenes_are_decoded_in_one_pass(frames: int, tmp_path: Path) -> None:
    """Frames that nothing refers to are left out; each sample is on its own side of a cut."""
    shots = [
        [numbered_picture(n) for n in range(400)],
        [255 - numbered_picture(400 + n) // 3 for n in range(30)],
        [numbered_picture(430 + n)[::-1, ::-1, ::-1] // 2 for n in range(50)],
    ]
    options = {"g": "250", "x264-params": f"bframes={frames - 1}:b-adapt=0:scenecut=0"}
    pictures = [picture for shot in shots for picture in shot]
    path = render(tmp_path / "shots.mp4", pictures=pictures, options=options)
    source = MediaSource(path.name, path=path)
    counts = DecodeCounts()
    decoded = list(decode_scenes(source, scan(source), counts=counts))
    assert len(counts.passes) == 1
    assert counts.frames_decoded <= (480 if frames == 1 else 270)
    chosen = [frame.frame_index for frame in decoded]
    assert [frame.pts for frame in decoded] == [scan(source).packets.pts_N[n] for n in chosen]
    assert chosen[0] == 0
    assert 480 - frames <= chosen[-1] < 480
    for cut in (400, 430):
        (before,) = (n for n in chosen if cut - frames <= n < cut)
        (after,) = (n for n in chosen if cut <= n < cut + frames)
        assert chosen.index(after) == chosen.index(before) + 1
    assert max(b - a for a, b in pairwise(chosen)) <= 250  # ten seconds
    assert len(chosen) == 9


def test_motion_over_frames_that_are_left_out_is_no_cut() -> None:
    finder = CutFinder(Fraction(1, 25))
    steady = [(0.0, 0), (11.0, 100), (33.0, 103), (33.0, 106)]
    spread = [1, 1, 3, 3]
    found = [
        finder.begins_shot(score, pts, frames=frames)
        for (score, pts), frames in zip(steady, spread, strict=True)
    ]
    assert found == [False] * 4
    assert finder.begins_shot(60.0, 109, frames=3)


@pytest.mark.parametrize(("frames", "least"), [(1, 27), (2, 27 + 11), (3, 27 + 22)])
def test_what_a_steady_change_explains_is_that_of_the_frames_left_out(
    frames: int, least: int
) -> None:
    for score, is_cut in ((least, True), (least - 0.01, False)):
        finder = CutFinder(Fraction(1, 25))
        assert not any(finder.begins_shot(11.0, pts) for pts in range(100))
        assert finder.begins_shot(score, 100, frames=frames) == is_cut


@pytest.mark.parametrize("name", ["pxt_test_462_frames.mp4", "testsrc2_vp9.webm", "av1_video.mkv"])
def test_footage_without_cuts_has_none(name: str) -> None:
    assert scores_of(DATA / name)[1] == []


def test_a_cut_is_a_change_of_27_six_tenths_of_a_second_after_the_last() -> None:
    assert cuts_of(np.array([0, 27.0]), [100, 115], Fraction(1, 25)) == [1]
    assert cuts_of(np.array([0, 26.99]), [100, 115], Fraction(1, 25)) == []
    assert cuts_of(np.array([0, 27.0]), [100, 114], Fraction(1, 25)) == []
    assert cuts_of(np.array([255.0, 0]), [100, 200], Fraction(1, 25)) == [], "the first is of none"


def test_a_flash_makes_no_shots() -> None:
    scores_N = np.zeros(100)
    scores_N[[50, 52, 54]] = 90
    assert cuts_of(scores_N, list(range(100)), Fraction(1, 25)) == [50]


def test_hue_saturation_and_value_are_those_of_the_standard_library() -> None:
    """To a step of their scales."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = (7, 7, 7), (0, 0, 0)
    ours = hue_saturation_value(pixels).reshape(-1, 3)
    for pixel, (hue, saturation, value) in zip(pixels.reshape(-1, 3), ours, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        assert (hue, saturation, value) == pytest.approx((HUES * h, 255 * s, 255 * v), abs=1.001)


def test_hue_is_a_circle() -> None:
    reds = np.array([[[255, 0, 9]], [[255, 9, 0]]], np.uint8)
    first, second = (hue_saturation_value(red[None]) for red in reds)
    assert content_difference(first, second) < 3


def test_the_difference_is_the_mean_over_three_scales_with_180_for_a_full_circle() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    total = 0.0
    for a, b in zip(first.reshape(-1, 3).tolist(), second.reshape(-1, 3).tolist(), strict=True):
        apart = abs(a[0] - b[0])
        total += min(apart, HUES - apart) * 180 / HUES + abs(a[1] - b[1]) + abs(a[2] - b[2])
    assert content_difference(first, second) == pytest.approx(total / (9 * 7 * 3))


@pytest.mark.parametrize(
    ("width", "height", "looked_at"),
    [(64, 36, (36, 64)), (1280, 720, (36, 64)), (4000, 2, (1, 64)), (100, 900, (128, 64))],
)
def test_pictures_are_compared_small(
    width: int, height: int, looked_at: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []

    def noted(pixels_HWC: RgbArray) -> RgbArray:
        sizes.append(pixels_HWC.shape)
        return hue_saturation_value(pixels_HWC)

    monkeypatch.setattr(shots, "hue_saturation_value", noted)
    score = ContentScore()
    black, white = (
        VideoFrame.from_ndarray(np.full((height, width, 3), value, np.uint8), format="rgb24")
        for value in (0, 255)
    )
    assert [score.of(frame) for frame in (black, black, white)] == [0, 0, pytest.approx(85, abs=1)]
    assert sizes == [(*looked_at, 3)] * 3
    turned = VideoFrame.from_ndarray(np.zeros((width, height, 3), np.uint8), format="rgb24")
    assert score.of(turned) == 0, "of another size"
