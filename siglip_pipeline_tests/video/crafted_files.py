"""Write into containers what Debian's ffmpeg does not: descriptions, projections, program maps."""

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import av

from siglip_pipeline.video.boxes import boxes_at

_ENTRIES: Final = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
_MATRIX: Final = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_ROW: Final = 188
_PROGRAM_MAP: Final = 0x1000
"""Identifier of packets with the program map, as ffmpeg writes it."""


def sample_entry(path: Path, more: bytes = b"") -> bytes:
    """The sample entry of an MP4 with one video track, and one more box in it."""
    file = io.BytesIO(path.read_bytes())
    ((begin, end),) = boxes_at(file, _ENTRIES, 0, file.seek(0, 2))
    file.seek(begin + 8)
    entry = file.read(end - begin - 8)
    return struct.pack(">I", len(entry) + len(more)) + entry[4:] + more


def one_track(parts: Sequence[tuple[Path, bytes]]) -> bytes:
    """An MP4 of one track at 25 frames a second; each part has its own sample description."""
    samples: list[tuple[bytes, bool]] = []
    firsts: list[int] = []
    for path, _ in parts:
        firsts.append(len(samples))
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        samples += [(bytes(packet), packet.is_keyframe) for packet in packets]
    count = len(samples)
    begin = _box(b"ftyp", b"isom", bytes(4), b"isom")
    data = [sample for sample, _ in samples]
    offsets = [len(begin) + 8 + sum(map(len, data[:n])) for n in range(count)]
    keys = [n + 1 for n, (_, is_key) in enumerate(samples) if is_key]
    chunks = [value for n, first in enumerate(firsts) for value in (first + 1, 1, n + 1)]
    table = _box(
        b"stbl",
        _box(b"stsd", _u32(0, len(parts)), *(entry for _, entry in parts)),
        _box(b"stts", _u32(0, 1, count, 1000)),
        _box(b"stss", _u32(0, len(keys), *keys)),
        _box(b"stsc", _u32(0, len(firsts), *chunks)),
        _box(b"stsz", _u32(0, 0, count, *map(len, data))),
        _box(b"stco", _u32(0, count, *offsets)),
    )
    length = count * 1000
    media = _box(
        b"mdia",
        _box(b"mdhd", _u32(0, 0, 0, 25_000, length, 0x55C40000)),
        _box(b"hdlr", _u32(0, 0), b"vide", bytes(14)),
        _box(
            b"minf",
            _box(b"vmhd", bytes(12)),
            _box(b"dinf", _box(b"dref", _u32(0, 1), _box(b"url ", _u32(1)))),
            table,
        ),
    )
    track = _box(b"tkhd", _u32(7, 0, 0, 1, 0, length), bytes(16), _MATRIX, bytes(8))
    movie = _u32(0, 0, 0, 25_000, length, 0x10000, 0x01000000) + bytes(8) + _MATRIX + bytes(24)
    index = _box(b"moov", _box(b"mvhd", movie, _u32(2)), _box(b"trak", track, media))
    return begin + _box(b"mdat", *data) + index


