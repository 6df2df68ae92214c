"""Tiny checkpoints of every family, made with transformers' own classes and random weights.

They have what the real ones have: towers of different width (giant), a patch size that does not
divide the picture (so400m), a Gemma-like tokenizer that pads on the right, or SentencePiece with
Pillow's bicubic filter (first generation), or NaFlex patches.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
import transformers as _transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

transformers: Any = _transformers  # not typed enough to be checked

Kind = Literal["siglip2", "siglip1", "naflex"]

CORPUS = [
    "a photo of a cat on a red sofa",
    "this is a photo of a dog running on the beach at sunset",
    "two people walking in the rain, holding umbrellas",
    "the quick brown fox jumps over the lazy dog 0123456789",
    "a car drives through the night; city lights blur behind it.",
    "straße, école, пример, 例え, mañana",
] * 8

TEXT_LENGTH = 64


GIANT_TEXT: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "projection_size": 1536,
}
GIANT_VISION: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "image_size": 256,
    "patch_size": 16,
}
"""The widths of google/siglip2-giant-opt-patch16-256, with one thin layer of its 27 and 40."""


def make_checkpoint(
    folder: Path,
    kind: Kind = "siglip2",
    *,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    **vision: Any,
) -> Path:
    """Write a tiny random checkpoint and return its folder.

    ``siglip2``: fixed resolution with a Gemma tokenizer, as the SigLIP 2 checkpoints of the hub.
    ``siglip1``: fixed resolution with a SentencePiece tokenizer, as the first generation.
    ``naflex``: model_type ``siglip2``, aspect ratio kept.
    ``text`` and ``vision`` override fields of the towers' configs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = sentencepiece_tokenizer(folder) if kind == "siglip1" else gemma_tokenizer()
    text_config = {
        "vocab_size": max(len(tokenizer), 300),
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TEXT_LENGTH,
        "projection_size": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **(text or {}),
    }
    vision_config: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(seed)
    model: Any
    image_processor: Any
    if kind == "naflex":
        vision_config |= {"patch_size": 16, "num_patches": 64, **vision}
        config = transformers.Siglip2Config(text_config=text_config, vision_config=vision_config)
        model = transformers.Siglip2Model(config)
        image_processor = transformers.Siglip2ImageProcessorPil(max_num_patches=64)
        processor = transformers.Siglip2Processor(image_processor, tokenizer)
    else:
        vision_config |= {"image_size": 64, "patch_size": 14, **vision}
        size = vision_config["image_size"]
        config = transformers.SiglipConfig(text_config=text_config, vision_config=vision_config)
        model = transformers.SiglipModel(config)
        image_processor = transformers.SiglipImageProcessorPil(
            size={"height": size, "width": size}, resample=3 if kind == "siglip1" else 2
        )
        processor = transformers.SiglipProcessor(image_processor, tokenizer)
    with torch.no_grad():
        # Fresh weights are nearly blind: biases of zero and tiny poolers. Spread them out.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.logit_scale.fill_(4.7)
        model.logit_bias.fill_(-16.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def gemma_tokenizer() -> Any:
    """A byte-fallback BPE like Gemma's: keeps case, ends with <eos>, pads on the right."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *(f"<0x{b:02X}>" for b in range(256))]
    )
    tokenizer.train_from_iterator([*CORPUS, *(line.upper() for line in CORPUS)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=TEXT_LENGTH,
    )


def sentencepiece_tokenizer(folder: Path) -> Any:
    """The tokenizer class of the first generation, over a vocabulary of a few hundred pieces."""
    import sentencepiece

    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(CORPUS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=200,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        pad_id=0,
        minloglevel=2,
    )
    corpus.unlink()
    (folder / "spiece.vocab").unlink()
    return transformers.SiglipTokenizer(vocab_file=str(folder / "spiece.model"))


def edit_json(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; a change to None removes the field."""
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
