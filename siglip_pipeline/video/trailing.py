"""Find what follows the end of a film in its file.

Containers consist of units that tell their length: boxes, chunks, pages, packets. Bytes after the
last unit are read by no demuxer. MP4 and QuickTime files are read by their first index, so of two
files that were joined byte by byte FFmpeg shows the first one; in most other containers it
continues with what follows.
"""

from collections.abc import Callable
from typing import BinaryIO, Final

from siglip_pipeline.video.boxes import boxes, read_at
from siglip_pipeline.video.source import MediaSource

MOST_BOXES: Final = 64
"""A film of more boxes is in fragments, and is not searched: that would read all of the file."""
MOST_UNITS: Final = 20_000
"""Units that are followed in other containers, from the last packet of the video."""

_FILM: Final = frozenset((b"mdat", b"moov", b"moof", b"free", b"skip", b"wide"))
_BEGIN: Final = frozenset((b"ftyp", b"moov"))
_PADDING_BYTES: Final = 2**16
_HEAD_BYTES: Final = 512
_TO_THE_END: Final = 2**63
_MAGICS: Final = (
    b"RIFF",
    b"\x1aE\xdf\xa3",
    b"FLV\x01",
    b"OggS",
    b"0&\xb2u",
    b"\0\0\1\xba",
    b"DKIF",
)

_Length = Callable[[bytes], int]
"""Returns the length of the unit that begins with these bytes; 0 if none does."""


def trailing_data(source: MediaSource, container: str, last_packet_at: int) -> list[str]:
    """Return a warning if a film is followed by data that is not shown.

    Args:
        source: the file.
        container: FFmpeg's name of its format.
        last_packet_at: offset of the last packet of the video; negative if it is not known.
    """
    with source.open() as file:
        size = file.seek(0, 2)
        if container.startswith("mov,"):
            end, begins = _film_end(file, size)
        else:
            end = _units_end(file, size, container, last_packet_at)
            begins = read_at(file, end, 4).startswith(_MAGICS)
        if end >= size or not any(read_at(file, end, _PADDING_BYTES)):
            return []
    what = ", which begin another film," if begins else ""
    return [f"{size - end:,} bytes after the end of the film{what} are left out"]


def _film_end(file: BinaryIO, size: int) -> tuple[int, bool]:
    """Return where the film ends, and whether another one begins there."""
    end, seen = 0, set[bytes]()
    for number, (kind, _, box_end) in enumerate(boxes(file, 0, size)):
        if number == MOST_BOXES:
            return size, False
        # Fragments are decoded, even if another film begins between them.
        if kind in _BEGIN and b"moov" in seen and b"moof" not in seen:
            return end, True
        overruns = int.from_bytes(read_at(file, end, 4)) > size - end
        if not _is_kind(kind) or (overruns and kind not in _FILM):
            return end, False
        end = box_end
        seen.add(kind)
    return end, False


def _is_kind(kind: bytes) -> bool:
    return all(0x20 <= byte < 0x7F or byte == 0xA9 for byte in kind)


def _units_end(file: BinaryIO, size: int, container: str, last_packet_at: int) -> int:
    """Return the end of the units; the file's if the container is not known, or is damaged."""
    name = container.partition(",")[0]
    if read_at(file, 8, 4) == b"CDXA":  # sectors with headers of their own
        return size
    if name in _OF_THE_FILE:
        at, length = 0, _OF_THE_FILE[name]
    elif name in _OF_THE_STREAM and last_packet_at >= 0:
        at, length = last_packet_at, _OF_THE_STREAM[name]
    else:
        return size
    for _ in range(MOST_UNITS):
        head = read_at(file, at, _HEAD_BYTES)
        unit = length(head)
        if unit == 0 or (at > last_packet_at and name in _OF_THE_FILE and _begins(head)):
            # FFmpeg reads on where a length is wrong, as in a recording that was not finished.
            return at if at > last_packet_at else size
        at += unit
        if at >= size:
            break
    return size


