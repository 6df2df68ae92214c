"""Write properties of HEIC files that the available encoders cannot (ISO/IEC 23008-12, 6.5)."""

import struct
from fractions import Fraction


def with_property(heic: bytes, box: bytes) -> bytes:
    """Give the last item of a file by heif-enc one more property: `irot`, `imir` or `clap`."""
    meta = heic.index(b"meta") - 4
    grown = bytearray(heic)
    ipma = _box(grown, b"ipma")
    last = ipma + _size(grown, ipma)
    properties = _box(grown, b"ipco")
    count = _count(grown, properties) + 1
    # Version 0 without flags: each item has its number, a count, and a byte for each property.
    assert grown[ipma + 8 : ipma + 12] == bytes(4)
    at = ipma + 16
    while at + 3 + grown[at + 2] < last:
        at += 3 + grown[at + 2]
    grown[at + 2] += 1
    grown[last:last] = bytes([count | 0x80])  # essential
    end = properties + _size(grown, properties)
    grown[end:end] = box
    for offset, by in (
        (ipma + len(box), 1),
        (properties, len(box)),
        (_box(grown, b"iprp"), 1 + len(box)),
        (meta, 1 + len(box)),
    ):
        struct.pack_into(">I", grown, offset, _size(grown, offset) + by)
    data = struct.pack(">I", heic.index(b"mdat") + 4)
    moved = struct.pack(">I", heic.index(b"mdat") + 5 + len(box))
    iloc = _box(grown, b"iloc")
    table = bytes(grown[iloc : iloc + _size(grown, iloc)])
    assert table.count(data) == 1
    grown[iloc : iloc + len(table)] = table.replace(data, moved)
    return bytes(grown)


def irot(quarters: int) -> bytes:
    """Return `irot`: a rotation by this many quarters, counter-clockwise."""
    return struct.pack(">I4sB", 9, b"irot", quarters)


def imir(axis: int) -> bytes:
    """Mirror: 0 exchanges top and bottom, 1 left and right."""
    return struct.pack(">I4sB", 9, b"imir", axis)


def clap(width: int | str, height: int | str, right: int | str = 0, down: int | str = 0) -> bytes:
    """Return `clap`: a size, and how far its centre lies from that of the picture; fractions."""
    numbers = (Fraction(value) for value in (width, height, right, down))
    parts = b"".join(struct.pack(">iI", *number.as_integer_ratio()) for number in numbers)
    return struct.pack(">I4s", 40, b"clap") + parts


def _box(data: bytearray, kind: bytes) -> int:
    return data.index(kind) - 4


def _size(data: bytearray, offset: int) -> int:
    return int(struct.unpack_from(">I", data, offset)[0])


def _count(data: bytearray, parent: int) -> int:
    count, at, end = 0, parent + 8, parent + _size(data, parent)
    while at < end:
        count, at = count + 1, at + _size(data, at)
    return count
