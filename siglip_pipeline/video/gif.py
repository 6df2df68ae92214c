"""The patches of a GIF (GIF89a specification, CompuServe 1990)."""

import struct
from typing import BinaryIO, Final

from siglip_pipeline.video.patches import Disposal, Patch, PatchedAnimation
from siglip_pipeline.video.scan import MAX_PACKETS

_DISPOSALS: Final[dict[int, Disposal]] = {2: "clear", 3: "restore"}
_PALETTE, _PALETTE_SIZE = 0x80, 0x07


def read_gif(file: BinaryIO) -> PatchedAnimation:
    """Find the patches of a GIF. Patches with incomplete data count as expected only.

    The first patch is always included, so that a truncated still shows its readable part.

    Raises:
        ValueError: the file ends before its first patch begins.
    """
    file.seek(0)
    magic = file.read(6)
    width, height, flags, _, _ = struct.unpack("<HHBBB", _exactly(file, 7))
    palette = _exactly(file, 3 * 2 ** (1 + (flags & _PALETTE_SIZE))) if flags & _PALETTE else b""
    patches: list[Patch] = []
    control = b"\0\0\0\0"
    expected = 0
    try:
        while len(patches) < MAX_PACKETS and (block := _exactly(file, 1)) != b";":
            if block == b"!":
                label = _exactly(file, 1)
                start = file.tell()
                _skip_blocks(file)
                if label == b"\xf9":
                    file.seek(start)
                    control = _exactly(file, 5)[1:]
                    _skip_blocks(file)
            elif block == b",":
                expected += 1
                patches.append(_patch(file, magic, flags, palette, control, is_first=not patches))
                control = b"\0\0\0\0"
    except EOFError:
        pass  # the file is cut off
    if not patches:
        raise ValueError("there is no picture in it")
    # As in browsers, the screen is as large as the first picture needs; others are cropped to it.
    first = patches[0]
    size = max(width, first.left + first.size[0]), max(height, first.top + first.size[1])
    return PatchedAnimation(format="GIF", size=size, patches=tuple(patches), expected=expected)


def _patch(
    file: BinaryIO,
    magic: bytes,
    screen_flags: int,
    palette: bytes,
    control: bytes,
    *,
    is_first: bool,
) -> Patch:
    left, top, width, height, flags = struct.unpack("<HHHHB", _exactly(file, 9))
    own = _exactly(file, 3 * 2 ** (1 + (flags & _PALETTE_SIZE))) if flags & _PALETTE else b""
    start = file.tell()
    _exactly(file, 1)  # the size of LZW's first codes
    try:
        _skip_blocks(file)
    except EOFError:
        if not is_first:
            raise
    disposal, delay, transparent = struct.unpack("<BHB", control)
    header = b"".join(
        [
            magic,
            struct.pack("<HHBBB", width, height, screen_flags, 0, 0),
            palette,
            b"!\xf9\4" + struct.pack("<BHB", disposal & 1, 0, transparent) + b"\0",
            b"," + struct.pack("<HHHHB", 0, 0, width, height, flags),
            own,
        ]
    )
    return Patch(
        spans=((start, file.tell() - start),),
        as_file=lambda data: header + data + b";",
        left=left,
        top=top,
        size=(width, height),
        duration_ms=10 * delay,
        disposal=_DISPOSALS.get(disposal >> 2 & 7, "keep"),
    )


def _skip_blocks(file: BinaryIO) -> None:
    while size := _exactly(file, 1)[0]:
        _exactly(file, size)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data
