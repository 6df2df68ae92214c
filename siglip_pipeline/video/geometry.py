"""The geometry that turns stored pixels into an upright picture with square pixels."""

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_ASPECT_CHANGE: Final = 16
"""A sample aspect ratio beyond 16:1 or 1:16 is a damaged header and is not applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayGeometry:
    """Coded size, pixel shape and orientation of a video."""

    coded_width: int
    coded_height: int
    sample_aspect_ratio: Fraction = Fraction(1)
    rotation_degrees: int = 0
    """Clockwise, applied after the mirroring."""
    mirrored: bool = False
    """Left and right are swapped before rotating."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height with square pixels, before rotation."""
        ratio = self.sample_aspect_ratio
        # Enlarge one side instead of shrinking the other, so that no line of pixels is lost.
        if ratio >= 1:
            return max(1, round(self.coded_width * ratio)), self.coded_height
        return self.coded_width, max(1, round(self.coded_height / ratio))

    @property
    def display_size(self) -> tuple[int, int]:
        """Width and height as a player shows them."""
        width, height = self.upright_size
        return (height, width) if self.rotation_degrees in (90, 270) else (width, height)

    def fitted_size(self, longest_side: int | None) -> tuple[int, int]:
        """Return width and height to scale to, before rotation.

        The longest side is at most ``longest_side``, and never larger than the video's.
        """
        width, height = self.upright_size
        if longest_side is None or max(width, height) <= longest_side:
            return width, height
        scale = Fraction(longest_side, max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def orient(self, pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Mirror and rotate a picture the way a player does."""
        if self.mirrored:
            pixels_HWC = pixels_HWC[:, ::-1]
        return np.ascontiguousarray(np.rot90(pixels_HWC, k=-(self.rotation_degrees // 90)))


def usable_sample_aspect_ratio(ratio: Fraction | None) -> Fraction:
    """Return the ratio to apply: 1 if it is missing or implausible."""
    if not ratio or ratio <= 0:
        return Fraction(1)
    if not Fraction(1, MAX_ASPECT_CHANGE) <= ratio <= MAX_ASPECT_CHANGE:
        return Fraction(1)
    return ratio


def orientation_of(matrix: bytes | None) -> tuple[int, bool]:
    """Return the clockwise rotation in degrees, and whether to mirror left and right first.

    The matrix is FFmpeg's AV_FRAME_DATA_DISPLAYMATRIX, nine 32-bit integers (libavutil/display.h),
    of which a, b, c, d map the axes:  x' = a·x + c·y,  y' = b·x + d·y. A mirrored picture has a
    negative determinant. Angles are rounded to multiples of 90 degrees.
    """
    if matrix is None or len(matrix) < 36:
        return 0, False
    a, b, _, c, d = (value / 65536 for value in struct.unpack("<5i", matrix[:20]))
    if a * d - b * c == 0:
        return 0, False
    mirrored = a * d - b * c < 0
    if mirrored:  # remove the flip of x, which is applied first
        a, b = -a, -b
    degrees = math.degrees(math.atan2(b, a))
    return round(degrees / 90) * 90 % 360, mirrored
