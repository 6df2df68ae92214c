"""PNG files, chunk by chunk."""

import struct
import zlib


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of chunks, each of a kind and its data."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
