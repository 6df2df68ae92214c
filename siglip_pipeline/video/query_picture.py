"""In a decoding child: a picture that somebody searches by."""

from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from siglip_pipeline.errors import PictureTooLargeError, QueryError
from siglip_pipeline.records import RgbArray


def decode_picture(file: BinaryIO, *, name: str, format: str, max_pixels: float) -> RgbArray:
    """The picture as upright RGB [H, W, 3].

    Args:
        file: an encoded picture.
        name: what messages call it.
        format: Pillow's name of what it is; no other reader looks at it.
        max_pixels: a larger one is refused by its header: a small file may hold a huge picture.

    Raises:
        PictureTooLargeError: it has more pixels.
        QueryError: it is damaged.
    """
    try:
        with Image.open(file, formats=(format,)) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise PictureTooLargeError(
                    f"the picture has {width} x {height} pixels; at most {max_pixels / 1e6:g} "
                    "million are allowed: send a smaller one"
                )
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"), np.uint8, order="C")
    except (QueryError, MemoryError):
        raise
    except Exception as error:  # what damaged files make decoders raise is not documented
        # Pillow's own words for this one are an object of Python.
        what = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise QueryError(
            f"{name} is a damaged or cut off {format} picture{what}: give the whole file"
        ) from error
