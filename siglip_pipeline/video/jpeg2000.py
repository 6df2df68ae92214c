"""What Pillow does not tell of a JPEG 2000: its profile, its depth, and where it ends (T.800)."""

import struct
from typing import BinaryIO, Final

from siglip_pipeline.video.boxes import boxes_at, read_at

CODESTREAM: Final = b"\xff\x4f\xff\x51"
"""The markers SOC and SIZ, with which a codestream begins."""
_START_OF_TILE: Final = b"\xff\x90"
_END: Final = b"\xff\xd9"
_DEPTH_AT: Final = 42
"""Offset from there of the first component's depth less one; the highest bit is the sign."""
_RESTRICTED, _ANY = b"\2", b"\3"
"""Methods of a colour specification that hold an ICC profile."""
_HEAD_BYTES: Final = 2**20


def is_deep(file: BinaryIO) -> bool:
    """Return whether a picture has over eight bits per sample, which Pillow 13 gets wrong."""
    head = read_at(file, 0, _HEAD_BYTES)
    at = head.find(CODESTREAM)
    return 0 <= at < len(head) - _DEPTH_AT and (head[at + _DEPTH_AT] & 0x7F) + 1 > 8


def profile(file: BinaryIO) -> bytes | None:
    """Return the colour profile, which Pillow does not read (JP2, I.5.3.3); None without one."""
    for begin, end in boxes_at(file, (b"jp2h", b"colr"), 0, file.seek(0, 2)):
        method = read_at(file, begin, 1)
        if method in (_RESTRICTED, _ANY) and end - begin < _HEAD_BYTES:
            return read_at(file, begin + 3, end - begin - 3)
    return None


def completed(data: bytes, *, least: float) -> tuple[bytes, float]:
    """Return a file with zeros for what is missing of its last tile, and the share that exists.

    Decoders take zeros for empty packets. Tiles that are missing as a whole count by their number.
    A file of which less than ``least`` exists is returned unchanged: a damaged length can promise
    4 GiB.
    """
    start = at = data.find(CODESTREAM)
    while at >= 0 and (part := data[at : at + 12])[:2] != _START_OF_TILE:
        at += 2 + (int.from_bytes(part[2:4]) if at > start else 0)
        if len(part) < 12:
            return data, 1.0
    if at < 0:
        return data, 1.0
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", data, start + 8)
    tiles = -(-(right - left) // max(1, width)) * -(-(bottom - top) // max(1, height))
    seen: set[int] = set()
    while data[at : at + 2] == _START_OF_TILE and at + 12 <= len(data):
        tile, length = struct.unpack_from(">HI", data, at + 4)
        if length < 12:  # 0: up to the end, wherever it was
            return data + _END, 1.0
        seen.add(tile)
        at += length
    share = len(data) / at * len(seen) / max(len(seen), tiles)
    if share < least:
        return data, share
    return data[:at].ljust(at, b"\0") + _END, min(share, 1.0)
