"""Read the bitmaps (BMP) that Pillow does not read as others do: bit fields and run lengths."""

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from siglip_pipeline.video.boxes import read_at
from siglip_pipeline.video.ffmpeg_picture import UnknownKindError

_HEADER_AT: Final = 14
_LONG_HEADER: Final = 40
"""Of the header BITMAPINFOHEADER, with which all longer ones begin; older ones are shorter."""
_MASKS_AT: Final = 54
"""Offset of the masks: after a header of 40 bytes, and at the same place in longer headers."""
_PLAIN: Final = 0
_BIT_FIELDS: Final = (3, 6)
_RUN_LENGTHS: Final = {1: 8, 2: 4}
"""Bits of a colour number, by compression."""


def open_bitmap(file: BinaryIO) -> "BitFields | RunLengths | None":
    """Return the header of a bitmap with bit fields or run lengths; None for every other file.

    Raises:
        UnknownKindError: it has another compression.
    """
    head = read_at(file, 0, _MASKS_AT + 16)
    if len(head) < _MASKS_AT or not head.startswith(b"BM"):
        return None
    data_at, header_size, width, height, _, bits, compression = struct.unpack_from(
        "<IIiiHHI", head, 10
    )
    if header_size < _LONG_HEADER or width < 1 or not height or compression == _PLAIN:
        return None
    if compression in _BIT_FIELDS and bits in (16, 32) and len(head) == _MASKS_AT + 16:
        *colours, alpha = struct.unpack_from("<4I", head, _MASKS_AT)
        has_alpha = alpha and (header_size >= 56 or compression == 6)
        return BitFields(
            size=(width, abs(height)),
            bottom_up=height > 0,
            bits=bits,
            masks=(*colours, alpha) if has_alpha else tuple(colours),
            data_at=data_at,
        )
    if _RUN_LENGTHS.get(compression) == bits and height > 0:
        palette_at = _HEADER_AT + header_size
        palette_bytes = 4 * (int.from_bytes(head[46:50], "little") or 2**bits)
        palette = read_at(file, palette_at, min(palette_bytes, 4 * 2**bits, data_at - palette_at))
        return RunLengths(size=(width, height), bits=bits, palette=palette, data_at=data_at)
    if compression not in (*_BIT_FIELDS, *_RUN_LENGTHS):
        raise UnknownKindError(
            f"a BMP with compression {compression}, which is not read here: save it as PNG"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class BitFields:
    """The header of a bitmap with bit fields (BI_BITFIELDS, BI_ALPHABITFIELDS)."""

    size: tuple[int, int]
    bottom_up: bool
    bits: int
    masks: tuple[int, ...]
    """Of red, green, blue, and alpha if there is one."""
    data_at: int

    def image(self, file: BinaryIO) -> Image.Image:
        """Return the picture as RGB or RGBA.

        Raises:
            ValueError: rows are missing.
        """
        width, height = self.size
        stride = (width * self.bits + 31) // 32 * 4
        file.seek(self.data_at)
        data = file.read(stride * height)
        if len(data) < stride * height and not ImageFile.LOAD_TRUNCATED_IMAGES:
            raise ValueError(f"{len(data) // stride} of {height} rows are there")
        rows_HS = np.frombuffer(data.ljust(stride * height, b"\0"), np.uint8).reshape(
            height, stride
        )
        codes_HW = rows_HS.view("<u2" if self.bits == 16 else "<u4")[:, :width]
        samples_HWC = np.stack([_samples(codes_HW, mask) for mask in self.masks], 2)
        if not samples_HWC[:, :, 3:].any():  # opacity that nothing was written to
            samples_HWC = np.ascontiguousarray(samples_HWC[:, :, :3])
        picture = Image.fromarray(samples_HWC)
        return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if self.bottom_up else picture


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLengths:
    """The header of a bitmap with run lengths (BI_RLE8, BI_RLE4), which is stored bottom up."""

    size: tuple[int, int]
    bits: int
    palette: bytes
    """Blue, green, red and an unused byte per colour."""
    data_at: int

    def image(self, file: BinaryIO) -> Image.Image:
        """Return the picture with its palette. What no run covers has the first colour.

        Raises:
            ValueError: the runs are cut off.
        """
        width, height = self.size
        file.seek(self.data_at)
        numbers, is_whole = _expanded(file.read(), width, height, self.bits)
        if not is_whole and not ImageFile.LOAD_TRUNCATED_IMAGES:
            raise ValueError("its runs are cut off")
        picture = Image.frombytes("P", self.size, bytes(numbers))
        picture.putpalette(self.palette, "BGRX")
        return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def _expanded(data: bytes, width: int, height: int, bits: int) -> tuple[bytearray, bool]:
    """Return the colour number of each pixel, from below, and whether the runs go to the end."""
    numbers = bytearray(width * height)
    x = y = at = 0
    while y < height and at + 2 <= len(data):
        count, value = data[at], data[at + 1]
        at += 2
        if count == 0 and value == 0:  # end of the row
            x, y = 0, y + 1
            continue
        if count == 0 and value == 1:  # end of the picture
            return numbers, True
        if count == 0 and value == 2:  # go on elsewhere
            right, up = data[at : at + 2] if at + 2 <= len(data) else (0, 0)
            x, y, at = x + right, y + up, at + 2
            continue
        if count == 0:  # single pixels, padded to 16 bits
            size = value if bits == 8 else (value + 1) // 2
            run = _unpacked(data[at : at + size], bits)[:value]
            at += size + size % 2
        else:
            run = (_unpacked(bytes([value]), bits) * count)[:count]
        run = run[: max(0, width - x)]
        numbers[y * width + x : y * width + x + len(run)] = run
        x += len(run)
    return numbers, y >= height or (y == height - 1 and x >= width)


def _unpacked(packed: bytes, bits: int) -> bytes:
    """Return one byte for each colour number."""
    if bits == 8:
        return packed
    return bytes(number for byte in packed for number in (byte >> 4, byte & 15))


def _samples(codes_HW: NDArray[np.unsignedinteger], mask: int) -> NDArray[np.uint8]:
    """Return the bits of one field as 0 to 255."""
    if mask == 0:
        return np.zeros(codes_HW.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    values = (codes_HW & mask) >> shift
    return np.asarray(np.rint(values * (255 / (mask >> shift))), np.uint8)
