"""In a decoding child: a picture that somebody searches by."""

from typing import BinaryIO, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from siglip_pipeline.errors import PictureTooLargeError, QueryError
from siglip_pipeline.video.picture import RgbArray

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is accepted; Pillow also reads formats that run other programs, or nobody has."""


def decode_picture(file: BinaryIO, *, max_pixels: float) -> RgbArray:
    """The picture as upright RGB [H, W, 3].

    Args:
        file: an encoded picture.
        max_pixels: a larger one is refused by its header: a small file may hold a huge picture.

    Raises:
        PictureTooLargeError: it has more pixels.
        QueryError: it is no picture that can be read.
    """
    try:
        with Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise PictureTooLargeError(
                    f"the picture has {width} x {height} pixels; at most {max_pixels / 1e6:g} "
                    "million are allowed: send a smaller one"
                )
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), np.uint8)
    except (QueryError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        size_bytes = file.seek(0, 2)
        raise QueryError(
            f"{size_bytes} bytes is not a picture that can be read; give one of "
            f"{', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # what damaged files make decoders raise is not documented
        raise QueryError(f"the picture is damaged and cannot be read: {error}") from error
