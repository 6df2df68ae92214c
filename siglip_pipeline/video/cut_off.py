"""Read truncated pictures, and measure how much of them there is."""

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np
from PIL import Image, ImageFile

from siglip_pipeline.video import jpeg2000
from siglip_pipeline.video.boxes import box_head, read_at

BLANK: Final = (0, 128)
"""Values of pixels that were not read: Pillow leaves zeros, libjpeg medium grey."""

_TIFF_PADDING_BYTES: Final = 2**16
_IEND: Final = bytes.fromhex("0000000049454e44ae426082")

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

    Pillow refuses truncated containers that declare their size (WebP, HEIF, AVIF), JPEG 2000, and
    TIFF whose last tags are missing, but their decoders continue over zeros. Of PNG, it refuses
    truncated text after the picture, which is cut off. Every other file is returned unchanged.
    """
    size = file.seek(0, 2)
    head = read_at(file, 0, 8)
    if head.startswith((b"II", b"MM")):
        return io.BytesIO(read_at(file, 0, size) + bytes(_TIFF_PADDING_BYTES)), 1.0
    if head == b"\x89PNG\r\n\x1a\n":
        end, kind = _last_chunk(file, size)
        return (file, 1.0) if kind == b"IDAT" else (io.BytesIO(read_at(file, 0, end) + _IEND), 1.0)
    if head.startswith((jpeg2000.CODESTREAM, b"\0\0\0\x0cjP  ")):
        completed, share = jpeg2000.completed(read_at(file, 0, size), least=MIN_SHARE)
        return io.BytesIO(completed), share
    declared = _declared_size(file, size)
    file.seek(0)
    share = size / declared if declared else 1.0
    if not MIN_SHARE <= share < 1:
        return file, min(share, 1.0)
    return io.BytesIO(file.read().ljust(declared, b"\0")), share


def _last_chunk(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Return where the chunk of a PNG begins that is incomplete, and its kind."""
    at = 8
    while len(head := read_at(file, at, 8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if at + 12 + length > size:
            return at, kind
        at += 12 + length
    return at, b""


def _declared_size(file: BinaryIO, size: int) -> int:
    """Return the size in bytes that a file declares; 0 if it declares none."""
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[4:8] != b"ftyp":
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