def spatial(path: Path, folder: Path) -> bytes:
    """An MP4 of H.265 as spatial video (MV-HEVC): units of a second layer, and their descriptions.

    The units are those of the first layer. Decoders of one view pass over them.
    """
    doubled = folder / "doubled.mp4"
    with av.open(str(path)) as source, av.open(str(doubled), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                both = av.Packet(bytes(packet) + _second_layer(bytes(packet)))
                both.pts, both.dts, both.time_base = packet.pts, packet.dts, packet.time_base
                both.is_keyframe, both.stream = packet.is_keyframe, stream
                target.mux(both)
    sei = bytes.fromhex("4e090510") + b"x" * 16 + b"\x80"
    layers = _box(b"lhvC", bytes.fromhex("01f000fccf01a70001"), struct.pack(">H", len(sei)), sei)
    cameras = _box(b"cams", _box(b"blin", _u32(0, 19_240)))
    eyes = _box(b"eyes", _box(b"stri", _u32(0), b"\3"), _box(b"hero", _u32(0), b"\1"), cameras)
    projection = _box(b"proj", _box(b"prji", _u32(0), b"rect"))
    more = layers + _box(b"vexu", eyes, projection) + _box(b"hfov", _u32(63_400))
    return one_track([(doubled, sample_entry(doubled, more))])


def _second_layer(sample: bytes) -> bytes:
    """Return the units of a sample with `nuh_layer_id` 1 (ITU-T H.265, 7.3.1.2)."""
    units, at = b"", 0
    while at < len(sample):
        end = at + 4 + int.from_bytes(sample[at : at + 4])
        units += sample[at : at + 5] + bytes([sample[at + 5] | 1 << 3]) + sample[at + 6 : end]
        at = end
    return units


def _box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


def _u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def with_matrix(mp4: bytes, matrix: bytes) -> bytes:
    """Give the first track of an MP4 by ffmpeg another matrix, in FFmpeg's form."""
    at = mp4.index(b"tkhd") + 44
    return mp4[:at] + struct.pack(">9i", *struct.unpack("<9i", matrix)) + mp4[at + 36 :]


def with_roll(matroska: bytes, degrees: float) -> bytes:
    """Turn the only video track of a Matroska file by its projection (RFC 9559, 5.1.4.1.28.41)."""
    roll = bytes.fromhex("767584") + struct.pack(">f", degrees)
    projection = bytes.fromhex("7670") + bytes([0x80 | 4 + len(roll)])
    return _inserted(matroska, projection + bytes.fromhex("76718100") + roll)


def _inserted(matroska: bytes, element: bytes) -> bytes:
    """Add an element to the `Video` of the only track, and let its parents grow."""
    grown = bytearray(matroska)
    start, end = 0, len(grown)
    for wanted in (0x18538067, 0x1654AE6B, 0xAE, 0xE0):
        size_at, size_bytes, start, end = next(
            (size_at, content - size_at, content, content_end)
            for number, size_at, content, content_end in _elements(matroska, start, end)
            if number == wanted
        )
        size = (end - start + len(element)) | 1 << 7 * size_bytes
        grown[size_at : size_at + size_bytes] = size.to_bytes(size_bytes, "big")
    return bytes(grown[:end]) + element + bytes(grown[end:])


def _elements(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, offset of the size, and begin and end of the content of each element."""
    while at < end:
        size_at = at + 9 - data[at].bit_length()
        content = size_at + 9 - data[size_at].bit_length()
        size = int.from_bytes(data[size_at:content], "big") & (1 << 7 * (content - size_at)) - 1
        yield int.from_bytes(data[at:size_at], "big"), size_at, content, content + size
        at = content + size


def with_map_version(transport_stream: bytes, version: int) -> bytes:
    """Give the program map of an MPEG-TS by ffmpeg another version."""
    changed = bytearray(transport_stream)
    for at in range(0, len(changed), _ROW):
        flags = int.from_bytes(changed[at + 1 : at + 4], "big")
        if flags >> 8 & 0x1FFF != _PROGRAM_MAP or not flags & 0x400000:
            continue
        begin = at + 4 + (1 + changed[at + 4] if flags & 0x20 else 0)
        begin += 1 + changed[begin]
        end = begin + 3 + (int.from_bytes(changed[begin + 1 : begin + 3], "big") & 0xFFF)
        changed[begin + 5] = changed[begin + 5] & 0xC1 | version << 1
        changed[end - 4 : end] = _crc32(bytes(changed[begin : end - 4])).to_bytes(4, "big")
    return bytes(changed)


def _crc32(data: bytes) -> int:
    """Return the checksum of MPEG-TS, whose bits are in the other order than zlib's."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc
