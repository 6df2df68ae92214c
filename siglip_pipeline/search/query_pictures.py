"""Decode the pictures of queries in a child process; refuse what cannot be read."""

import functools
import itertools
from pathlib import Path
from typing import Final

from siglip_pipeline.errors import QueryError
from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.picture_decoder import MAX_PIXELS, PictureDecoder

SECONDS: Final = 5.0

MAX_FILE_BYTES: Final = 2**29
"""Largest file that is read: a bitmap of ``MAX_PIXELS`` is smaller."""
_BLOCK_BYTES: Final = 2**20

Picture = Path | bytes | RgbArray
"""A file, its bytes, or upright RGB pixels [H, W, 3]."""


def read_picture(
    image: Path | bytes, *, max_pixels: float = MAX_PIXELS, seconds: float = SECONDS
) -> RgbArray:
    """Return a picture as upright RGB, uint8 [H, W, 3].

    Args:
        image: a file, or its bytes.
        max_pixels: refuse a picture whose header declares more: a small file may hold a huge one.
        seconds: time limit for decoding.

    Raises:
        PictureTooLargeError: it has more pixels.
        PictureTimeoutError: decoding it took longer.
        QueryError: a file is missing or is not a picture that can be read.
    """
    name = f"the file ({len(image):,} bytes)" if isinstance(image, bytes) else str(image)
    data = image if isinstance(image, bytes) else _contents(image)
    return _decoder().decode(data, name=name, max_pixels=max_pixels, seconds=seconds)


@functools.cache
def _decoder() -> PictureDecoder:
    """Return the decoder of this process; it starts its children on demand."""
    return PictureDecoder()


def _contents(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # A device has no size, and may have no end.
            most = MAX_FILE_BYTES // _BLOCK_BYTES + 1
            data = b"".join(itertools.islice(iter(lambda: file.read(_BLOCK_BYTES), b""), most))
    except FileNotFoundError as error:
        raise QueryError(f"{path}: no such file") from error
    except OSError as error:
        raise QueryError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise QueryError(
            f"{path} has more than {MAX_FILE_BYTES >> 20} MiB, the most that a picture to search "
            "by may have; shrink it, or save it as JPEG"
        )
    return data
