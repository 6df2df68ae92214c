"""The demo model before it is trained, its tokenizer, and the folder that both are saved to.

Shape legend: N pictures, S side of the square input, P patches, X numbers of a patch.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from tools.demo_model.captions import vocabulary
from tools.demo_model.recipe import TEXT_LENGTH, Recipe


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of the captions' words, one token each; others become ``<unk>``.

    Laid out as SigLIP 2's: text, end token, padding on the right up to 64. Like SigLIP 2's it does
    not lower the case: callers do.
    """
    words = ["<pad>", "<eos>", "<unk>", *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"[^\w\s<>]+"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    # transformers 5 leaves its constructors untyped.
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=TEXT_LENGTH,
        model_input_names=["input_ids"],
    )


def make_model(recipe: Recipe, *, vocabulary_size: int) -> SiglipModel:
    """Return the untrained model.

    The scale starts at log 10, as in the SigLIP paper. The bias starts at about the log-odds of a
    true pair: that is -10 in the paper's batches of 32,768, and -3 in ours, which hold one true
    pair in twenty. From -10 our batches are too small to lift it.
    """
    config = SiglipConfig(
        text_config={
            "vocab_size": vocabulary_size,
            "hidden_size": recipe.text_width,
            "intermediate_size": recipe.mlp_ratio * recipe.text_width,
            "num_hidden_layers": recipe.text_layers,
            "num_attention_heads": recipe.text_width // 32,
            "max_position_embeddings": TEXT_LENGTH,
            "projection_size": recipe.vision_width,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
        vision_config={
            "hidden_size": recipe.vision_width,
            "intermediate_size": recipe.mlp_ratio * recipe.vision_width,
            "num_hidden_layers": recipe.vision_layers,
            "num_attention_heads": recipe.vision_width // 32,
            "image_size": recipe.image_size,
            "patch_size": recipe.patch_size,
        },
    )
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-3.0)
        towers: Any = (model.text_model, model.vision_model)
        for tower in towers:
            weight = tower.embeddings.position_embedding.weight
            weight.copy_(0.3 * _waves(*weight.shape, two_d=tower is towers[1]))
        # Words must stand out from their positions: the default deviation is 0.1.
        towers[0].embeddings.token_embedding.weight.normal_(std=0.5)
    return model


def _waves(positions: int, width: int, *, two_d: bool) -> torch.Tensor:
    """Return sines and cosines of the position, ``[positions, width]``: neighbours are alike.

    As in Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), with wavelengths that suit a few
    dozen positions. With ``two_d`` the positions are a square grid, one half of the width for each
    direction. Learned from there on.
    """
    if two_d:
        side = math.isqrt(positions)
        line = _waves(side, width // 2, two_d=False)
        rows = line.repeat_interleave(side, dim=0)
        return torch.cat([rows, line.repeat(side, 1)], dim=1)
    frequencies = torch.exp(torch.linspace(0, -math.log(100.0), width // 2))
    angles = torch.arange(positions)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def whiten_patches(
    model: Any, pixels_NSSC: NDArray[np.uint8], rng: np.random.Generator, *, strength: float
) -> None:
    """Add whitened detail of the patches to the patch embedding, in place.

    A patch's mean colour varies a hundred times more than the edges in it, so that a random
    projection shows the tower colours and hides shapes, and gradients follow. Here the principal
    components of the pictures' own patches enter with equal variance (whitening as in Coates, Lee
    and Ng 2011; as the start of a fast training in Jordan 2024, https://arxiv.org/abs/2404.00498).

    Args:
        model: SiglipModel.
        pixels_NSSC: the pictures that will be trained on.
        rng: chooses a sample of them, and the rotation.
        strength: standard deviation that is added to each dimension.
    """
    embedding = model.vision_model.embeddings.patch_embedding
    width, channels, side, _ = embedding.weight.shape
    sample = pixels_NSSC[rng.integers(len(pixels_NSSC), size=1500)] / 127.5 - 1
    grid = sample.shape[1] // side
    patches = sample.reshape(-1, grid, side, grid, side, channels).transpose(0, 1, 3, 5, 2, 4)
    flat_PX = patches.reshape(-1, channels * side * side)
    mean_X = flat_PX.mean(axis=0)
    variance_X, directions_XX = np.linalg.eigh(np.cov(flat_PX, rowvar=False))
    # The largest ones, but no more of those that are little else than noise.
    variance_K, directions_XK = variance_X[-width:], directions_XX[:, -width:]
    rotation_DK = np.linalg.qr(rng.standard_normal((width, width)))[0]
    weight_DX = strength * (rotation_DK / np.sqrt(variance_K + 0.01)) @ directions_XK.T
    with torch.no_grad():
        detail = torch.from_numpy(weight_DX).float().view_as(embedding.weight)
        embedding.weight.add_(detail)
        embedding.bias.sub_(torch.from_numpy(weight_DX @ mean_X).float())


def save_folder(model: SiglipModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and processor so that ``AutoModel`` and ``AutoProcessor`` load the folder.

    Weights are stored as float16 to stay small; the config says float32, so that they are
    calculated with as such unless the caller asks otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.config
    side = config.vision_config.image_size
    images = SiglipImageProcessor(
        size={"height": side, "width": side},
        resample=Image.Resampling.BILINEAR,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    processor: Any = SiglipProcessor(  # type: ignore[no-untyped-call]
        image_processor=images, tokenizer=tokenizer
    )
    processor.save_pretrained(folder)
    weights = {k: v.detach().to(torch.float16) for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    config.save_pretrained(folder)
