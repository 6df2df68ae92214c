"""Convert pictures of which a PNG tells the gamma and the chromaticities of its display.

PNG specification, third edition, 2025: `gAMA` (11.3.2.2) and `cHRM` (11.3.2.1). Decoders heed them
where no profile, no code points and no `sRGB` precede them.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.tone import srgb_of_light

SRGB: Final = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""x and y of white, red, green and blue."""
SRGB_GAMMA: Final = 1 / 2.2
_ALIKE: Final = 0.005
"""Encoders round: a gamma or a chromaticity that is as near is that of sRGB."""

_BRADFORD: Final = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
"""To the responses of the eye by which a white is adapted to another."""


def in_srgb(
    pixels_HWC: RgbArray, gamma: float | None, chromaticities: Sequence[float] | None
) -> RgbArray:
    """Return RGB [H, W, C] in sRGB; unchanged if it is, or if what is told makes no sense.

    Args:
        pixels_HWC: code values.
        gamma: the exponent of light by which they are coded, such as 1/2.2; None if it is not told.
        chromaticities: x and y of white, red, green and blue; None if they are not told.
    """
    gamma = gamma if gamma and 0.01 < gamma < 10 else SRGB_GAMMA
    told = SRGB if chromaticities is None or len(chromaticities) != len(SRGB) else chromaticities
    if np.allclose([gamma, *told], [SRGB_GAMMA, *SRGB], rtol=0, atol=_ALIKE):
        return pixels_HWC
    try:
        matrix = np.linalg.inv(_to_xyz(SRGB)) @ _to_xyz(told)
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return pixels_HWC
    if not np.isfinite(matrix).all():
        return pixels_HWC
    light_HWC = ((np.arange(256) / 255) ** (1 / gamma)).astype(np.float32)[pixels_HWC]
    light_HWC = np.clip(light_HWC @ matrix.T.astype(np.float32), 0, 1)
    return np.asarray(np.rint(255 * srgb_of_light(light_HWC)), np.uint8)


def _to_xyz(chromaticities: Sequence[float]) -> NDArray[np.float64]:
    """Return the matrix from light in RGB to XYZ, with its white adapted to that of sRGB."""
    white, *primaries = map(_xyz_of, chromaticities[::2], chromaticities[1::2])
    matrix = np.stack(primaries, axis=1)
    matrix = matrix * np.linalg.solve(matrix, white)
    seen = _BRADFORD @ _xyz_of(*SRGB[:2]) / (_BRADFORD @ white)
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(seen) @ _BRADFORD @ matrix)


def _xyz_of(x: float, y: float) -> NDArray[np.float64]:
    """Return the colour of luminance 1 with these chromaticities."""
    return np.array([x / y, 1, (1 - x - y) / y])
