"""Read headers of safetensors files without a library, so that a hostile file is harmless.

The format: a little-endian uint64 with the header's length, the header as JSON, the tensors' bytes
without gaps (https://github.com/huggingface/safetensors#format).
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from siglip_pipeline.errors import CorruptWeightsError, UnsupportedModelError
from siglip_pipeline.siglip.hub import EXAMPLE

MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the safetensors library; a checkpoint of this family needs 100 KB."""

_SCALAR_FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e"}


def read_header(file: Path, name: str) -> tuple[dict[str, Any], int]:
    """Return a safetensors header, and the offset at which the data starts.

    Raises:
        CorruptWeightsError: the file is not safetensors, or not as long as the header promises.
    """
    remedy = "delete it and download it again"
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise CorruptWeightsError(
                f"{name!r}: {file.name} is truncated or not safetensors ({size} bytes): {remedy}"
            )
        if length > MAX_HEADER_BYTES:
            raise CorruptWeightsError(
                f"{name!r}: {file.name} has a header of {length} bytes, at most {MAX_HEADER_BYTES} "
                f"are allowed: {remedy}"
            )
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((_end(tensor) for tensor in header.values()), default=0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise CorruptWeightsError(
                f"{name!r}: the header of {file.name} cannot be read ({error}): {remedy}"
            ) from error
    if size != 8 + length + end:
        raise CorruptWeightsError(
            f"{name!r}: {file.name} has {size} bytes where its header promises "
            f"{8 + length + end}: {remedy}"
        )
    return header, 8 + length


def _end(tensor: Mapping[str, Any]) -> int:
    """Return where a tensor ends; raise if its entry is invalid."""
    begin, end = tensor["data_offsets"]
    if not (isinstance(tensor["dtype"], str) and isinstance(tensor["shape"], list)):
        raise TypeError("an entry without type or shape")
    if not all(isinstance(length, int) and length >= 0 for length in tensor["shape"]):
        raise ValueError(f"shape {tensor['shape']}")
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end):
        raise ValueError(f"offsets {begin} to {end}")
    return end


def read_scalars(files: tuple[Path, ...], names: tuple[str, ...], model: str) -> dict[str, float]:
    """Return tensors of one number, by name.

    Raises:
        UnsupportedModelError: a tensor is in none of the files.
        CorruptWeightsError: a tensor is not a single finite number.
    """
    found: dict[str, float] = {}
    for file in files:
        header, data_start = read_header(file, model)
        for name in names:
            if name in header:
                found[name] = _read_scalar(file, header[name], data_start, f"{model!r}: {name}")
    missing = [name for name in names if name not in found]
    if missing:
        raise UnsupportedModelError(
            f"{model!r} has no {' and no '.join(missing)}: a part of a SigLIP model (one tower, or "
            f"a classifier) cannot be used; both towers are needed, as in {EXAMPLE!r}"
        )
    return found


def _read_scalar(file: Path, entry: Mapping[str, Any], data_start: int, what: str) -> float:
    begin, end = entry["data_offsets"]
    with file.open("rb") as stream:
        stream.seek(data_start + begin)
        raw = stream.read(min(end - begin, 16))
    dtype = entry["dtype"]
    if dtype == "BF16" and len(raw) == 2:
        raw, dtype = b"\0\0" + raw, "F32"  # bfloat16 is the upper half of a float32
    form = _SCALAR_FORMATS.get(dtype)
    if form is None or struct.calcsize(form) != len(raw):
        raise CorruptWeightsError(f"{what} is {dtype} of shape {entry['shape']}, expected a scalar")
    value = float(struct.unpack(form, raw)[0])
    if not math.isfinite(value):
        raise CorruptWeightsError(f"{what} is {value}")
    return value
