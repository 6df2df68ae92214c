"""How pixels and words are prepared for a checkpoint: read from its files, fixed in one record.

No torch here: the record is part of the model's identity, and that must be known cheaply.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from siglip_pipeline.errors import UnsupportedModelError
from siglip_pipeline.siglip.checkpoint import Checkpoint, Family

Resample = Literal["bilinear", "bicubic"]

VERSION = 1
"""Raised whenever :mod:`.preprocess` changes what comes out for the same recipe."""

# Pillow's numbers, which image processors store.
_RESAMPLES: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}

# Defaults of SiglipImageProcessor and Siglip2ImageProcessor in transformers 5.23, for keys that an
# old file leaves out.
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
    """Factor on the 0-255 value before ``mean`` and ``std`` apply."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    size: int | None
    """Height and width in pixels; None for NaFlex."""
    max_num_patches: int | None
    """NaFlex only: upper bound of patches per picture."""
    text_length: int
    """Tokens; every text is padded or cut to exactly this many."""

    def to_json(self) -> dict[str, Any]:
        """The recipe as it is stored with the model."""
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
"""Of one picture, a hundred times what a NaFlex model is trained with."""


def read_recipe(checkpoint: Checkpoint, *, max_num_patches: int | None = None) -> Recipe:
    """The recipe that a checkpoint's files ask for.

    Args:
        checkpoint: an opened checkpoint.
        max_num_patches: for NaFlex models, instead of the checkpoint's own number.

    Raises:
        UnsupportedModelError: a resampling filter, size or patch count that cannot be followed
            exactly, or ``max_num_patches`` for a model of fixed resolution.
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
    asked = {**_SHARED_DEFAULTS, **_DEFAULTS[family]}
    asked.update({k: v for k, v in checkpoint.processor.items() if v is not None})
    resample = _RESAMPLES.get(asked["resample"])
    if resample is None or not asked["do_resize"]:
        raise UnsupportedModelError(
            f"{checkpoint.name!r}: its image processor has do_resize={asked['do_resize']} and "
            f"resample={asked['resample']}; allowed are true and 2 (bilinear) or 3 (bicubic)"
        )
    scale = float(asked["rescale_factor"]) if asked["do_rescale"] else 1.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if asked["do_normalize"]:
        mean, std = (
            _triple(checkpoint, asked, "image_mean"),
            _triple(checkpoint, asked, "image_std"),
        )
    size = patches = None
    if family == "siglip":
        size = _square_size(checkpoint, asked["size"])
        if max_num_patches is not None:
            raise UnsupportedModelError(
                f"SIGLIP_MAX_NUM_PATCHES={max_num_patches} is for NaFlex models such as "
                f"'google/siglip2-base-patch16-naflex'; {checkpoint.name!r} has a fixed resolution "
                f"of {size} pixels: unset it"
            )
    else:
        patches = int(max_num_patches or asked["max_num_patches"])
        if not 1 <= patches <= MAX_PATCHES:
            raise ValueError(f"max_num_patches={patches} is not between 1 and {MAX_PATCHES}")
    return Recipe(
        family=family,
        resample=resample,
        scale=scale,
        mean=mean,
        std=std,
        patch_size=_patch_size(checkpoint, asked),
        size=size,
        max_num_patches=patches,
        # The text tower pools the last position, so it only works at its full length.
        text_length=int(checkpoint.text_config.get("max_position_embeddings", 64)),
    )


def target_size(height: int, width: int, recipe: Recipe) -> tuple[int, int]:
    """Height and width in pixels that a picture of ``height`` x ``width`` is resized to."""
    if recipe.size is not None:
        return recipe.size, recipe.size
    assert recipe.max_num_patches is not None
    return naflex_size(height, width, recipe.patch_size, recipe.max_num_patches)


def naflex_size(height: int, width: int, patch: int, max_num_patches: int) -> tuple[int, int]:
    """The largest size of about the same aspect ratio that is at most ``max_num_patches`` patches.

    Both sides are multiples of ``patch``. The search is the one that NaFlex checkpoints were
    trained with (transformers' ``get_image_size_for_max_num_patches``), step for step: at the
    edges a closed formula would differ by a patch.
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
    checkpoint: Checkpoint, asked: Mapping[str, Any], key: str
) -> tuple[float, float, float]:
    value = asked[key]
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


def _patch_size(checkpoint: Checkpoint, asked: Mapping[str, Any]) -> int:
    trained = int(checkpoint.vision_config.get("patch_size", 16))
    if checkpoint.family == "siglip2" and int(asked["patch_size"]) != trained:
        raise UnsupportedModelError(
            f"{checkpoint.name!r}: its image processor cuts patches of {asked['patch_size']} "
            f"pixels but the model takes {trained}; preprocessor_config.json and config.json "
            "must agree"
        )
    return trained
