"""Limit what a config.json may ask for: refuse numbers far beyond every model of this family.

Otherwise a config of a few bytes could ask for terabytes of memory, or for millions of layers.
"""

from collections.abc import Mapping
from typing import Any, Final

from siglip_pipeline.errors import UnsupportedModelError

LIMITS: Final = {
    "hidden_size": 16_384,
    "intermediate_size": 131_072,
    "num_hidden_layers": 256,
    "num_attention_heads": 1_024,
    "projection_size": 16_384,
    "image_size": 4_096,
    "patch_size": 1_024,
    "num_channels": 64,
    "num_patches": 1_048_576,
    "vocab_size": 4_194_304,
    "max_position_embeddings": 8_192,
}
"""The largest value by name, each several times that of the largest SigLIP model."""


def check_bounds(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a config.json whose towers are not objects, or too large.

    Raises:
        UnsupportedModelError: names the value and the allowed range.
    """
    for tower in ("vision_config", "text_config"):
        values = config.get(tower) or {}
        if not isinstance(values, Mapping):
            raise UnsupportedModelError(f"{name!r}: {tower} in config.json is not an object")
        for key, most in LIMITS.items():
            value = values.get(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise UnsupportedModelError(
                    f"{name!r}: {tower}.{key}={str(value)[:40]} in config.json; allowed are whole "
                    f"numbers from 1 to {most}"
                )
