"""Shot boundaries are found where shots were joined, and nowhere else."""

import colorsys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from siglip_pipeline.video.decode import decode_frames
from siglip_pipeline.video.plan import plan_everything
from siglip_pipeline.video.scan import scan
from siglip_pipeline.video.shots import (
    THRESHOLD,
    content_difference,
    content_scores,
    find_cuts,
    hue_saturation_value,
)
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.video.rendering import numbered_picture, render

DATA = Path(__file__).parent.parent / "data" / "videos"


def scores_of(path: Path) -> tuple[NDArray[np.float64], list[int]]:
    source = MediaSource(path.name, path=path)
    scanned = scan(source)
    everything = plan_everything(scanned.packets, np.arange(scanned.packets.pts_N.size))
    frames = (decoded.frame for decoded in decode_frames(source, scanned, everything))
    scores_N = np.array(list(content_scores(frames)))
    cuts = find_cuts(scores_N, scanned.packets.pts_N, time_base=scanned.time_base)
    return scores_N, cuts.tolist()


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


@pytest.mark.parametrize("name", ["pxt_test_462_frames.mp4", "testsrc2_vp9.webm", "av1_video.mkv"])
def test_footage_without_cuts_has_none(name: str) -> None:
    assert scores_of(DATA / name)[1] == []


def test_a_flash_makes_no_shots() -> None:
    scores_N = np.zeros(100)
    scores_N[[50, 52, 54]] = 90
    cuts = find_cuts(scores_N, np.arange(100), time_base=Fraction(1, 25))
    assert cuts.tolist() == [50]


def test_hue_saturation_and_value_are_those_of_the_standard_library() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = (7, 7, 7), (0, 0, 0)
    ours = hue_saturation_value(pixels).reshape(3, -1).T
    for pixel, (hue, saturation, value) in zip(pixels.reshape(-1, 3), ours, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        assert (hue, saturation, value) == pytest.approx((180 * h, 255 * s, 255 * v), abs=1e-3)


def test_hue_is_a_circle() -> None:
    reds = np.array([[[255, 0, 9]], [[255, 9, 0]]], np.uint8)
    first, second = (hue_saturation_value(red[None]) for red in reds)
    assert content_difference(first, second) < 3
