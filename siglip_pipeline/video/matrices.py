"""Convert colour matrices that FFmpeg's scaler does not know to RGB.

Sources: ITU-T H.273 (07/2024), 8.3; ITU-R BT.2100-2, table 7 (ICtCp); BT.2020-2, table 4 (constant
luminance).
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.video.tone import hlg_to_scene, nits_to_pq, pq_to_nits, scene_to_hlg

Floats = NDArray[np.float64]

YCGCO: Final = 8
BT2020_CONSTANT: Final = 10
DERIVED: Final = 12
ICTCP: Final = 14
OWN: Final = frozenset({YCGCO, BT2020_CONSTANT, DERIVED, ICTCP})
"""The matrices that this module converts: AVCOL_SPC_* of libavutil/pixfmt.h, equal to H.273."""

UNKNOWN: Final = {
    3: "reserved",
    11: "SMPTE ST 2085",
    13: "constant luminance by primaries",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
"""Names of the matrices that are not converted."""
LARGEST_KNOWN: Final = 14

_PQ, _HLG = 16, 18

_CHROMATICITIES: Final = {
    1: (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, 0.3127, 0.3290),
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, 0.3127, 0.3290),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, 0.3127, 0.3290),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
}
"""Red, green, blue and white in x and y, by AVCOL_PRI_* (H.273, table 2)."""

_LMS_OF_RGB: Final = np.array([[1688, 2146, 262], [683, 2951, 462], [99, 309, 3688]]) / 4096
_ICTCP_OF_LMS: Final = {
    _PQ: np.array([[2048, 2048, 0], [6610, -13613, 7003], [17933, -17390, -543]]) / 4096,
    _HLG: np.array([[2048, 2048, 0], [3625, -7465, 3840], [9500, -9212, -288]]) / 4096,
}


def to_rgb(
    codes_HWC: NDArray[np.uint16],
    *,
    matrix: int,
    primaries: int,
    transfer: int,
    full_range: bool,
    bits: int,
) -> NDArray[np.uint16]:
    """Return full-range RGB in 16 bits; the transfer does not change.

    Args:
        codes_HWC: luma and two chromas in 16 bits, as the scaler widens them.
        matrix: one of OWN.
        primaries: AVCOL_PRI_*.
        transfer: AVCOL_TRC_*.
        full_range: whether codes use all values.
        bits: of a sample as it was coded.
    """
    y, u, v = np.moveaxis(codes_HWC.astype(np.float64), 2, 0)
    if full_range:
        chroma = ((1 << bits) - 1) << (16 - bits)
        y, u, v = y / 65535, (u - 32768) / chroma, (v - 32768) / chroma
    else:
        span = 219 if matrix == YCGCO else 224  # sums of RGB that is quantised already
        y, u, v = (y / 256 - 16) / 219, (u / 256 - 128) / span, (v / 256 - 128) / span
    if matrix == YCGCO:
        rgb = np.stack([y - u + v, y + u, y - u - v], axis=2)
    elif matrix == ICTCP:
        rgb = _of_ictcp(np.stack([y, u, v], axis=2), transfer)
    elif matrix == BT2020_CONSTANT:
        rgb = _of_constant_luminance(y, u, v)
    else:
        rgb = _of_luma(y, u, v, *luma_of_primaries(primaries))
    return np.asarray(np.rint(np.clip(rgb, 0, 1) * 65535), np.uint16)


def warning_of(matrix: int) -> str | None:
    """Return a warning about a matrix that is not converted; None for others."""
    if matrix <= LARGEST_KNOWN and matrix not in UNKNOWN:
        return None
    name = UNKNOWN.get(matrix, "unassigned")
    return f"colours are approximate: colour matrix {matrix} ({name}) is not known here"


def luma_of_primaries(primaries: int) -> tuple[float, float]:
    """Return the weights of red and blue in luma (H.273, equations 32 to 37)."""
    x_y = np.array(_CHROMATICITIES.get(primaries, _CHROMATICITIES[1])).reshape(4, 2)
    xyz = np.column_stack([x_y, 1 - x_y.sum(axis=1)]) / x_y[:, 1:]  # each with luminance one
    weights = np.linalg.solve(xyz[:3].T, xyz[3])
    return float(weights[0]), float(weights[2])


def _of_luma(y: Floats, u: Floats, v: Floats, red: float, blue: float) -> Floats:
    r = y + 2 * (1 - red) * v
    b = y + 2 * (1 - blue) * u
    return np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], axis=2)


def _of_constant_luminance(y: Floats, u: Floats, v: Floats) -> Floats:
    r = y + np.where(v <= 0, 1.7184, 0.9936) * v
    b = y + np.where(u <= 0, 1.9404, 1.5816) * u
    light = (_light(y) - 0.2627 * _light(r) - 0.0593 * _light(b)) / 0.6780
    return np.stack([r, _code(light), b], axis=2)


def _light(code: Floats) -> Floats:
    """Convert code values to light: the inverse of BT.2020's transfer."""
    code = np.clip(code, 0, 1)
    return np.where(code < 4.5 * 0.0181, code / 4.5, ((code + 0.0993) / 1.0993) ** (1 / 0.45))


def _code(light: Floats) -> Floats:
    light = np.clip(light, 0, 1)
    return np.where(light < 0.0181, 4.5 * light, 1.0993 * light**0.45 - 0.0993)


def _of_ictcp(ictcp_HWC: Floats, transfer: int) -> Floats:
    of_lms: Any = _ICTCP_OF_LMS[_HLG if transfer == _HLG else _PQ]
    lms = np.clip(ictcp_HWC @ np.linalg.inv(of_lms).T, 0, 1)
    light = hlg_to_scene(lms) if transfer == _HLG else pq_to_nits(lms)
    rgb = np.maximum(light @ np.linalg.inv(_LMS_OF_RGB).T, 0)
    return scene_to_hlg(rgb) if transfer == _HLG else nits_to_pq(rgb)
