"""Convert decoded frames to upright RGB with square pixels, to JPEG, and to a perceptual hash."""

import io
from typing import Any, Final

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.geometry import DisplayGeometry
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
    10: Colorspace.BT2020,
}
_KNOWN_RANGES: Final = {1: ColorRange.MPEG, 2: ColorRange.JPEG}

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
    """

    def __init__(self, *, longest_side: int | None) -> None:
        self._longest_side = longest_side
        self._reformatter = VideoReformatter()
        self._tone: tuple[tuple[int, int], ToneMapper | None] | None = None

    def rgb(self, frame: VideoFrame, geometry: DisplayGeometry) -> RgbArray:
        """Return pixels [H, W, C] in BT.709 RGB, full range."""
        if self._tone is None or self._tone[0] != (frame.color_trc, frame.color_primaries):
            description = (frame.color_trc, frame.color_primaries)
            self._tone = (description, ToneMapper.for_frame(frame))
        mapper = self._tone[1]
        size = geometry.fitted_size(self._longest_side)
        pixels = convert(
            self._reformatter,
            frame,
            size,
            "rgb24" if mapper is None else "rgb48le",
            interpolation=SCALING,
        )
        if mapper is not None:
            pixels = mapper.apply(pixels)
        return geometry.orient(pixels)


def convert(
    reformatter: VideoReformatter,
    frame: VideoFrame,
    size: tuple[int, int],
    pixel_format: str,
    *,
    interpolation: int,
) -> NDArray[Any]:
    """Return pixels [H, W, C] in full-range RGB, scaled; transfer and primaries do not change."""
    if frame.color_range not in _KNOWN_RANGES:
        frame.color_range = 0  # unspecified; swscale refuses unknown values
    rgb = reformatter.reformat(
        frame,
        width=size[0],
        height=size[1],
        format=pixel_format,
        interpolation=interpolation,
        src_colorspace=_KNOWN_MATRICES.get(frame.colorspace, Colorspace.DEFAULT),
        # Otherwise swscale treats a full-range yuv420p (VP9, AV1, HEVC) as limited.
        src_color_range=_KNOWN_RANGES.get(frame.color_range, ColorRange.UNSPECIFIED),
        dst_color_range=ColorRange.JPEG,
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
