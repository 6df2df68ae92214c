"""Recognise picture formats by a file's first bytes, and explain why other files are refused."""

import codecs
from typing import Final

from siglip_pipeline.errors import QueryError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000")
"""Accepted formats, by Pillow's names. Pillow would also read formats that start programs."""

HEAD_BYTES: Final = 1024
"""Bytes of a file that are enough to recognise it."""

_NAMED: Final = "JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC, AVIF or JPEG 2000"
_PICTURES: Final = (
    ("JPEG", (b"\xff\xd8\xff",)),
    ("PNG", (b"\x89PNG\r\n\x1a\n",)),
    ("GIF", (b"GIF87a", b"GIF89a")),
    ("BMP", (b"BM",)),
    ("JPEG2000", (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0\x08\0", b"MM\0+\0\x08")),
)
_VIDEOS: Final = (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"OggS", b"FLV\x01", b"0&\xb2u\x8ef\xcf\x11")
_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_HEIF_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2"})
"""Brands of stills. `hevc` and `msf1` are sequences, which FFmpeg reads as videos."""
_VIDEO: Final = (
    "is a video or sound, not a picture: give one frame of it as a JPEG, or search by a clip with "
    "`siglip-pipeline search --clip FILE`"
)


def picture_format(data: bytes, name: str) -> str:
    """Return which of :data:`FORMATS` a file is by its first bytes.

    Args:
        data: the file, or its first :data:`HEAD_BYTES`.
        name: name of the file in messages.

    Raises:
        QueryError: it is another kind of file; the message gives the kind and the remedy.
    """
    head = data[:HEAD_BYTES]
    if (format := format_of(head)) is not None:
        return format
    raise QueryError(f"{name} {_what_else(head, _brands(head))}")


def format_of(head: bytes) -> str | None:
    """Return which of :data:`FORMATS` a file with these first bytes has; None if none of them."""
    for format, magics in _PICTURES:
        if head.startswith(magics):
            return format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    brands = _brands(head)
    if not brands or brands[0] not in _AVIF_BRANDS | _HEIF_BRANDS | {b"msf1"}:
        return None
    if not _AVIF_BRANDS.isdisjoint(brands):
        return "AVIF"
    return "HEIF" if brands[0] in _HEIF_BRANDS else None


def _what_else(head: bytes, brands: list[bytes]) -> str:
    if not head:
        return f"is empty: give a picture as {_NAMED}"
    is_transport_stream = len(head) > 188 and head[0] == head[188] == 0x47
    is_avi_or_wave = head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WAVE")
    if brands or head.startswith(_VIDEOS) or is_transport_stream or is_avi_or_wave:
        return _VIDEO
    if _is_text(head):
        if b"<svg" in head:
            return "is an SVG drawing, which is not read: export it as PNG"
        return f"is text, not a picture: search for its words, or give a picture as {_NAMED}"
    if head.startswith(b"%PDF-"):
        return "is a PDF document, not a picture: export the page as PNG"
    return f"is not a picture of a known format: give one as {_NAMED}"


def _brands(head: bytes) -> list[bytes]:
    """Return the brands in the `ftyp` box of an ISO media file; none for another file."""
    if head[4:8] != b"ftyp":
        return []
    box = head[8 : int.from_bytes(head[:4], "big")]
    return [box[at : at + 4] for at in range(0, len(box), 4) if at != 4]  # 4: a version


def _is_text(head: bytes) -> bool:
    try:
        # An incremental decoder accepts a character that is cut at the end.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
