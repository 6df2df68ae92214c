"""Convert HDR and wide-gamut pictures to BT.709.

A picture in PQ or HLG looks grey and flat if its code values are used as BT.709's. This module
converts code values to light (nits), rolls highlights off to the peak of an SDR display, converts
colours to BT.709's gamut, and converts the light back to code values. libswscale can also convert
the transfer, but clips everything above 203 nits.

Sources: ITU-R BT.2100-2 tables 4 (PQ) and 5 (HLG); BT.2390-10 section 5.4.1 (EETF, the roll-off);
BT.2408-7 (reference white at 203 nits); BT.2087-0 (BT.2020 to BT.709); BT.1886 (SDR display).
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from siglip_pipeline.video.side_data import side_data

Transfer = Literal["pq", "hlg", "sdr", "linear"]
Primaries = Literal["bt2020", "p3", "bt709"]

# AVCOL_TRC_* and AVCOL_PRI_* of libavutil/pixfmt.h, that is of ITU-T H.273.
_TRANSFERS: Final[dict[int, Transfer]] = {16: "pq", 18: "hlg"}
_LINEAR: Final = 8
_FLOATS: Final = ("f16le", "f16be", "f32le", "f32be")
"""Ends of the pixel formats of light as it is, as in OpenEXR. Integers that are called linear are
mostly coded for a display."""
_PRIMARIES: Final[dict[int, Primaries]] = {9: "bt2020", 11: "p3", 12: "p3"}
"""DCI-P3 (11) has the primaries of Display P3 (12) and another white; white stays white here."""

REFERENCE_WHITE_NITS: Final = 203.0
"""SDR's white in HDR (BT.2408); highlights are rolled off to this peak."""
DEFAULT_PEAK_NITS: Final = 1000.0
"""Peak of a source that declares none; also that of HLG's nominal display."""
SDR_GAMMA: Final = 2.4
HLG_GAMMA: Final = 1.2
HLG_LUMA: Final = np.array([0.2627, 0.6780, 0.0593], np.float32)

TO_BT709: Final[dict[Primaries, NDArray[np.float32]]] = {
    "bt2020": np.array(
        [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
        np.float32,
    ),
    # From the chromaticities of SMPTE EG 432-1 and BT.709, both with D65 white.
    "p3": np.array(
        [[1.2249, -0.2249, 0.0], [-0.0421, 1.0421, 0.0], [-0.0196, -0.0786, 1.0983]], np.float32
    ),
}

_STEPS: Final = 4096
"""Entries of the tables over light, evenly spaced in its square root."""


def pq_to_nits(code: NDArray[Any]) -> NDArray[np.float64]:
    """Convert code values in [0, 1] to nits: PQ's EOTF (BT.2100 table 4)."""
    power = np.power(np.asarray(code, np.float64), 32 / 2523)
    linear = np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)
    return np.asarray(10_000 * np.power(linear, 16384 / 2610), np.float64)


def nits_to_pq(nits: NDArray[Any] | float) -> NDArray[np.float64]:
    """Convert nits to code values in [0, 1]: PQ's inverse EOTF (BT.2100 table 4)."""
    power = np.power(np.asarray(nits, np.float64) / 10_000, 2610 / 16384)
    return np.asarray(
        np.power((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power), 2523 / 32),
        np.float64,
    )


def hlg_to_scene(code: NDArray[Any]) -> NDArray[np.float64]:
    """Convert code values to scene light, both in [0, 1]: HLG's inverse OETF (BT.2100 table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    code = np.asarray(code, np.float64)
    light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return np.asarray(light, np.float64)


def scene_to_hlg(light: NDArray[Any]) -> NDArray[np.float64]:
    """Convert scene light to code values, both in [0, 1]: HLG's OETF (BT.2100 table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.asarray(light, np.float64)
    bright = a * np.log(np.maximum(12 * light - b, 1e-9)) + c
    return np.asarray(np.where(light <= 1 / 12, np.sqrt(3 * light), bright), np.float64)


def srgb_of_light(light: NDArray[Any]) -> NDArray[Any]:
    """Convert light to code values, both in [0, 1]: the curve of sRGB (IEC 61966-2-1)."""
    curved = 1.055 * light ** np.float32(1 / 2.4) - np.float32(0.055)
    return np.where(light <= 0.0031308, light * np.float32(12.92), curved)


def roll_off(nits: NDArray[Any], *, peak_nits: float, target_nits: float) -> NDArray[np.float64]:
    """Map light of a display with ``peak_nits`` to one with ``target_nits``: BT.2390's EETF.

    Light below the knee does not change; above it, a Hermite spline in PQ ends at the target. Both
    displays have a black level of zero.
    """
    nits = np.asarray(nits, np.float64)
    if peak_nits <= target_nits:
        return np.asarray(np.minimum(nits, target_nits), np.float64)
    peak = float(nits_to_pq(peak_nits))
    code = np.minimum(nits_to_pq(nits) / peak, 1.0)
    target = float(nits_to_pq(target_nits)) / peak
    knee = max(0.0, 1.5 * target - 0.5)
    t = np.clip((code - knee) / (1 - knee), 0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * target
    )
    return pq_to_nits(np.where(code < knee, code, spline) * peak)


