"""Find, check and describe a SigLIP checkpoint on disk, without loading a tensor.

This module reads JSON and file headers only. It imports neither torch nor transformers, so that a
process that only identifies the configured model stays small.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from siglip_pipeline.errors import (
    CorruptWeightsError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from siglip_pipeline.siglip.bounds import check_bounds
from siglip_pipeline.siglip.hub import EXAMPLE, download
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.weights import read_header, read_scalars

Family = Literal["siglip", "siglip2"]
"""``siglip``: fixed resolution, of either generation. ``siglip2``: NaFlex, with aspect ratio."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
MAX_JSON_BYTES: Final = 20_000_000
"""Largest config.json or index; real ones have kilobytes. This module reads no tokenizers."""

COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint's files, and the content of its JSON."""

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
    """Safetensors files, sorted by name; each has the length that its header states."""
    tokenizer_files: tuple[Path, ...]
    logit_scale: float
    logit_bias: float

    @property
    def vision_config(self) -> Mapping[str, Any]:
        """Return the vision tower's part of config.json; missing keys have the class's default."""
        return self.config.get("vision_config") or {}

    @property
    def text_config(self) -> Mapping[str, Any]:
        """Return the text tower's part of config.json; missing keys have the class's default."""
        return self.config.get("text_config") or {}


def open_checkpoint(options: ModelOptions) -> Checkpoint:
    """Find the checkpoint of ``options``, download it if needed, and check its files.

    Raises:
        ModelNotFoundError: no such folder or repository, or the hub cannot be reached and the
            model is not in the cache.
        ModelError: the hub failed, or its cache cannot be written.
        UnsupportedModelError: not a SigLIP or SigLIP 2 model with both towers.
        CorruptWeightsError: weights are missing, truncated, or only available as a pickle.
    """
    folder, revision = _locate(options.name, options.revision)
    name = options.name
    _check_links(folder, name)
    config = read_json(folder / "config.json", name)
    family = _family(name, config)
    check_bounds(name, config)
    weights = _weight_files(folder, name)
    scalars = read_scalars(weights, ("logit_scale", "logit_bias"), name)
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
    """Return the folder of the files, and the commit that it holds."""
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
    return folder, folder.name if COMMIT.fullmatch(folder.name) else None


def _check_links(folder: Path, name: str) -> None:
    """Refuse links out of the folder, whose targets would be read as files of the model.

    The hub's cache is made of links, from ``snapshots/<commit>/`` to ``blobs/`` beside it.
    """
    allowed = [folder.resolve()]
    if folder.parent.name == "snapshots":
        allowed.append((folder.parent.parent / "blobs").resolve())
    for file in sorted(folder.iterdir()):
        target = file.resolve()
        if file.is_symlink() and not any(target.is_relative_to(place) for place in allowed):
            raise UnsupportedModelError(
                f"{name!r}: {file.name} is a link that leads out of the folder; put the file "
                "itself there"
            )


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file of a checkpoint.

    Raises:
        UnsupportedModelError: there is none, or it is too large.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UnsupportedModelError(
                f"{name!r}: {path.name} has {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} "
                "are read"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModelError(
            f"{name!r} has no {path.name}: not a folder that transformers' save_pretrained wrote. "
            f"Expected a SigLIP checkpoint such as {EXAMPLE!r}"
        ) from error
    except (ValueError, RecursionError) as error:
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
        inside = read_json(combined, name).get("image_processor")
        if isinstance(inside, dict):
            return inside
    return read_json(folder / "preprocessor_config.json", name)


def _weight_files(folder: Path, name: str) -> tuple[Path, ...]:
    """Return the safetensors files, after checking that each is complete."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        files = [folder / shard for shard in _shards(index, name)]
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


def _shards(index: Path, name: str) -> list[str]:
    """Return the files that an index lists; each must be in the same folder."""
    listed = read_json(index, name).get("weight_map")
    shards: list[Any] = list(listed.values()) if isinstance(listed, dict) else [listed]
    for shard in shards:
        plain = isinstance(shard, str) and re.fullmatch(r"[\w][\w.-]*\.safetensors", shard)
        if not plain:
            raise CorruptWeightsError(
                f"{name!r}: {index.name} lists {shard!r}; only names of safetensors files in the "
                "same folder are allowed"
            )
    return sorted(set(shards))
