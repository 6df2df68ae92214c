"""Pictures that somebody searches by: read in a process of their own, refused with a reason."""

import functools
from pathlib import Path
from typing import Any, Final

from siglip_pipeline.errors import PictureTooLargeError, QueryError
from siglip_pipeline.video.pictures import MAX_PIXELS, PictureDecoder

__all__ = ["MAX_PIXELS", "PictureTooLargeError", "read_picture"]

SECONDS: Final = 5.0


def read_picture(image: Path | bytes, *, max_pixels: float = MAX_PIXELS) -> Any:
    """The picture as upright RGB, a :class:`PIL.Image.Image`.

    Args:
        image: a file, or its bytes.
        max_pixels: a larger one is refused by its header: a small file may hold a huge picture.

    Raises:
        PictureTooLargeError: it has more pixels.
        PictureTimeoutError: decoding it took more than five seconds.
        QueryError: a file is missing or is not a picture that can be read.
    """
    from PIL import Image

    name = f"the file ({len(image):,} bytes)" if isinstance(image, bytes) else str(image)
    data = image if isinstance(image, bytes) else _contents(image)
    pixels_HWC = _decoder().decode(data, name=name, max_pixels=max_pixels, seconds=SECONDS)
    return Image.fromarray(pixels_HWC)


@functools.cache
def _decoder() -> PictureDecoder:
    """One for the whole process: its children are started when they are needed."""
    return PictureDecoder()


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise QueryError(f"{path}: no such file") from error
    except OSError as error:
        raise QueryError(f"{path} cannot be read: {error.strerror}") from error
