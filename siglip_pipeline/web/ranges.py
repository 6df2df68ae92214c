"""Byte ranges of HTTP (RFC 9110, section 14), as players ask for them."""

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*", re.IGNORECASE)


class UnsatisfiableRangeError(ValueError):
    """The range lies outside the file."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Half-open: ``[start, end)``."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def content_range(self, size_bytes: int) -> str:
        """Return the header of a 206; its last byte is inclusive."""
        return f"bytes {self.start}-{self.end - 1}/{size_bytes}"


def parse_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """Return the single range that a request asks for; None: the whole file.

    Several ranges, other units and malformed headers get the whole file, as the RFC allows.

    Raises:
        UnsatisfiableRangeError: the range is well-formed and outside of the file.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size_bytes)
        if length == 0:
            raise UnsatisfiableRangeError(header)
        return ByteRange(size_bytes - length, size_bytes)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size_bytes:
        raise UnsatisfiableRangeError(header)
    return ByteRange(start, min(int(last) + 1, size_bytes) if last else size_bytes)
