"""Decode pictures to pixels; decode a JPEG at the smallest size that suffices.

Shapes: H and W pixels.
"""

import contextlib
import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from siglip_pipeline.siglip.recipe import Recipe, target_size

ImageLike = Image.Image | bytes | NDArray[np.uint8]

DRAFT_MARGIN = 3
"""A JPEG is decoded at 1/2, 1/4 or 1/8 of its size only if the result is at least this many times
the target. At 3 vectors have a cosine of 0.9999 to those of a full decode."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats of pictures that Python callers pass as bytes. Uploads and query pictures can have more
formats, which only decoding children read: `siglip_pipeline.video.picture_formats.FORMATS`."""

_EXIF_ORIENTATION = 0x0112


def decode(image: ImageLike, recipe: Recipe) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the pixels [H, W, 3] of a picture, and its full size (height, width).

    Transparency is composited on white, and the EXIF orientation is applied.

    Raises:
        ValueError: the picture cannot be read, or the array is not uint8 [H, W, 3].
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
        return image, (image.shape[0], image.shape[1])
    try:
        if isinstance(image, bytes):
            with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
                return _read(image, opened, recipe)
        return np.array(_rgb(image)), (image.height, image.width)
    except UnidentifiedImageError as error:  # its message has an address in memory
        raise ValueError("not a picture that can be read (of no known format)") from error
    # Pillow's readers raise SyntaxError, struct.error and more on damaged files.
    except Exception as error:
        raise ValueError(f"not a picture that can be read ({error})") from error


def _read(
    data: bytes, opened: Image.Image, recipe: Recipe
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    turned = opened.getexif().get(_EXIF_ORIENTATION, 1) if opened.info.get("exif") else 1
    width, height = opened.size
    size = (width, height) if turned in (5, 6, 7, 8) else (height, width)
    if opened.format == "JPEG":
        target_height, target_width = target_size(*size, recipe)
        if turned in (5, 6, 7, 8):
            target_height, target_width = target_width, target_height
        room = min(width // target_width, height // target_height) // DRAFT_MARGIN
        fraction = next((f for f in (8, 4, 2) if f <= room), 1)
        if turned == 1 and opened.mode == "RGB":
            # The same library and the same pixels as with Pillow, a third faster without its
            # buffer. Pillow may read what simplejpeg refuses.
            with contextlib.suppress(ValueError):
                pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                    data, "RGB", min_height=-(-height // fraction), min_width=-(-width // fraction)
                )
                return pixels, size
        opened.draft("RGB", (width // fraction, height // fraction))
    upright = ImageOps.exif_transpose(opened) if turned != 1 else opened
    return np.array(_rgb(upright)), size


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
