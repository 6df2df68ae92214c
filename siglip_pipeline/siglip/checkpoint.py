"""A SigLIP checkpoint on disk: found, checked and described without loading a tensor.

Everything here reads JSON and file headers. Neither torch nor transformers is imported, so that a
process which only needs to know *which* model is configured stays small.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from siglip_pipeline.errors import (
    CorruptWeightsError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.hub import EXAMPLE, download

Family = Literal["siglip", "siglip2"]
"""``siglip``: fixed resolution, whichever generation. ``siglip2``: NaFlex, aspect ratio kept."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_COMMIT = re.compile(r"[0-9a-f]{40}")

_SCALAR_FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a checkpoint's files are, and what its JSON says."""

    name: str
    """Hub id or local folder, as the user wrote it."""
    revision: str | None
    """Resolved commit of a hub model; None for a local folder."""
    folder: Path
    family: Family
    config: Mapping[str, Any]
    """config.json"""
    processor: Mapping[str, Any]
    """The image processor's part of preprocessor_config.json or processor_config.json."""
    weights: tuple[Path, ...]
    """Safetensors files, sorted by name; each is as long as its header promises."""
    tokenizer_files: tuple[Path, ...]
    logit_scale: float
    logit_bias: float

    @property
    def vision_config(self) -> Mapping[str, Any]:
        """The vision tower's part of config.json; what it leaves out has the class's default."""
        return self.config.get("vision_config") or {}

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The text tower's part of config.json; what it leaves out has the class's default."""
        return self.config.get("text_config") or {}


def open_checkpoint(settings: Settings) -> Checkpoint:
    """Find the checkpoint that ``settings`` name, downloading it if need be, and check its files.

    Raises:
        ModelNotFoundError: no such folder or repository, or the hub cannot be reached and the
            model is not in the cache.
        ModelError: the hub failed, or its cache cannot be written.
        UnsupportedModelError: not a SigLIP or SigLIP 2 model with both towers.
        CorruptWeightsError: weights missing, truncated, or only there as a pickle.
    """
    folder, revision = _locate(settings.model_name, settings.model_revision)
    name = settings.model_name
    config = _read_json(folder / "config.json", name)
    family = _family(name, config)
    weights = _weight_files(folder, name)
    scalars = _read_scalars(weights, ("logit_scale", "logit_bias"), name)
    return Checkpoint(
        name=name,
        revision=revision,
        folder=folder,
        family=family,
        config=config,
        processor=_processor_config(folder, name),
        weights=weights,
        tokenizer_files=tuple(p for f in _TOKENIZER_FILES if (p := folder / f).is_file()),
        logit_scale=scalars["logit_scale"],
        logit_bias=scalars["logit_bias"],
    )


def _locate(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder that holds the files, and the commit it stands for."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve(), None
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelNotFoundError(
            f"SIGLIP_MODEL_NAME={name!r}: there is no such folder. Give a folder that exists, or a "
            f"hub id such as {EXAMPLE!r}"
        )
    folder = download(name, revision)
    # The cache's snapshot folders are named by commit.
    return folder, folder.name if _COMMIT.fullmatch(folder.name) else None


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModelError(
            f"{name!r} has no {path.name}: not a folder that transformers' save_pretrained wrote. "
            f"Expected a SigLIP checkpoint such as {EXAMPLE!r}"
        ) from error
    except ValueError as error:
        raise UnsupportedModelError(f"{name!r}: {path.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{name!r}: {path.name} is not a JSON object")
    return content


def _family(name: str, config: Mapping[str, Any]) -> Family:
    model_type = config.get("model_type")
    if model_type == "siglip":
        return "siglip"
    if model_type == "siglip2":
        return "siglip2"
    raise UnsupportedModelError(
        f"{name!r} is a {model_type!r} model; allowed are 'siglip' and 'siglip2' with both towers, "
        f"such as {EXAMPLE!r} or 'google/siglip2-so400m-patch14-384'"
    )


def _processor_config(folder: Path, name: str) -> dict[str, Any]:
    # Since transformers 5 a processor is saved as one file with the image processor inside.
    combined = folder / "processor_config.json"
    if combined.is_file():
        inside = _read_json(combined, name).get("image_processor")
        if isinstance(inside, dict):
            return inside
    return _read_json(folder / "preprocessor_config.json", name)


def _weight_files(folder: Path, name: str) -> tuple[Path, ...]:
    """The safetensors files, each checked to be complete."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        shards = set(_read_json(index, name).get("weight_map", {}).values())
        files = [folder / shard for shard in sorted(shards)]
    else:
        files = []
    if not files:
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        found = f"only {', '.join(pickles)}, and pickles are never loaded" if pickles else "none"
        raise CorruptWeightsError(
            f"{name!r}: no model.safetensors in {folder} ({found}). Convert the weights with "
            "transformers' save_pretrained, or choose a revision that has safetensors"
        )
    for file in files:
        if not file.is_file():
            raise CorruptWeightsError(
                f"{name!r}: {file.name} is listed in {index.name} but missing: download it again"
            )
        read_header(file, name)
    return tuple(files)


def read_header(file: Path, name: str) -> tuple[dict[str, Any], int]:
    """A safetensors header and the offset at which the data starts.

    The format: a little-endian uint64 with the header's length, the header as JSON, the tensors'
    bytes without gaps (https://github.com/huggingface/safetensors#format).

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
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((int(t["data_offsets"][1]) for t in header.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptWeightsError(
                f"{name!r}: the header of {file.name} cannot be read ({error}): {remedy}"
            ) from error
    if size != 8 + length + end:
        raise CorruptWeightsError(
            f"{name!r}: {file.name} has {size} bytes where its header promises "
            f"{8 + length + end}: {remedy}"
        )
    return header, 8 + length


def _read_scalars(files: tuple[Path, ...], names: tuple[str, ...], model: str) -> dict[str, float]:
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
        raw = stream.read(end - begin)
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
