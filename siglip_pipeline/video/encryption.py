"""Recognise encrypted video tracks by the metadata of their containers.

Some ciphers leave headers unencrypted, so that a decoder gives grey pictures instead of an error.
"""

import re
from typing import BinaryIO, Final

import numpy as np
from av.container import InputContainer
from av.stream import Stream

from siglip_pipeline.errors import VideoError
from siglip_pipeline.video.boxes import boxes_at, read_at, video_entries
from siglip_pipeline.video.source import MediaSource

HEAD_BYTES: Final = 2**21
"""Of a broadcast stream, in which each packet has a flag for scrambling."""
SCRAMBLED_SHARE: Final = 0.5

_ENCRYPTED_ENTRIES: Final = frozenset({b"encv", b"drmi"})
"""Sample entries: ISO/IEC 14496-12, 8.12; and Apple's FairPlay."""
_TS_STRIDES: Final = (188, 192, 204)
"""Bytes from one packet to the next: plain, with a preceding time, with a following checksum."""
_TS_SYNC: Final = 0x47
_VIDEO_PES: Final = re.compile(rb"\0\0\x01[\xe0-\xef]..([\x80-\xbf])", re.DOTALL)


def check_encryption(source: MediaSource, container: InputContainer, stream: Stream) -> None:
    """Refuse a track that cannot be decoded without a key.

    Raises:
        VideoError: the track is encrypted; names the scheme.
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
    """Return how a track is protected, by its sample entries; None if it is not."""
    for kind, start, end in video_entries(file, track_id):
        if kind in _ENCRYPTED_ENTRIES and _is_protected(file, start, end):
            schemes = boxes_at(file, (b"sinf", b"schm"), start, end)
            code = next((read_at(file, begin + 4, 4) for begin, _ in schemes), kind)
            return code.decode("latin-1")
    return None


def _is_protected(file: BinaryIO, start: int, end: int) -> bool:
    """Return whether samples are encrypted by default (ISO/IEC 23001-7, 8.2)."""
    found = boxes_at(file, (b"sinf", b"schi", b"tenc"), start, end)
    return next((read_at(file, begin + 6, 1) for begin, _ in found), b"") != b"\0"


def _scrambled_ts(head: bytes, pid: int) -> bool:
    """Return whether most packets of a stream are scrambled (ISO/IEC 13818-1, 2.4.3.3)."""
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
    """Return whether most packets of video are scrambled (2.4.3.7); MPEG-1 has no such flag."""
    flags = [found[1][0] >> 4 & 3 for found in _VIDEO_PES.finditer(head)]
    return sum(map(bool, flags)) > SCRAMBLED_SHARE * len(flags)
