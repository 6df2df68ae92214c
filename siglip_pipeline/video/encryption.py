"""Video tracks that are encrypted, by what their containers say.

Some ciphers leave headers in the clear, so that a decoder makes grey pictures of what it is given.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np
from av.container import InputContainer
from av.stream import Stream

from siglip_pipeline.errors import VideoError
from siglip_pipeline.video.source import MediaSource

HEAD_BYTES: Final = 2**21
"""Of a broadcast stream, where each packet says whether it is scrambled."""
SCRAMBLED_SHARE: Final = 0.5

_ENCRYPTED_ENTRIES: Final = frozenset({b"encv", b"drmi"})
"""Sample entries: ISO/IEC 14496-12, 8.12; and Apple's FairPlay."""
_PATH: Final = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
_ENTRY_BYTES: Final = 8 + 78
"""Of a visual sample entry, before the boxes in it."""
_TS_STRIDES: Final = (188, 192, 204)
"""Bytes from one packet to the next: plain, with a time before it, with a checksum behind it."""
_TS_SYNC: Final = 0x47
_VIDEO_PES: Final = re.compile(rb"\0\0\x01[\xe0-\xef]..([\x80-\xbf])", re.DOTALL)


def check_encryption(source: MediaSource, container: InputContainer, stream: Stream) -> None:
    """Refuse a track that cannot be decoded without a key.

    Raises:
        VideoError: naming the scheme.
    """
    scheme = _scheme(source, container, stream)
    if scheme:
        raise VideoError(
            source.video,
            f"the video track is encrypted ({scheme}), and its key is not in the file: upload it "
            "without copy protection",
        )


def _scheme(source: MediaSource, container: InputContainer, stream: Stream) -> str | None:
    name = container.format.name
    if name.startswith("mov,"):
        with source.open() as file:
            return _mp4_scheme(file, stream.id)
    if name.startswith("matroska"):
        return "Matroska" if "enc_key_id" in stream.metadata else None
    if name.startswith("asf"):
        protected = {"ASF_Protection_Type", "encryption"} & set(container.metadata)
        return "Windows Media DRM" if protected else None
    if name not in ("mpegts", "mpeg"):
        return None
    with source.open() as file:
        head = file.read(HEAD_BYTES)
    scrambled = _scrambled_ts(head, stream.id) if name == "mpegts" else _scrambled_ps(head)
    return "scrambled by the broadcaster or the disc" if scrambled else None


def _mp4_scheme(file: BinaryIO, track_id: int) -> str | None:
    """Return how a track is protected, by its sample entries; None where it is not."""
    for start, end in _at(file, _PATH[:2], 0, file.seek(0, 2)):
        ids = [_read(file, at, 24) for at, _ in _at(file, (b"tkhd",), start, end)]
        # The identity follows two times, which version 1 gives 64 bits each.
        if track_id not in [int.from_bytes(i[20:24] if i[:1] == b"\1" else i[12:16]) for i in ids]:
            continue
        for entries, entries_end in _at(file, _PATH[2:], start, end):
            for kind, at, entry_end in _boxes(file, entries + 8, entries_end):
                protection = at + _ENTRY_BYTES - 8, entry_end
                if kind in _ENCRYPTED_ENTRIES and _is_protected(file, *protection):
                    schemes = _at(file, (b"sinf", b"schm"), *protection)
                    code = next((_read(file, begin + 4, 4) for begin, _ in schemes), kind)
                    return code.decode("latin-1")
    return None


def _is_protected(file: BinaryIO, start: int, end: int) -> bool:
    """Whether samples are encrypted unless they say otherwise (ISO/IEC 23001-7, 8.2)."""
    found = [_read(file, at, 7) for at, _ in _at(file, (b"sinf", b"schi", b"tenc"), start, end)]
    return not found or found[0][6:] != b"\0"


def _at(file: BinaryIO, path: tuple[bytes, ...], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of what the boxes of a path hold."""
    for kind, begin, box_end in _boxes(file, start, end):
        if kind == path[0]:
            if path[1:]:
                yield from _at(file, path[1:], begin, box_end)
            else:
                yield begin, box_end


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of what each box holds, as far as they are whole."""
    while start + 8 <= end:
        head = _read(file, start, 16)
        length, kind, header = int.from_bytes(head[:4]), head[4:8], 8
        if length == 1:  # the length is in 64 bits
            length, header = int.from_bytes(head[8:]), 16
        elif length == 0:
            length = end - start
        if length < header:
            return
        yield kind, start + header, min(start + length, end)
        start += length


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _scrambled_ts(head: bytes, pid: int) -> bool:
    """Whether most packets of a stream say so (ISO/IEC 13818-1, 2.4.3.3)."""
    for stride in _TS_STRIDES:
        for start in range(min(stride, len(head) - 2 * stride)):
            if head[start] == head[start + stride] == head[start + 2 * stride] == _TS_SYNC:
                count = (len(head) - start) // stride
                packets_P = np.frombuffer(head, np.uint8, count * stride, start)
                packets_P = packets_P.reshape(count, stride)
                pid_P = (packets_P[:, 1] & 0x1F) * np.int64(256) + packets_P[:, 2]
                scrambled_P = packets_P[pid_P == pid, 3] >> 6 > 0
                return scrambled_P.size > 0 and bool(scrambled_P.mean() > SCRAMBLED_SHARE)
    return False


def _scrambled_ps(head: bytes) -> bool:
    """Whether most packets of video say so (2.4.3.7); those of MPEG-1 cannot."""
    flags = [found[1][0] >> 4 & 3 for found in _VIDEO_PES.finditer(head)]
    return sum(map(bool, flags)) > SCRAMBLED_SHARE * len(flags)
