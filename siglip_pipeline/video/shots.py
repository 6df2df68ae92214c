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
from PIL import Image

from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.picture import convert

THRESHOLD: Final = 27.0
"""ContentDetector's default, on the scale of 8-bit values."""

SHORTEST_SHOT_SECONDS: Final = Fraction(6, 10)
"""PySceneDetect's default. It prevents shots of a few frames at flashes."""

WIDTH: Final = 64
MAX_HEIGHT: Final = 128

HUES: Final = 255
"""Of Pillow's circle of hues."""


class ContentScore:
    """Tells how much each frame differs from the one before."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._previous: RgbArray | None = None

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


def hue_saturation_value(pixels_HWC: RgbArray) -> RgbArray:
    """Return hue, saturation and value [H, W, 3], each from 0 to 255, as Pillow rounds them."""
    return np.asarray(Image.fromarray(pixels_HWC).convert("HSV"))


def content_difference(first_HWC: RgbArray, second_HWC: RgbArray) -> float:
    """Return the mean over hue, saturation and value of the mean absolute change.

    A full circle of hue counts 180, as in OpenCV.
    """
    change_HWC = np.maximum(first_HWC, second_HWC) - np.minimum(first_HWC, second_HWC)
    hue_HW = change_HWC[..., 0].copy()
    total = int(change_HWC.sum()) - int(hue_HW.sum())
    turns = int(np.minimum(hue_HW, HUES - hue_HW).sum())
    return (total + turns * 180 / HUES) / change_HWC.size


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
