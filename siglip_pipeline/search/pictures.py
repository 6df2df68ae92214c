"""Pictures that somebody searches by: looked at before they are decoded, refused with a reason."""

import io
from pathlib import Path
from typing import Any, Final

from siglip_pipeline.errors import QueryError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF")
"""What is accepted; Pillow also reads formats that run other programs, or nobody has."""

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

    name = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
    try:
        opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, "r", FORMATS)
        with opened as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise PictureTooLargeError(
                    f"the picture has {width} x {height} pixels; at most {max_pixels / 1e6:g} "
                    "million are allowed: send a smaller one"
                )
            return ImageOps.exif_transpose(picture).convert("RGB")
    except QueryError:
        raise
    except FileNotFoundError as error:
        raise QueryError(f"{name}: no such file") from error
    except Image.DecompressionBombError as error:
        raise PictureTooLargeError("the picture has too many pixels: send a smaller one") from error
    except UnidentifiedImageError as error:
        raise QueryError(
            f"{name} is not a picture that can be read; give one of {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # what damaged files make decoders raise is not documented
        raise QueryError(f"{name} is a damaged picture and cannot be read: {error}") from error
