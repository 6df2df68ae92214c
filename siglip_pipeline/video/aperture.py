"""The crop of an AVIF: its clean aperture (`clap`; ISO/IEC 14496-12, 12.1.4)."""

import struct
from fractions import Fraction


def clean_aperture(head: bytes, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of the shown area, before rotation; None if invalid.

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
    left = round(right + (size[0] - width) / 2)
    top = round(down + (size[1] - height) / 2)
    box = left, top, left + round(width), top + round(height)
    inside = 0 <= left < box[2] <= size[0] and 0 <= top < box[3] <= size[1]
    return box if inside else None
