"""Convert decoded frames to upright RGB with square pixels, to JPEG, and to a perceptual hash."""

import io
from typing import Any, Final

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.dolby_vision import WARNING as DOLBY_WARNING
from siglip_pipeline.video.dolby_vision import is_dolby_only
from siglip_pipeline.video.geometry import DisplayGeometry
from siglip_pipeline.video.matrices import OWN, to_rgb, warning_of
from siglip_pipeline.video.tone import ToneMapper

SCALING: Final = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)

# AVCOL_SPC_* of libavutil/pixfmt.h, equal to ITU-T H.273. swscale refuses frames with other values,
# which damaged headers can hold. Unspecified is BT.601, as in every FFmpeg program.
_KNOWN_MATRICES: Final = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.SMPTE170M,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
_DEFAULT_MATRIX: Final = Colorspace.DEFAULT
_UNKNOWN_RANGE: Final = ColorRange.UNSPECIFIED
_FULL_RANGE: Final = ColorRange.JPEG
_KNOWN_RANGES: Final = {1: ColorRange.MPEG, 2: ColorRange.JPEG}

_SWAPPED: Final = ("565be", "555be")
"""Formats of QuickTime's thousands of colours. On the way to other packed formats of the same size,
swscale 9 reads their bytes in the wrong order."""

HASH_SIDE: Final = 32
HASH_LOW: Final = 8

# DCT-II basis: rows are frequencies.
_DCT: Final = np.cos(
    np.pi / HASH_SIDE * np.outer(np.arange(HASH_LOW + 1), np.arange(HASH_SIDE) + 0.5)
).astype(np.float32)