def _begins(head: bytes) -> bool:
    return head.startswith(_MAGICS) and head[8:12] != b"AVIX"


def _riff(head: bytes) -> int:
    if head[:4] != b"RIFF" or head[8:12] not in (b"AVI ", b"AVIX"):
        return 0
    length = 8 + int.from_bytes(head[4:8], "little")
    return length + length % 2


def _ebml(head: bytes) -> int:
    """Read a topmost element: the EBML header, a segment, or padding (RFC 8794, 4 to 6)."""
    name = next((n for n in _ELEMENTS if head.startswith(n)), None)
    if name is None or len(head) < 12 or head[len(name)] == 0:
        return 0
    width = 9 - head[len(name)].bit_length()
    length = int.from_bytes(head[len(name) : len(name) + width]) & ((1 << 7 * width) - 1)
    is_unknown = length == (1 << 7 * width) - 1
    return _TO_THE_END if is_unknown else len(name) + width + length


_ELEMENTS: Final = (b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\xec", b"\xbf")


def _asf(head: bytes) -> int:
    """Read a topmost object: a header, the data, or an index (Advanced Systems Format, 2.3)."""
    if head[:4] not in _OBJECTS:
        return 0
    return int.from_bytes(head[16:24], "little") or _TO_THE_END


_OBJECTS: Final = (
    b"0&\xb2u",
    b"6&\xb2u",
    b"\x90\x08\0\x33",
    b"\xd3)\xe2\xd6",
    b"\xf8\x03\xb1\xfe",
    b"\xd0?\xb7<",
)


def _flv(head: bytes) -> int:
    return 11 + int.from_bytes(head[1:4]) + 4 if head[:1] in (b"\x08", b"\x09", b"\x12") else 0


def _ts(head: bytes) -> int:
    """Read a packet of 188 bytes, with a time before it (192) or a checksum behind it (204)."""
    for stride, sync in ((188, 0), (192, 4), (192, 0), (204, 0)):
        if head[sync : sync + 1] == b"G" and head[sync + stride : sync + stride + 1] in (b"G", b""):
            return stride
    sync = 0 if head[:1] == b"G" else 4  # of the last one
    return 188 + sync if head[sync : sync + 1] == b"G" else 0


def _ps(head: bytes) -> int:
    """Read a pack header or a packet (ISO/IEC 13818-1, 2.5.3; ISO/IEC 11172-1, 2.4.3).

    Zero bytes may stand before a start code; on Video CDs they fill sectors.
    """
    zeros = len(head) - len(head.lstrip(b"\0"))
    if zeros > 2 and head[zeros : zeros + 1] in (b"\1", b""):
        return zeros - 2
    if head[:3] != b"\0\0\1" or len(head) < 4 or head[3] < 0xB9:
        return 0
    if head[3] == 0xB9:
        return 4
    if head[3] == 0xBA:
        return 14 + (head[13] & 7) if len(head) > 13 and head[4] >> 6 == 1 else 12
    return 6 + int.from_bytes(head[4:6])


def _ogg(head: bytes) -> int:
    return 27 + head[26] + sum(head[27 : 27 + head[26]]) if head[:4] == b"OggS" else 0


def _klv(head: bytes) -> int:
    """Read a key, its length and value (SMPTE ST 336)."""
    if head[:4] != b"\x06\x0e+4" or len(head) < 25:
        return 0
    width = head[16] & 127 if head[16] & 128 else 0
    length = int.from_bytes(head[17 : 17 + width]) if width else head[16]
    return 17 + width + length


_OF_THE_FILE: Final[dict[str, _Length]] = {"avi": _riff, "matroska": _ebml, "asf": _asf}
"""Containers of few units."""
_OF_THE_STREAM: Final[dict[str, _Length]] = {
    "flv": _flv,
    "mpegts": _ts,
    "mpeg": _ps,
    "ogg": _ogg,
    "mxf": _klv,
}
"""Containers of many units, which are followed from the last packet on."""
