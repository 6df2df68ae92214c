"""Find what follows the end of a film in its file.

FFmpeg reads MP4 and QuickTime files by their first index, so of two files that were joined byte by
byte it shows the first one. In other containers it continues with what follows.
"""

from typing import BinaryIO, Final

from siglip_pipeline.video.boxes import boxes, read_at
from siglip_pipeline.video.source import MediaSource

MOST_BOXES: Final = 64
"""A film of more boxes is in fragments, and is not searched: that would read all of the file."""

_FILM: Final = frozenset((b"mdat", b"moov", b"moof", b"free", b"skip", b"wide"))
_BEGIN: Final = frozenset((b"ftyp", b"moov"))
_PADDING_BYTES: Final = 2**16


def trailing_data(source: MediaSource, container: str) -> list[str]:
    """Return a warning if a film is followed by data that is not shown.

    Args:
        source: the file.
        container: FFmpeg's name of its format.
    """
    if not container.startswith("mov,"):
        return []
    with source.open() as file:
        size = file.seek(0, 2)
        end, begins = _film_end(file, size)
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
