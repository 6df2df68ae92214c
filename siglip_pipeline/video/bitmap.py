"""Read the bitmaps (BMP) that Pillow does not read as others do: bit fields and run lengths."""

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from siglip_pipeline.records import IntArray
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

_ROW_ENDS, _PICTURE_ENDS, _JUMP, _SINGLES, _RUN = range(5)
"""What a command of run lengths does. A count of zero begins all but a run."""
_BLOCK: Final = 2**18
"""Commands that are taken at once."""

_Value = TypeVar("_Value", bound=np.generic)


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
        picture = Image.fromarray(numbers.reshape(height, width), "P")
        picture.putpalette(self.palette, "BGRX")
        return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def _expanded(data: bytes, width: int, height: int, bits: int) -> tuple[NDArray[np.uint8], bool]:
    """Return the colour number of each pixel, from below, and whether the runs go to the end."""
    numbers = np.zeros(width * height, np.uint8)
    singles_S = _unpacked(np.frombuffer(data, np.uint8), bits)
    words_W2 = np.frombuffer(data, np.uint8, len(data) // 2 * 2).reshape(-1, 2)
    x = y = at = 0
    while y < height and at < len(words_W2):
        at_C, at = _commands(words_W2, at, bits)
        count_C, value_C = words_W2[at_C].T.astype(np.int64)
        kind_C = np.where(count_C > 0, _RUN, np.minimum(value_C, _SINGLES))
        single_C = (at_C + 1) * (16 // bits)
        there_C = np.minimum(value_C, singles_S.size - single_C)
        size_C = np.select([kind_C == _RUN, kind_C == _SINGLES], [count_C, there_C])
        right_C, up_C = size_C.copy(), (kind_C == _ROW_ENDS).astype(np.int64)
        jumps = np.flatnonzero((kind_C == _JUMP) & (at_C + 1 < len(words_W2)))
        right_C[jumps], up_C[jumps] = words_W2[at_C[jumps] + 1].T

        # Where each command begins. Beyond the right edge it sets no pixel, however far it goes.
        y_C = y + np.cumsum(up_C) - up_C
        way_C = x + np.cumsum(right_C) - right_C
        x_C = way_C - np.maximum.accumulate(np.where(kind_C == _ROW_ENDS, way_C, 0))
        length_C = np.minimum(size_C, width - x_C)
        is_over_C = np.logical_or.accumulate((kind_C == _PICTURE_ENDS) | (y_C >= height))
        place_C, is_set_C = y_C * width + x_C, (length_C > 0) & ~is_over_C
        of_run, of_single = (np.flatnonzero(is_set_C & (kind_C == k)) for k in (_RUN, _SINGLES))
        _fill(numbers, place_C[of_run], length_C[of_run], value_C[of_run], bits)
        _copy(numbers, place_C[of_single], length_C[of_single], singles_S, single_C[of_single])
        if is_over_C[-1]:
            return numbers, True
        x, y = int(x_C[-1] + right_C[-1]), int(y_C[-1] + up_C[-1])
    return numbers, y >= height or (y == height - 1 and x >= width)


def _commands(words_W2: NDArray[np.uint8], at: int, bits: int) -> tuple[IntArray, int]:
    """Return where the next commands lie among the words, and where the one after them does."""
    block_W2 = words_W2[at : at + _BLOCK]
    escapes = np.flatnonzero((block_W2[:, 0] == 0) & (block_W2[:, 1] >= _JUMP))
    value_E = block_W2[escapes, 1].astype(np.int64)
    follow_E = np.where(value_E == _JUMP, 1, (value_E * bits + 15) // 16)
    is_command_W = np.ones(len(block_W2), np.bool_)
    after = 0
    for escape, follow in zip(escapes.tolist(), follow_E.tolist(), strict=True):
        if escape >= after:  # otherwise it belongs to the one before
            after = escape + 1 + follow
            is_command_W[escape + 1 : after] = False
    return at + np.flatnonzero(is_command_W), at + max(len(block_W2), after)


def _fill(
    numbers: NDArray[np.uint8], begin_R: IntArray, length_R: IntArray, value_R: IntArray, bits: int
) -> None:
    """Set the pixels of each run to its number; of 4 bits it has two, in turn."""
    if not begin_R.size:
        return
    filled = _spread(value_R.astype(np.uint8), begin_R, length_R)
    if bits == 4:
        is_odd = _spread((begin_R - begin_R[0] & 1).astype(np.bool_), begin_R, length_R)
        is_odd[1::2] ^= True
        filled = np.where(is_odd, filled & 15, filled >> 4)
    numbers[begin_R[0] :][: filled.size] = filled


def _copy(
    numbers: NDArray[np.uint8],
    begin_R: IntArray,
    length_R: IntArray,
    singles_S: NDArray[np.uint8],
    single_R: IntArray,
) -> None:
    """Set pixels to single numbers, run by run."""
    if not begin_R.size:
        return
    every_R = np.ones(begin_R.size, np.bool_)
    to = _spread(every_R, begin_R, length_R)
    taken = _spread(every_R, single_R, length_R)
    numbers[begin_R[0] :][: to.size][to] = singles_S[single_R[0] :][: taken.size][taken]


def _spread(values_R: NDArray[_Value], begin_R: IntArray, length_R: IntArray) -> NDArray[_Value]:
    """Return the value of each run in its place, from the first to the last; zeros between."""
    edges = np.column_stack([begin_R, begin_R + length_R]).ravel()
    values = np.zeros(edges.size - 1, values_R.dtype)
    values[::2] = values_R
    return np.repeat(values, np.diff(edges))


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return one byte for each colour number."""
    return packed if bits == 8 else np.column_stack([packed >> 4, packed & 15]).ravel()


def _samples(codes_HW: NDArray[np.unsignedinteger], mask: int) -> NDArray[np.uint8]:
    """Return the bits of one field as 0 to 255."""
    if mask == 0:
        return np.zeros(codes_HW.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    values = (codes_HW & mask) >> shift
    return np.asarray(np.rint(values * (255 / (mask >> shift))), np.uint8)