@dataclass(frozen=True)
class ToneMapper:
    """Maps 16-bit RGB of one colour description to 8-bit RGB in BT.709.

    Its tables are computed on first use.
    """

    transfer: Transfer
    primaries: Primaries
    peak_nits: float = DEFAULT_PEAK_NITS

    @classmethod
    def for_codes(
        cls, transfer_code: int, primaries_code: int, peak_nits: float = DEFAULT_PEAK_NITS
    ) -> "ToneMapper | None":
        """Return the mapper for colours that codes of ITU-T H.273 describe; None for BT.709."""
        transfer = _TRANSFERS.get(transfer_code, "sdr")
        primaries = _PRIMARIES.get(primaries_code, "bt709")
        if transfer == "sdr":
            return cls("sdr", primaries) if primaries != "bt709" else None
        # HDR without primaries has those of BT.2020, the only ones in BT.2100.
        return cls(transfer, "p3" if primaries == "p3" else "bt2020", peak_nits)

    @classmethod
    def for_frame(cls, frame: VideoFrame) -> "ToneMapper | None":
        """Return the mapper for a frame; None if it needs none."""
        if frame.color_trc == _LINEAR and frame.format.name.endswith(_FLOATS):
            return cls("linear", _PRIMARIES.get(frame.color_primaries, "bt709"))
        is_pq = _TRANSFERS.get(frame.color_trc) == "pq"
        peak_nits = _peak_nits(frame) if is_pq else DEFAULT_PEAK_NITS
        return cls.for_codes(frame.color_trc, frame.color_primaries, peak_nits)

    def apply(self, codes_HWC: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Map a picture [H, W, C] of full-range 16-bit code values."""
        light_HWC = self._light_of_code[codes_HWC]
        if self.transfer == "hlg":
            # OOTF of BT.2100: the display's gamma applies to luminance, which keeps hues.
            luma_HW = light_HWC @ HLG_LUMA
            light_HWC *= np.power(np.maximum(luma_HW, 1e-6), HLG_GAMMA - 1)[..., None]
        if self.transfer in ("pq", "hlg"):
            # Scale by the largest component: no component overflows, and hues stay.
            light_HWC *= self._factor_of_root[_root_index(light_HWC.max(axis=2))][..., None]
        if (matrix := TO_BT709.get(self.primaries)) is not None:
            light_HWC = light_HWC @ matrix.T
        return self._code_of_root[_root_index(light_HWC)]

    @cached_property
    def _light_of_code(self) -> NDArray[np.float32]:
        """Relative light for each 16-bit code: 1.0 is the peak of the source."""
        code = np.arange(65536) / 65535
        if self.transfer == "pq":
            light = np.minimum(pq_to_nits(code) / self.peak_nits, 1.0)
        elif self.transfer == "hlg":
            light = hlg_to_scene(code)
        else:
            light = code if self.transfer == "linear" else code**SDR_GAMMA
        return np.asarray(light, np.float32)

    @cached_property
    def _factor_of_root(self) -> NDArray[np.float32]:
        """Factors for light, by the square root of its largest component.

        The result is relative to the reference white.
        """
        light = np.maximum(np.arange(_STEPS) / (_STEPS - 1), 0.5 / _STEPS) ** 2
        mapped = roll_off(
            light * self.peak_nits, peak_nits=self.peak_nits, target_nits=REFERENCE_WHITE_NITS
        )
        return np.asarray(mapped / REFERENCE_WHITE_NITS / light, np.float32)

    @cached_property
    def _code_of_root(self) -> NDArray[np.uint8]:
        """8-bit codes by the square root of light: the inverse of BT.1886, or sRGB of pictures."""
        root = np.arange(_STEPS) / (_STEPS - 1)
        if self.transfer == "linear":
            return np.asarray(np.rint(255 * srgb_of_light(root**2)), np.uint8)
        return np.asarray(np.rint(255 * root ** (2 / SDR_GAMMA)), np.uint8)


def _root_index(light: NDArray[np.float32]) -> NDArray[np.uint16]:
    root = np.sqrt(np.clip(light, 0, 1))
    return np.asarray(root * (_STEPS - 1) + 0.5).astype(np.uint16)


def _peak_nits(frame: VideoFrame) -> float:
    """Return the peak of the content: MaxCLL, else the mastering display's, else 1000 nits."""
    raw = side_data(frame, "CONTENT_LIGHT_LEVEL")
    if raw is not None and len(raw) >= 4:
        (max_cll,) = struct.unpack("=I", raw[:4])
        if max_cll:
            return _plausible_peak(max_cll)
    raw = side_data(frame, "MASTERING_DISPLAY_METADATA")
    if raw is not None and len(raw) >= 88:
        # AVMasteringDisplayMetadata: 8 rationals of chromaticity, then minimum and maximum.
        numerator, denominator, _, has_luminance = struct.unpack("=4i", raw[72:88])
        if has_luminance and denominator:
            return _plausible_peak(numerator / denominator)
    return DEFAULT_PEAK_NITS


def _plausible_peak(nits: float) -> float:
    return min(max(nits, REFERENCE_WHITE_NITS), 10_000.0)
