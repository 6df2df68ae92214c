"""Find packets that show no frame, by their first bits: hidden frames, and headers.

The headers are those of Theora, and what is no picture in Dirac, such as the end of a raw stream.
"""

from collections.abc import Callable
from typing import Final

_DIRAC_PICTURE: Final = 8
"""A bit of the parse codes of pictures."""

_DIRAC_HEADER_BYTES: Final = 13


def _vp8_is_hidden(packet: memoryview) -> bool:
    """Read ``show_frame``, the fifth bit of the frame tag (RFC 6386, section 9.1)."""
    return len(packet) > 0 and not packet[0] >> 4 & 1


def _vp9_is_hidden(packet: memoryview) -> bool:
    """Read ``show_frame`` (section 6.2 of the VP9 Bitstream & Decoding Process Specification).

    A superframe, marked by its last byte, holds a frame that is shown.
    """
    if len(packet) == 0 or packet[0] >> 6 != 2 or packet[-1] >> 5 == 6:
        return False
    profile = packet[0] >> 5 & 1 | packet[0] >> 3 & 2
    bits = int.from_bytes(packet[:2], "big") >> (8 if profile < 3 else 7)
    show_existing, _frame_type, show = bits >> 3 & 1, bits >> 2 & 1, bits >> 1 & 1
    return len(packet) > 1 and not show_existing and not show


def _is_theora_header(packet: memoryview) -> bool:
    """Return whether it is a header (Theora Specification, 6.1), as each of joined streams has."""
    return len(packet) > 0 and packet[0] >> 7 == 1


def _has_no_dirac_picture(packet: memoryview) -> bool:
    """Return whether no parse code of its data units is a picture's (Dirac Specification, 9.6)."""
    at = 0
    while bytes(packet[at : at + 4]) == b"BBCD":
        code, size = packet[at + 4 : at + 5], int.from_bytes(packet[at + 5 : at + 9], "big")
        if not code or code[0] & _DIRAC_PICTURE:
            return False
        if size < _DIRAC_HEADER_BYTES:  # 0: the last one
            return True
        at += size
    return at == len(packet)


HIDDEN: Final[dict[str, Callable[[memoryview], bool]]] = {
    "vp8": _vp8_is_hidden,
    "vp9": _vp9_is_hidden,
    "theora": _is_theora_header,
    "dirac": _has_no_dirac_picture,
}