class PictureMaker:
    """Turns frames of one video into upright RGB pictures.

    Args:
        longest_side: pictures are shrunk to this, never enlarged; None keeps the size.
        codec: for uncompressed video, where many programs write zeros as the fourth byte, the byte
            counts as opacity only if a pixel has another value.
    """

    def __init__(self, *, longest_side: int | None, codec: str = "") -> None:
        self._longest_side = longest_side
        self._may_be_padding = codec == "rawvideo"
        self._reformatter = VideoReformatter()
        self._tone: tuple[tuple[int, int], ToneMapper | None] | None = None
        self.warnings: dict[str, None] = {}
        """Warnings about colours, in the order of their first frames."""

    def rgb(self, frame: VideoFrame, geometry: DisplayGeometry) -> RgbArray:
        """Return full-range BT.709 RGB [H, W, C], on white where pixels are transparent."""
        self._heed(frame)
        size = geometry.fitted_size(self._longest_side)
        alpha_HW = self._alpha(frame)
        if alpha_HW is None:
            return geometry.orient(self._pixels(frame, size))
        # Before scaling, which would mix the colours of transparent pixels into others.
        laid = on_white(self._pixels(frame, (frame.width, frame.height)), alpha_HW)
        opaque = VideoFrame.from_ndarray(laid, format="rgb24")
        return geometry.orient(
            convert(self._reformatter, opaque, size, "rgb24", interpolation=SCALING)
        )

    def _heed(self, frame: VideoFrame) -> None:
        if self._tone is None or self._tone[0] != (frame.color_trc, frame.color_primaries):
            description = (frame.color_trc, frame.color_primaries)
            self._tone = (description, ToneMapper.for_frame(frame))
        if is_dolby_only(frame):
            self.warnings[DOLBY_WARNING] = None
        if (warning := warning_of(frame.colorspace)) and not frame.format.is_rgb:
            self.warnings[warning] = None

    def _pixels(self, frame: VideoFrame, size: tuple[int, int]) -> RgbArray:
        assert self._tone is not None
        mapper = self._tone[1]
        is_yuv = not frame.format.is_rgb and len(frame.format.components) >= 3
        if is_yuv and frame.colorspace in OWN:
            codes = _by_own_matrix(self._reformatter, frame, size)
            return mapper.apply(codes) if mapper else (codes // 257).astype(np.uint8)
        pixel_format = "rgb24" if mapper is None else "rgb48le"
        pixels = convert(self._reformatter, frame, size, pixel_format, interpolation=SCALING)
        return pixels if mapper is None else mapper.apply(pixels)

    def _alpha(self, frame: VideoFrame) -> NDArray[np.uint8] | None:
        """Return opacity [H, W], not scaled; None if the frame is opaque."""
        if not any(c.is_alpha for c in frame.format.components) and not frame.format.has_palette:
            return None
        size = frame.width, frame.height
        rgba = convert(self._reformatter, frame, size, "rgba", interpolation=SCALING)
        alpha_HW: NDArray[np.uint8] = rgba[..., 3]
        is_opaque = alpha_HW.min() == 255 or (self._may_be_padding and alpha_HW.max() == 0)
        return None if is_opaque else alpha_HW


def on_white(pixels_HWC: RgbArray, alpha_HW: NDArray[np.uint8]) -> RgbArray:
    """Composite a picture on white, by code values, as browsers do."""
    darkness = (255 - pixels_HWC.astype(np.uint16)) * alpha_HW[..., None]
    return (255 - (darkness + 127) // 255).astype(np.uint8)


def _by_own_matrix(
    reformatter: VideoReformatter, frame: VideoFrame, size: tuple[int, int]
) -> NDArray[np.uint16]:
    """Return full-range RGB [H, W, C] in 16 bits, of a frame in a matrix that swscale lacks."""
    matrix, frame.colorspace = frame.colorspace, 2  # what says nothing is left as it is
    full_range = _KNOWN_RANGES.get(frame.color_range) == ColorRange.JPEG
    widened = reformatter.reformat(
        frame,
        width=size[0],
        height=size[1],
        format="yuv444p16le",
        interpolation=SCALING,
        src_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
        threads=1,
    )
    frame.colorspace = matrix
    return to_rgb(
        np.asarray(widened.to_ndarray()),
        matrix=matrix,
        primaries=frame.color_primaries,
        transfer=frame.color_trc,
        full_range=full_range,
        bits=frame.format.components[0].bits,
    )


def convert(
    reformatter: VideoReformatter,
    frame: VideoFrame,
    size: tuple[int, int],
    pixel_format: str,
    *,
    interpolation: int,
) -> NDArray[Any]:
    """Return pixels [H, W, C] in full-range RGB, scaled; transfer and primaries do not change."""
    if frame.format.name.endswith(_SWAPPED):
        frame = reformatter.reformat(frame, format="gbrp", threads=1)
    if frame.color_range not in _KNOWN_RANGES:
        frame.color_range = 0  # unspecified; swscale refuses unknown values
    rgb = reformatter.reformat(
        frame,
        width=size[0],
        height=size[1],
        format=pixel_format,
        interpolation=interpolation,
        src_colorspace=_KNOWN_MATRICES.get(frame.colorspace, _DEFAULT_MATRIX),
        # Otherwise swscale treats a full-range yuv420p (VP9, AV1, HEVC) as limited.
        src_color_range=_KNOWN_RANGES.get(frame.color_range, _UNKNOWN_RANGE),
        dst_color_range=_FULL_RANGE,
        threads=1,
    )
    return np.asarray(rgb.to_ndarray())


def encode_jpeg(pixels_HWC: RgbArray, *, quality: int) -> bytes:
    """Return an RGB picture as JPEG, with chroma at half resolution, like most cameras."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def perceptual_hash(pixels_HWC: RgbArray) -> int:
    """Return 64 bits that change little when a picture changes little.

    The pHash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions"
    (2010): of the 32x32 luma picture's DCT, the 8x8 lowest frequencies without the constant
    row and column; a bit is set if its frequency is above their median.
    """
    luma = (
        Image.fromarray(pixels_HWC)
        .convert("L")
        .resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX)
    )
    frequencies = _DCT @ np.asarray(luma, np.float32) @ _DCT.T
    low = frequencies[1:, 1:].ravel()
    bits = np.packbits(low > np.median(low))
    return int.from_bytes(bits.tobytes(), "big")


def hash_distance(first: int, second: int) -> int:
    """Return the number of differing bits of two perceptual hashes, 0 to 64."""
    return (first ^ second).bit_count()
