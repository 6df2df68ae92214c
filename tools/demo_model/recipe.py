"""What a training of the demo model depends on."""

from dataclasses import dataclass

TEXT_LENGTH = 64
"""Positions of the text tower, as in every SigLIP 2 checkpoint; the last one is pooled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that the result depends on, apart from the machine's rounding."""

    seed: int = 0
    object_steps: int = 12_000
    object_batch: int = 32
    """Small: more steps teach shapes sooner than larger ones."""
    pair_steps: int = 4500
    pictures: int = 40_000
    """Rendered once, then used again and again: mirrored, shifted, lightened, with other texts."""
    batch_pictures: int = 64
    batch_texts: int = 64
    image_size: int = 72
    patch_size: int = 12
    vision_width: int = 128
    vision_layers: int = 4
    text_width: int = 96
    text_layers: int = 2
    mlp_ratio: int = 3
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.03
    patch_weight: float = 4.0
    """Of the patches' loss against that of the pairs, whose gradients are multiplied by scale."""
    average_decay: float = 0.998
    """Per step, of the running average of the weights, which is what is saved."""
