"""Pictures that somebody searches by: looked at before they are decoded, refused with a reason."""

import io
from pathlib import Path
from typing import Any, Final

from siglip_pipeline.errors import QueryError
from siglip_pipeline.search.picture_formats import picture_format

MAX_PIXELS: Final = 16_384 * 8_704
"""As large as a frame of a video may be."""


class PictureTooLargeError(QueryError):
    """The picture's header promises more pixels than are decoded."""


def read_picture(image: Path | bytes, *, max_pixels: float = MAX_PIXELS) -> Any:
    """The picture as upright RGB, a :class:`PIL.Image.Image`.

    Args:
        image: a file, or its bytes.
        max_pixels: a larger one is refused by its header: a small file may hold a huge picture.

    Raises:
        PictureTooLargeError: it has more pixels.
        QueryError: a file is missing or is not a picture that can be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = f"the file ({len(image):,} bytes)" if isinstance(image, bytes) else str(image)
    data = image if isinstance(image, bytes) else _contents(image)
    format = picture_format(data, name)
    try:
        with Image.open(io.BytesIO(data), "r", (format,)) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise PictureTooLargeError(
                    f"the picture has {width} x {height} pixels; at most {max_pixels / 1e6:g} "
                    "million are allowed: send a smaller one"
                )
            return ImageOps.exif_transpose(picture).convert("RGB")
    except QueryError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureTooLargeError("the picture has too many pixels: send a smaller one") from error
    except Exception as error:  # what damaged files make decoders raise is not documented
        # Pillow's own words for this one are an object of Python.
        what = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise QueryError(
            f"{name} is a damaged or cut off {format} picture{what}: give the whole file"
        ) from error


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise QueryError(f"{path}: no such file") from error
    except OSError as error:
        raise QueryError(f"{path} cannot be read: {error.strerror}") from error
