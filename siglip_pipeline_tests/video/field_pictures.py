"""MPEG-2 in field pictures, as no encoder here writes it: flat fields of 64 by 32 pixels.

After ITU-T H.262, 6.2; every block is its DC coefficient alone (table B.12).
"""

from typing import Final

COLUMNS, FIELD_ROWS = 4, 2
_DC_SIZES: Final = ("100", "00", "01", "101", "110", "1110", "11110", "111110", "1111110")


def sequence() -> bytes:
    """The headers before the first picture: 64 by 64 pixels, 25 frames a second, interlaced."""
    header = _start(0xB3) + _bits(
        *((64, 12), (64, 12), (1, 4), (3, 4), (5000, 18), (1, 1), (50, 10), (0, 3))
    )
    extension = _start(0xB5) + _bits(
        *((1, 4), (0x48, 8), (0, 1), (1, 2), (0, 4), (0, 12), (1, 1), (0, 8), (1, 1), (0, 7))
    )
    return header + extension


def field_picture(number: int, *, is_bottom: bool, luma: int) -> bytes:
    """One field of a frame, coded by itself."""
    picture = _start(0) + _bits((number & 1023, 10), (1, 3), (0xFFFF, 16), (0, 1))
    extension = _start(0xB5) + _bits((8, 4), (0xFFFF, 16), (0, 2), (1 + is_bottom, 2), (0, 10))
    slices = [_start(1 + row) + _slice(luma) for row in range(FIELD_ROWS)]
    return picture + extension + b"".join(slices)


def _slice(luma: int) -> bytes:
    text = "00001" + "0"
    difference = luma - 128
    for column in range(COLUMNS):
        text += "11"  # the next macroblock, intra
        for block in range(4):
            text += _dc(difference if column == block == 0 else 0) + "10"
        text += 2 * ("00" + "10")
    return _aligned(text)


def _dc(difference: int) -> str:
    size = abs(difference).bit_length()
    value = difference if difference >= 0 else difference + (1 << size) - 1
    return _DC_SIZES[size] + (f"{value:0{size}b}" if size else "")


def _start(code: int) -> bytes:
    return b"\0\0\1" + bytes([code])


def _bits(*fields: tuple[int, int]) -> bytes:
    return _aligned("".join(f"{value:0{width}b}" for value, width in fields))


def _aligned(text: str) -> bytes:
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8)
