"""The crop of an AVIF: its clean aperture (`clap`; ISO/IEC 14496-12, 12.1.4)."""

import math
import struct
from fractions import Fraction


def clean_aperture(head: bytes, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of the shown area, before rotation; None if invalid.

    Fractions are rounded as in libheif, and what lies outside of the picture is left out.

    Args:
        head: the first bytes of a file whose primary picture is cropped.
        size: width and height as coded.
    """
    at = head.find(b"\0\0\0\x28clap")
    if at < 0 or len(head) < at + 40:
        return None
    numbers = struct.unpack_from(">IIIIiIiI", head, at + 8)
    if not all(numbers[1::2]):
        return None
    width, height, right, down = (Fraction(*numbers[n : n + 2]) for n in (0, 2, 4, 6))
    left = math.trunc(right + (size[0] - width) / 2)
    top = _rounded(down + (size[1] - height) / 2)
    box = (
        max(0, left),
        max(0, top),
        min(size[0], left + _rounded(width)),
        min(size[1], top + _rounded(height)),
    )
    return box if box[0] < box[2] and box[1] < box[3] else None


def _rounded(value: Fraction) -> int:
    return math.trunc(value + Fraction(1, 2))
