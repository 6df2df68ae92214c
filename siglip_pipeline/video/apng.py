"""The patches of an animated PNG (PNG specification, third edition, 2025, sections 5 and 11)."""

import contextlib
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from siglip_pipeline.video.patches import Disposal, Patch, PatchedAnimation

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_DISPOSALS: Final[dict[int, Disposal]] = {1: "clear", 2: "restore"}
_SHARED: Final = frozenset({b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT"})
"""Chunks that define the colours of all frames."""
_MAX_HEADER_BYTES: Final = 2**24
_DEFAULT_DENOMINATOR: Final = 100


def read_apng(file: BinaryIO) -> PatchedAnimation | None:
    """Find the patches of an animated PNG; None for a still.

    The default image is a frame only if a frame control comes before it.
    """
    reader = _Reader()
    for kind, offset, size in _chunks(file):
        if kind == b"IDAT" and reader.expected == 0:
            return None
        file.seek(offset)
        reader.take(kind, offset, size, file)
    reader.finish()
    if not reader.patches:
        return None
    return PatchedAnimation(
        format="PNG",
        size=reader.size,
        patches=tuple(reader.patches),
        expected=max(reader.expected, len(reader.patches)),
        info=reader.info,
    )


def colour_code_points(file: BinaryIO) -> dict[str, int] | None:
    """Return the primaries and the transfer of a PNG (`cICP`, section 11.3.2.6); None if unsaid."""
    for kind, offset, size in _chunks(file):
        if kind == b"IDAT":
            return None
        if kind == b"cICP" and size == 4:
            file.seek(offset)
            return _code_points(file.read(4))
    return None


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, offset of the data, and size of each complete chunk."""
    end = file.seek(0, 2)
    offset = len(SIGNATURE)
    while offset + 12 <= end:
        file.seek(offset)
        size, kind = struct.unpack(">I4s", file.read(8))
        if offset + 12 + size > end or kind == b"IEND":
            return
        yield kind, offset + 8, size
        offset += 12 + size


@dataclass(slots=True)
class _Reader:
    header: bytes = b""
    shared: list[bytes] = field(default_factory=list)
    expected: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    control: bytes = b""
    spans: list[tuple[int, int]] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        width, height = struct.unpack(">II", self.header[:8])
        return int(width), int(height)

    def take(self, kind: bytes, offset: int, size: int, file: BinaryIO) -> None:
        """Read one chunk; the file's position is at its data."""
        if kind == b"IDAT" and self.control:
            self.spans.append((offset, size))
        elif kind == b"fdAT" and self.control and size >= 4:
            self.spans.append((offset + 4, size - 4))  # a sequence number comes first
        elif kind == b"fcTL" and size == 26:
            self.finish()
            self.control = file.read(size)
        elif kind == b"IHDR" and size == 13:
            self.header = file.read(size)
        elif kind == b"acTL" and size == 8:
            self.expected = struct.unpack(">I", file.read(4))[0]
        elif size < _MAX_HEADER_BYTES and (kind in _SHARED or kind in _INFO):
            data = file.read(size)
            if kind in _SHARED and not self.patches:
                self.shared.append(_chunk(kind, data))
            if kind in _INFO:
                name, read = _INFO[kind]
                with contextlib.suppress(struct.error, zlib.error, ValueError):  # it is optional
                    self.info[name] = read(data)

    def finish(self) -> None:
        """Make a patch of what was read since the last frame control."""
        control, self.control = self.control, b""
        spans, self.spans = self.spans, []
        if not control or not spans or len(self.header) != 13:
            return
        _, width, height, left, top, delay, per, disposal, blend = struct.unpack(
            ">IIIIIHHBB", control
        )
        head = _chunk(b"IHDR", struct.pack(">II", width, height) + self.header[8:])
        before = b"".join([SIGNATURE, head, *self.shared])
        self.patches.append(
            Patch(
                spans=tuple(spans),
                as_file=lambda data: before + _chunk(b"IDAT", data) + _chunk(b"IEND", b""),
                left=left,
                top=top,
                size=(width, height),
                duration_ms=round(1000 * delay / (per or _DEFAULT_DENOMINATOR)),
                disposal=_DISPOSALS.get(disposal, "keep"),
                replaces=blend == 0,
            )
        )


def _profile(data: bytes) -> bytes:
    return zlib.decompress(data.partition(b"\0")[2][1:])


def _code_points(data: bytes) -> dict[str, int]:
    primaries, transfer, _, _ = data
    return {"color_primaries": primaries, "transfer_characteristics": transfer}


def _gamma(data: bytes) -> float:
    return float(struct.unpack(">I", data)[0] / 100_000)


def _chromaticities(data: bytes) -> tuple[float, ...]:
    return tuple(value / 100_000 for value in struct.unpack(">8I", data))


_INFO: Final[dict[bytes, tuple[str, Callable[[bytes], Any]]]] = {
    b"iCCP": ("icc_profile", _profile),
    b"cICP": ("nclx_profile", _code_points),
    b"sRGB": ("srgb", bool),
    b"gAMA": ("gamma", _gamma),
    b"cHRM": ("chromaticity", _chromaticities),
    b"eXIf": ("exif", lambda data: b"Exif\0\0" + data),
}
"""Pillow's names of what holds for all frames, and how it is read."""


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
