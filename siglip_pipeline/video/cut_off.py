"""Read truncated pictures, and measure how much of them there is."""

import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np
from PIL import Image, ImageFile

from siglip_pipeline.video.boxes import box_head, read_at

BLANK: Final = (0, 128)
"""Values of pixels that were not read: Pillow leaves zeros, libjpeg medium grey."""

MIN_SHARE: Final = 0.5
"""Smallest share of a truncated picture that is read."""


@contextlib.contextmanager
def reading_truncated() -> Iterator[None]:
    """Let Pillow decode truncated pictures, within the block. Not safe with several threads."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def padded(file: BinaryIO) -> tuple[BinaryIO, float]:
    """Return a file with zeros in place of missing bytes, and the share of it that exists.

    Pillow refuses truncated containers that declare their size (WebP, HEIF, AVIF, JPEG 2000), but
    their decoders continue over zeros. Every other file is returned unchanged.
    """
    size = file.seek(0, 2)
    declared = _declared_size(file, size)
    file.seek(0)
    share = size / declared if declared else 1.0
    if not MIN_SHARE <= share < 1:
        return file, min(share, 1.0)
    return io.BytesIO(file.read().ljust(declared, b"\0")), share


def _declared_size(file: BinaryIO, size: int) -> int:
    """Return the size in bytes that a file declares; 0 if it declares none."""
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[4:8] not in (b"ftyp", b"jP  "):
        return 0
    offset = 0
    while offset + 8 <= size:  # boxes
        length, _, _ = box_head(read_at(file, offset, 16))
        if length < 8:  # 0: up to the end
            return 0
        offset += length
    return offset


def rows_read(image: Image.Image) -> int:
    """Return the number of rows from the first to the last row that was read."""
    rows_HS = np.asarray(image).reshape(image.height, -1)
    blank_H = np.zeros(image.height, bool)
    for value in BLANK:
        blank_H |= (rows_HS == value).all(axis=1)
    there = np.flatnonzero(~blank_H)
    return int(there[-1] - there[0]) + 1 if there.size else 0
