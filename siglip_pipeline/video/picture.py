"""A decoded frame as people see it: upright RGB with square pixels, then JPEG and a hash."""

import io
from typing import Final

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from siglip_pipeline.video.geometry import DisplayGeometry

RgbArray = NDArray[np.uint8]

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

    def rgb(self, frame: VideoFrame, geometry: DisplayGeometry) -> RgbArray:
        """Pixels [H, W, C] in BT.709 RGB, full range."""
        width, height = geometry.fitted_size(self._longest_side)
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
        return geometry.orient(np.asarray(rgb.to_ndarray(), np.uint8))


def encode_jpeg(pixels_HWC: RgbArray, *, quality: int) -> bytes:
    """JPEG bytes of an RGB picture, chroma at half resolution as cameras do."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def perceptual_hash(pixels_HWC: RgbArray) -> int:
    """64 bits that change little when a picture does.

    The pHash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions"
    (2010): of the 32x32 luma picture's DCT, the 8x8 lowest frequencies without the constant
    row and column, each bit saying whether it is above their median.
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
    """Differing bits of two perceptual hashes, 0 to 64."""
    return (first ^ second).bit_count()
