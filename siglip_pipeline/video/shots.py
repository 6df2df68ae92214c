"""Find the cuts between the shots of a video.

The measure is that of PySceneDetect's ``ContentDetector`` (Castellano, scenedetect.com): the mean
change of hue, saturation and value from one frame to the next, with a cut if it exceeds 27 of 255.
This module computes it on pictures 64 pixels wide, without OpenCV, and treats hue as a circle.
``benchmarks/results/decode.md`` compares the cuts of both.
"""

from fractions import Fraction
from typing import Final

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from siglip_pipeline.video.picture import convert

THRESHOLD: Final = 27.0
"""ContentDetector's default, on the scale of 8-bit values."""

SHORTEST_SHOT_SECONDS: Final = Fraction(6, 10)
"""PySceneDetect's default. It prevents shots of a few frames at flashes."""

WIDTH: Final = 64
MAX_HEIGHT: Final = 128

Components = NDArray[np.float32]


class ContentScore:
    """Tells how much each frame differs from the one before."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._previous: Components | None = None

    def of(self, frame: VideoFrame) -> float:
        """Return the difference, 0 to 255; 0 for the first frame, and where the size changes."""
        height = min(MAX_HEIGHT, max(1, round(WIDTH * frame.height / frame.width)))
        pixels_HWC = convert(
            self._reformatter,
            frame,
            (WIDTH, height),
            "rgb24",
            interpolation=Interpolation.FAST_BILINEAR,
        )
        previous, self._previous = self._previous, hue_saturation_value(pixels_HWC)
        if previous is None or previous.shape != self._previous.shape:
            return 0.0
        return content_difference(previous, self._previous)


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


class CutFinder:
    """Tells where shots begin, from scores in time order.

    Args:
        time_base: seconds per unit of timestamps.
    """

    def __init__(self, time_base: Fraction) -> None:
        self._shortest_pts = SHORTEST_SHOT_SECONDS / time_base
        self._shot_start: int | None = None
        self._change = 0.0
        """From frame to frame, as it was last."""

    def begins_shot(self, score: float, pts: int, *, frames: int = 1) -> bool:
        """Return whether a frame is the first of a new shot; the first one of all is not.

        Args:
            score: how much it differs from the one before it that was compared.
            pts: its time.
            frames: how many frames after that one it is. Motion goes on over them, so what the
                change before explains of the score does not count.
        """
        explained, self._change = (frames - 1) * self._change, score / frames
        if self._shot_start is None:
            self._shot_start = pts
        elif score - explained >= THRESHOLD and pts - self._shot_start >= self._shortest_pts:
            self._shot_start = pts
            return True
        return False
