"""The preprocessing of a checkpoint's inputs, read from its files into one record.

Imports no torch: the record is part of the model's identity, which must be cheap to read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from siglip_pipeline.errors import UnsupportedModelError
from siglip_pipeline.siglip.checkpoint import Checkpoint, Family

Resample = Literal["bilinear", "bicubic"]

VERSION = 1
"""Increased whenever :mod:`.preprocess` changes its output for the same recipe."""

# Pillow's numbers, which image processors store.
_RESAMPLES: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}

# Defaults of SiglipImageProcessor and Siglip2ImageProcessor in transformers 5.23, for keys that are
# missing in old files.
_DEFAULTS: dict[Family, dict[str, Any]] = {
    "siglip": {"resample": 3, "size": {"height": 224, "width": 224}},
    "siglip2": {"resample": 2, "patch_size": 16, "max_num_patches": 256},
}
_SHARED_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Every choice made between a decoded picture or a text and the model's input."""

    family: Family
    resample: Resample
    scale: float
    """Factor of the 0-255 value, before ``mean`` and ``std``."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    size: int | None
    """Height and width in pixels; None for NaFlex."""
    max_num_patches: int | None
    """NaFlex only: upper bound of patches per picture."""
    text_length: int
    """Tokens; every text is padded or truncated to exactly this many."""

    @property
    def most_patches(self) -> int:
        """Return the number of patches of a picture; for NaFlex, its upper bound."""
        if self.size is not None:
            return (self.size // self.patch_size) ** 2
        assert self.max_num_patches is not None
        return self.max_num_patches

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as it is stored with the model."""
        image: dict[str, Any] = {
            "resample": self.resample,
            "antialias": True,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "patch_size": self.patch_size,
        }
        if self.size is None:
            image["max_num_patches"] = self.max_num_patches
        else:
            image["size"] = self.size
        return {
            "version": VERSION,
            "family": self.family,
            "image": image,
            "text": {"lowercase": True, "padding": "max_length", "length": self.text_length},
        }


MAX_PATCHES = 65_536
"""The limit for one picture, a hundred times what a NaFlex model is trained with."""


def read_recipe(checkpoint: Checkpoint, *, max_num_patches: int | None = None) -> Recipe:
    """Return the recipe of a checkpoint's files.

    Args:
        checkpoint: an opened checkpoint.
        max_num_patches: replaces the checkpoint's own number; NaFlex models only.

    Raises:
        UnsupportedModelError: a resampling filter, size or patch count is not supported exactly, or
            ``max_num_patches`` is set for a model of fixed resolution.
    """
    try:
        return _read_recipe(checkpoint, max_num_patches)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UnsupportedModelError(
            f"{checkpoint.name!r}: its image processor's settings cannot be used ({error}); "
            "preprocessor_config.json is damaged, or not of a SigLIP model"
        ) from error


def _read_recipe(checkpoint: Checkpoint, max_num_patches: int | None) -> Recipe:
    family = checkpoint.family
    config = {**_SHARED_DEFAULTS, **_DEFAULTS[family]}
    config.update({k: v for k, v in checkpoint.processor.items() if v is not None})
    resample = _RESAMPLES.get(config["resample"])
    if resample is None or not config["do_resize"]:
        raise UnsupportedModelError(
            f"{checkpoint.name!r}: its image processor has do_resize={config['do_resize']} and "
            f"resample={config['resample']}; allowed are true and 2 (bilinear) or 3 (bicubic)"
        )
    scale = float(config["rescale_factor"]) if config["do_rescale"] else 1.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config["do_normalize"]:
        mean, std = (
            _triple(checkpoint, config, "image_mean"),
            _triple(checkpoint, config, "image_std"),
        )
    size = patches = None
    if family == "siglip":
        size = _square_size(checkpoint, config["size"])
        if max_num_patches is not None:
            raise UnsupportedModelError(
                f"SIGLIP_MAX_NUM_PATCHES={max_num_patches} is for NaFlex models such as "
                f"'google/siglip2-base-patch16-naflex'; {checkpoint.name!r} has a fixed resolution "
                f"of {size} pixels: unset it"
            )
    else:
        patches = int(max_num_patches or config["max_num_patches"])
        if not 1 <= patches <= MAX_PATCHES:
            raise ValueError(f"max_num_patches={patches} is not between 1 and {MAX_PATCHES}")
    return Recipe(
        family=family,
        resample=resample,
        scale=scale,
        mean=mean,
        std=std,
        patch_size=_patch_size(checkpoint, config),
        size=size,
        max_num_patches=patches,
        # The text tower pools the last position, so it only works at its full length.
        text_length=int(checkpoint.text_config.get("max_position_embeddings", 64)),
    )


def target_size(height: int, width: int, recipe: Recipe) -> tuple[int, int]:
    """Return the height and width in pixels that a picture is resized to."""
    if recipe.size is not None:
        return recipe.size, recipe.size
    assert recipe.max_num_patches is not None
    return _naflex_size(height, width, recipe.patch_size, recipe.max_num_patches)


def _naflex_size(height: int, width: int, patch: int, max_num_patches: int) -> tuple[int, int]:
    """Return the largest size of similar aspect ratio with at most ``max_num_patches`` patches.

    Both sides are multiples of ``patch``. The search repeats the one of NaFlex training
    (transformers' ``get_image_size_for_max_num_patches``) step by step, as a closed formula can
    differ by a patch.
    """

    def scaled(scale: float, side: int) -> int:
        return int(max(patch, math.ceil(side * scale / patch) * patch))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        patches = (scaled(middle, height) / patch) * (scaled(middle, width) / patch)
        low, high = (middle, high) if patches <= max_num_patches else (low, middle)
    return scaled(low, height), scaled(low, width)


def _triple(
    checkpoint: Checkpoint, config: Mapping[str, Any], key: str
) -> tuple[float, float, float]:
    value = config[key]
    values = [float(value)] * 3 if isinstance(value, (int, float)) else [float(v) for v in value]
    if len(values) != 3 or (key == "image_std" and 0.0 in values):
        raise UnsupportedModelError(
            f"{checkpoint.name!r}: {key}={value} in its image processor, expected three numbers"
            + (" other than 0" if key == "image_std" else "")
        )
    return values[0], values[1], values[2]


def _square_size(checkpoint: Checkpoint, size: Any) -> int:
    trained = checkpoint.vision_config.get("image_size", 224)
    height, width = (
        (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (size, size)
    )
    if height != width or height != trained:
        raise UnsupportedModelError(
            f"{checkpoint.name!r}: its image processor resizes to {size} but the model was built "
            f"for {trained} x {trained} pixels; preprocessor_config.json and config.json must agree"
        )
    return int(trained)


def _patch_size(checkpoint: Checkpoint, config: Mapping[str, Any]) -> int:
    trained = int(checkpoint.vision_config.get("patch_size", 16))
    if checkpoint.family == "siglip2" and int(config["patch_size"]) != trained:
        raise UnsupportedModelError(
            f"{checkpoint.name!r}: its image processor cuts patches of {config['patch_size']} "
            f"pixels but the model takes {trained}; preprocessor_config.json and config.json "
            "must agree"
        )
    return trained
