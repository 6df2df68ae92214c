"""Find the boxes of MP4 and QuickTime files (ISO/IEC 14496-12, 4.2) by their offsets."""

from collections.abc import Iterator
from typing import BinaryIO, Final

_TO_ENTRIES: Final = (b"mdia", b"minf", b"stbl", b"stsd")
_ENTRY_BYTES: Final = 78
"""Bytes of a visual sample entry before its boxes."""


def boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind of each complete box, and begin and end of its content."""
    while start + 8 <= end:
        length, kind, header = box_head(read_at(file, start, 16))
        if length == 0:
            length = end - start
        if length < header:
            return
        yield kind, start + header, min(start + length, end)
        start += length


def box_head(head: bytes) -> tuple[int, bytes, int]:
    """Return the length of a box, its kind, and the length of its header.

    Args:
        head: its first 16 bytes.

    Returns:
        All in bytes; a length of 0 is up to the end of the file.
    """
    length, kind = int.from_bytes(head[:4]), head[4:8]
    if length == 1:  # the length is in 64 bits
        return int.from_bytes(head[8:16]), kind, 16
    return length, kind, 8


def boxes_at(
    file: BinaryIO, path: tuple[bytes, ...], start: int, end: int
) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the content of the boxes at a path."""
    for kind, begin, box_end in boxes(file, start, end):
        if kind == path[0]:
            if path[1:]:
                yield from boxes_at(file, path[1:], begin, box_end)
            else:
                yield begin, box_end


def video_entries(file: BinaryIO, track_id: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of the boxes in each visual sample entry of a track."""
    for start, end in boxes_at(file, (b"moov", b"trak"), 0, file.seek(0, 2)):
        ids = [read_at(file, at, 24) for at, _ in boxes_at(file, (b"tkhd",), start, end)]
        # The identity follows two times, which version 1 gives 64 bits each.
        if track_id not in [int.from_bytes(i[20:24] if i[:1] == b"\1" else i[12:16]) for i in ids]:
            continue
        for entries, entries_end in boxes_at(file, _TO_ENTRIES, start, end):
            for kind, begin, entry_end in boxes(file, entries + 8, entries_end):
                yield kind, begin + _ENTRY_BYTES, entry_end


def read_at(file: BinaryIO, at: int, size: int) -> bytes:
    """Return bytes from an offset."""
    file.seek(at)
    return file.read(size)
