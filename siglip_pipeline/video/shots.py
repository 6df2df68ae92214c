"""Find the cuts between the shots of a video.

The measure is that of PySceneDetect's ``ContentDetector`` (Castellano, scenedetect.com): the mean
change of hue, saturation and value from one frame to the next, with a cut if it exceeds 27 of 255.
This module computes it on pictures 128 pixels wide, without OpenCV, and treats hue as a circle.
``benchmarks/results/decode.md`` compares the cuts of both.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Final

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.picture import convert

THRESHOLD: Final = 27.0
"""ContentDetector's default, on the scale of 8-bit values."""

SHORTEST_SHOT_SECONDS: Final = Fraction(6, 10)
"""PySceneDetect's default. It prevents shots of a few frames at flashes."""

WIDTH: Final = 128
MAX_HEIGHT: Final = 256

Components = NDArray[np.float32]


def content_scores(frames: Iterable[VideoFrame]) -> Iterator[float]:
    """Yield how much each frame differs from the one before, 0 to 255; 0 for the first."""
    reformatter = VideoReformatter()
    previous: Components | None = None
    for frame in frames:
        height = min(MAX_HEIGHT, max(1, round(WIDTH * frame.height / frame.width)))
        pixels_HWC = convert(
            reformatter, frame, (WIDTH, height), "rgb24", interpolation=Interpolation.AREA
        )
        current = hue_saturation_value(pixels_HWC)
        if previous is None or previous.shape != current.shape:
            yield 0.0
        else:
            yield content_difference(previous, current)
        previous = current


def hue_saturation_value(pixels_HWC: NDArray[np.uint8]) -> Components:
    """Return HSV planes [3, H, W] in OpenCV's 8-bit scale: hue 0 to 180, the others 0 to 255."""
    red, green, blue = (pixels_HWC[..., c].astype(np.float32) for c in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = np.divide(255 * spread, value, out=np.zeros_like(value), where=value > 0)
    divisor = np.where(spread > 0, spread, 1)
    hue = np.select(
        [spread == 0, value == red, value == green],
        [
            np.zeros_like(value),
            (30 * (green - blue) / divisor) % 180,
            30 * (blue - red) / divisor + 60,
        ],
        default=30 * (red - green) / divisor + 120,
    )
    return np.stack([hue, saturation, value]).astype(np.float32)


def content_difference(first: Components, second: Components) -> float:
    """Return the mean over hue, saturation and value of the mean absolute change."""
    change = np.abs(first - second)
    change[0] = np.minimum(change[0], 180 - change[0])
    return float(change.mean())


def find_cuts(scores_N: NDArray[np.floating], pts_N: IntArray, *, time_base: Fraction) -> IntArray:
    """Return the positions at which a new shot begins, from scores and timestamps, without 0."""
    shortest_pts = SHORTEST_SHOT_SECONDS / time_base
    cuts: list[int] = []
    shot_start = int(pts_N[0]) if pts_N.size else 0
    for position in np.flatnonzero(np.asarray(scores_N) >= THRESHOLD).tolist():
        if position > 0 and int(pts_N[position]) - shot_start >= shortest_pts:
            cuts.append(position)
            shot_start = int(pts_N[position])
    return np.array(cuts, np.int64)
