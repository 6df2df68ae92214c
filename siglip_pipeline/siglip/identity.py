"""Identify the configured model: its :class:`ModelSpec`, from files alone, without torch.

Two vectors may be compared if the keys of their models are equal. The key is a hash of the name,
the resolved commit, the bytes of the weights, the architecture, the tokenizer's files and every
preprocessing choice. It omits what does not change the meaning of a vector: device, dtype and batch
size.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from siglip_pipeline.errors import ModelError
from siglip_pipeline.records import ModelSpec
from siglip_pipeline.siglip.checkpoint import COMMIT, Checkpoint, open_checkpoint
from siglip_pipeline.siglip.hub import cached_commit
from siglip_pipeline.siglip.json_cache import add_to_cache, read_cache
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.recipe import Recipe, read_recipe
from siglip_pipeline.siglip.weights import read_header

_SAMPLE_BYTES = 64
_SHA256_NAME = re.compile(r"[0-9a-f]{64}")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Written by save_pretrained; these keys do not affect what the model computes.
_NOT_ARCHITECTURE = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version",
}  # fmt: skip


def model_spec(options: ModelOptions) -> ModelSpec:
    """Return the identity of the configured model, equal to that of the loaded model.

    Raises:
        ModelError: as :func:`.checkpoint.open_checkpoint` and :func:`.recipe.read_recipe`.
    """
    checkpoint = open_checkpoint(options)
    recipe = read_recipe(checkpoint, max_num_patches=options.max_num_patches)
    return spec_of(checkpoint, recipe, cache=options.fingerprints)


def vectors_code_version(options: ModelOptions) -> str:
    """Return a text that differs where the vectors of two configured models do.

    It depends on the same inputs as :func:`model_spec`, but takes milliseconds and sends no request
    to the hub: of the weights it reads the headers and a few bytes of every tensor. A hub model is
    identified by the commit of the snapshot in the local cache, an unreadable one by its name.
    """
    patches = "" if options.max_num_patches is None else f" {options.max_num_patches} patches"
    folder = Path(options.name).expanduser()
    if not folder.is_dir():
        commit = cached_commit(options.name, options.revision) or options.revision
        return f"{options.name}{f'@{commit}' if commit else ''}{patches}"
    digest = _sampled(options)
    return f"{options.name}{patches}" if digest is None else f"{folder.name} {digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A configured model, as two machines can compare it; neither need have its files."""

    name: str
    """Hub id, or the name of the folder, wherever it lies; with the patches that are asked for."""
    version: str
    """Empty if the files are not there."""

    def __str__(self) -> str:
        return f"{self.name} ({self.version or 'its files are not there'})"

    def agrees(self, other: "ModelVersion") -> bool:
        """Return whether both may be the same; where the files are not there, names decide."""
        if self.version and other.version:
            return self == other
        return self.name == other.name


def model_version(options: ModelOptions) -> ModelVersion:
    """Return the configured model, from what :func:`vectors_code_version` reads."""
    folder = Path(options.name).expanduser()
    name = folder.name
    if folder.is_dir():
        version = _sampled(options)
    else:
        name = options.name if _HUB_ID.fullmatch(options.name) else name
        pinned = options.revision if COMMIT.fullmatch(options.revision or "") else None
        version = cached_commit(options.name, options.revision) or pinned
    if options.max_num_patches is not None:
        name = f"{name} with {options.max_num_patches} patches"
    return ModelVersion(name=name, version=version or "")


def _sampled(options: ModelOptions) -> str | None:
    """Return a hash of a folder's model from some of its bytes; None if it cannot be read."""
    try:
        checkpoint = open_checkpoint(options)
        recipe = read_recipe(checkpoint, max_num_patches=options.max_num_patches)
        samples = [_sample(file, checkpoint.name) for file in checkpoint.weights]
    except (ModelError, OSError):
        return None
    return _digest(_parts(checkpoint, recipe, samples))[:12]


def spec_of(checkpoint: Checkpoint, recipe: Recipe, *, cache: Path | None = None) -> ModelSpec:
    """Return the identity of an opened checkpoint.

    Args:
        checkpoint: an opened checkpoint.
        recipe: the preprocessing of its inputs.
        cache: a JSON file that caches the hashes of weight files, which take about a second per
            gigabyte; a file is unchanged while its size, inode and modification time are.
    """
    weights = [_fingerprint(file, cache) for file in checkpoint.weights]
    parts = _parts(checkpoint, recipe, weights)
    slug = re.sub(r"[^a-z0-9]+", "-", parts["name"].rsplit("/", 1)[-1].lower()).strip("-")
    return ModelSpec(
        name=checkpoint.name,
        revision=checkpoint.revision,
        key=f"{slug[:40] or 'model'}-{_digest(parts)[:12]}",
        dim=int(checkpoint.vision_config.get("hidden_size", 768)),
        logit_scale=checkpoint.logit_scale,
        logit_bias=checkpoint.logit_bias,
        preprocess=parts["preprocess"],
    )


class _Parts(TypedDict):
    """All that the vectors of a checkpoint depend on; its JSON is hashed."""

    name: str
    revision: str | None
    weights: list[str]
    architecture: dict[str, Any]
    preprocess: dict[str, Any]


def _parts(checkpoint: Checkpoint, recipe: Recipe, weights: Sequence[str]) -> _Parts:
    """Return all that the vectors of a checkpoint depend on."""
    tokenizer = {file.name: _sha256(file) for file in checkpoint.tokenizer_files}
    return {
        # A folder is known by its own name: moving it does not make its vectors another model's.
        "name": checkpoint.name if checkpoint.revision else checkpoint.folder.name,
        "revision": checkpoint.revision,
        "weights": [*weights],
        "architecture": _architecture(checkpoint.config),
        "preprocess": {**recipe.to_json(), "tokenizer": _digest(tokenizer)[:16]},
    }


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _architecture(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NOT_ARCHITECTURE
    }


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sample(file: Path, name: str) -> str:
    """Return a hash of a weights file's header and of some bytes in the middle of each tensor."""
    header, data = read_header(file, name)
    digest = hashlib.sha256(_digest(header).encode())
    with file.open("rb") as stream:
        for tensor in sorted(header):
            begin, end = header[tensor]["data_offsets"]
            stream.seek(data + (begin + end) // 2)
            digest.update(stream.read(min(_SAMPLE_BYTES, end - (begin + end) // 2)))
    return digest.hexdigest()


def _fingerprint(file: Path, cache: Path | None) -> str:
    """Return the SHA-256 of a weights file."""
    real = file.resolve()
    if _SHA256_NAME.fullmatch(real.name):
        return real.name  # the hub's cache names a large file by its SHA-256
    if cache is None:
        return _sha256(real)
    stat = real.stat()
    state = f"{stat.st_size}-{stat.st_ino}-{stat.st_mtime_ns}"
    entry = read_cache(cache).get(str(real))
    if isinstance(entry, list) and len(entry) == 2 and entry[0] == state:
        return str(entry[1])
    digest = _sha256(real)
    add_to_cache(cache, str(real), [state, digest])
    return digest
