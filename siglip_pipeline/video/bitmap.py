"""Read BMP with bit fields (BI_BITFIELDS, BI_ALPHABITFIELDS), of which Pillow supports few."""

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

BIT_FIELDS: Final = (3, 6)
_MASKS_AT: Final = 54
"""Offset of the masks: after a header of 40 bytes, and at the same place in longer headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BitFields:
    """The header of such a bitmap."""

    size: tuple[int, int]
    bottom_up: bool
    bits: int
    masks: tuple[int, ...]
    """Of red, green, blue, and alpha if there is one."""
    data_at: int

    @classmethod
    def read(cls, file: BinaryIO) -> "BitFields | None":
        """Return the header; None for every other file."""
        file.seek(0)
        head = file.read(_MASKS_AT + 16)
        if len(head) < _MASKS_AT + 16 or not head.startswith(b"BM"):
            return None
        data_at, header_size, width, height, _, bits, compression = struct.unpack_from(
            "<IIiiHHI", head, 10
        )
        if compression not in BIT_FIELDS or bits not in (16, 32) or width < 1 or not height:
            return None
        *colours, alpha = struct.unpack_from("<4I", head, _MASKS_AT)
        has_alpha = alpha and (header_size >= 56 or compression == 6)
        return cls(
            size=(width, abs(height)),
            bottom_up=height > 0,
            bits=bits,
            masks=(*colours, alpha) if has_alpha else tuple(colours),
            data_at=data_at,
        )

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


def _samples(codes_HW: NDArray[np.unsignedinteger], mask: int) -> NDArray[np.uint8]:
    """Return the bits of one field as 0 to 255."""
    if mask == 0:
        return np.zeros(codes_HW.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    values = (codes_HW & mask) >> shift
    return np.asarray(np.rint(values * (255 / (mask >> shift))), np.uint8)
