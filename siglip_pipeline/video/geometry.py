"""The geometry that turns stored pixels into an upright picture with square pixels."""

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_ASPECT_CHANGE: Final = 16
"""A sample aspect ratio beyond 16:1 or 1:16 is a damaged header and is not applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayGeometry:
    """Coded size, pixel shape and orientation of a video."""

    coded_width: int
    coded_height: int
    sample_aspect_ratio: Fraction = Fraction(1)
    rotation_degrees: int = 0
    """Clockwise, applied after the mirroring; 0 to 359."""
    mirrored: bool = False
    """Left and right are swapped before rotating."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height with square pixels, before rotation."""
        ratio = self.sample_aspect_ratio
        # Enlarge one side instead of shrinking the other, so that no line of pixels is lost.
        if ratio >= 1:
            return round(self.coded_width * ratio), self.coded_height
        return self.coded_width, round(self.coded_height / ratio)

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
        """Mirror and rotate a picture with square pixels the way a player does."""
        if self.rotation_degrees % 90:
            return self._tilted(pixels_HWC)
        if self.mirrored:
            pixels_HWC = pixels_HWC[:, ::-1]
        return np.ascontiguousarray(np.rot90(pixels_HWC, k=-(self.rotation_degrees // 90)))

    def _tilted(self, pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Rotate as the ffmpeg program does: within the size, on black, by the stored pixels.

        Corners are cut off. Pixels become square after the rotation, so it shears the picture.
        """
        angle, ratio = math.radians(self.rotation_degrees), float(self.sample_aspect_ratio)
        cosine, across, down = math.cos(angle), math.sin(angle) * ratio, -math.sin(angle) / ratio
        x, y = pixels_HWC.shape[1] / 2, pixels_HWC.shape[0] / 2
        tilted = Image.fromarray(pixels_HWC).transform(
            (pixels_HWC.shape[1], pixels_HWC.shape[0]),
            Image.Transform.AFFINE,
            (
                *(cosine, across, x - cosine * x - across * y),
                *(down, cosine, y - down * x - cosine * y),
            ),
            Image.Resampling.BILINEAR,
        )
        return np.array(tilted)


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
    negative determinant. As in the ffmpeg program, angles are rounded to degrees, scale and shear
    are not applied, a tilted picture (no multiple of 90 degrees) is not mirrored, and one that is
    tilted by 1 degree clockwise is shown as it is.
    """
    if matrix is None or len(matrix) < 36:
        return 0, False
    a, b, _, c, d = struct.unpack("<5i", matrix[:20])
    width, height = math.hypot(a, c), math.hypot(b, d)
    if not width or not height:
        return 0, False
    degrees = round(math.degrees(math.atan2(b / height, a / width))) % 360
    if degrees == 1:
        return 0, False
    if degrees % 90 or a * d - b * c >= 0:
        return degrees, False
    return (degrees + 180) % 360, True  # without the flip of x, which is applied first
