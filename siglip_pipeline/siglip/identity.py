"""Identify the configured model: its :class:`ModelSpec`, from files alone, without torch.

Two vectors may be compared if the keys of their models are equal. The key is a hash of the name,
the resolved commit, the bytes of the weights, the architecture, the tokenizer's files and every
preprocessing choice. It omits what does not change the meaning of a vector: device, dtype and batch
size.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_pipeline.records import ModelSpec
from siglip_pipeline.siglip.checkpoint import Checkpoint, open_checkpoint
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.recipe import Recipe, read_recipe

_SHA256_NAME = re.compile(r"[0-9a-f]{64}")
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


def spec_of(checkpoint: Checkpoint, recipe: Recipe, *, cache: Path | None = None) -> ModelSpec:
    """Return the identity of an opened checkpoint.

    Args:
        checkpoint: an opened checkpoint.
        recipe: the preprocessing of its inputs.
        cache: a JSON file that caches the hashes of weight files, which take about a second per
            gigabyte; a file is unchanged while its size, inode and modification time are.
    """
    weights = [_fingerprint(file, cache) for file in checkpoint.weights]
    tokenizer = {file.name: _sha256(file) for file in checkpoint.tokenizer_files}
    preprocess = {**recipe.to_json(), "tokenizer": _digest(tokenizer)[:16]}
    # A folder is identified by its own name, so that moving it does not change the key.
    known_as = checkpoint.name if checkpoint.revision else checkpoint.folder.name
    identity = {
        "name": known_as,
        "revision": checkpoint.revision,
        "weights": weights,
        "architecture": _architecture(checkpoint.config),
        "preprocess": preprocess,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", known_as.rsplit("/", 1)[-1].lower()).strip("-")
    return ModelSpec(
        name=checkpoint.name,
        revision=checkpoint.revision,
        key=f"{slug[:40] or 'model'}-{_digest(identity)[:12]}",
        dim=int(checkpoint.vision_config.get("hidden_size", 768)),
        logit_scale=checkpoint.logit_scale,
        logit_bias=checkpoint.logit_bias,
        preprocess=preprocess,
    )


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


def _fingerprint(file: Path, cache: Path | None) -> str:
    """Return the SHA-256 of a weights file."""
    real = file.resolve()
    if _SHA256_NAME.fullmatch(real.name):
        return real.name  # the hub's cache names a large file by its SHA-256
    if cache is None:
        return _sha256(real)
    stat = real.stat()
    state = f"{stat.st_size}-{stat.st_ino}-{stat.st_mtime_ns}"
    known = _read_cache(cache)
    entry = known.get(str(real))
    if isinstance(entry, list) and len(entry) == 2 and entry[0] == state:
        return str(entry[1])
    digest = _sha256(real)
    _write_cache(cache, {**known, str(real): [state, digest]})
    return digest


def _read_cache(cache: Path) -> dict[str, Any]:
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # the hash is computed again
    return content if isinstance(content, dict) else {}


def _write_cache(cache: Path, content: dict[str, Any]) -> None:
    # With a read-only home the hash is computed in each process.
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=cache.parent, prefix=cache.name)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream)
        Path(temporary).replace(cache)
