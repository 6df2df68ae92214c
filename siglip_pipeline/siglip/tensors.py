"""Read the weights of a checkpoint in the wanted number format, without holding them twice.

A library that maps a file and converts what it reads holds every page of the file until the end:
for the base model in bfloat16, three times its weights.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from siglip_pipeline.errors import CorruptWeightsError
from siglip_pipeline.siglip.weights import read_header

_STORED: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_PART: Final = 1 << 22
"""Numbers that are converted at a time."""


def read_tensors(
    files: tuple[Path, ...],
    name: str,
    *,
    beginning: str,
    dtype: torch.dtype,
    as_stored: str | None = None,
) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin so, in ``dtype``.

    Those that are stored in it are mapped into memory: processes share them, and of the vocabulary
    only the rows that are used are read.

    Args:
        files: safetensors files that were checked by :func:`.read_header`.
        name: of the model, for errors.
        beginning: of the names; empty for all.
        dtype: a floating-point type.
        as_stored: a tensor that keeps the type in which it is stored, and is mapped.

    Raises:
        CorruptWeightsError: a tensor is of another type than SigLIP's, or not as long as its shape.
    """
    tensors = {}
    for file in files:
        header, data = read_header(file, name)
        # Copy on write: torch wants memory that may be written to.
        mapped = torch.from_numpy(np.memmap(file, np.uint8, mode="c"))
        for key, entry in header.items():
            if key.startswith(beginning):
                begin, end = (data + offset for offset in entry["data_offsets"])
                what = f"{name!r}: {key} in {file.name}"
                stored = _stored_type(entry, what, end - begin)
                is_kept = stored is dtype or key == as_stored
                tensor = (
                    mapped[begin:end].view(stored)
                    if is_kept and begin % stored.itemsize == 0
                    else _converted(file, begin, (end - begin) // stored.itemsize, stored, dtype)
                )
                tensors[key] = tensor.reshape(entry["shape"])
    return tensors


def _stored_type(entry: Mapping[str, Any], what: str, size: int) -> torch.dtype:
    stored, shape = _STORED.get(entry["dtype"]), entry["shape"]
    if stored is None:
        raise CorruptWeightsError(f"{what} is {entry['dtype']}, allowed are {', '.join(_STORED)}")
    if size != math.prod(shape) * stored.itemsize:
        raise CorruptWeightsError(f"{what} has {size} bytes, which is not {shape} of {stored}")
    return stored


def _converted(
    file: Path, begin: int, count: int, stored: torch.dtype, dtype: torch.dtype
) -> torch.Tensor:
    """Read numbers part by part, so that at no time all of them are there in both types."""
    tensor = torch.empty(count, dtype=dtype)
    with file.open("rb") as stream:
        stream.seek(begin)
        for first in range(0, count, _PART):
            part = tensor[first : first + _PART]
            read = np.fromfile(stream, np.uint8, len(part) * stored.itemsize)
            part.copy_(torch.from_numpy(read).view(stored))
    return tensor
