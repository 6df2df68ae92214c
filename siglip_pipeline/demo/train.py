"""Trains the demo model: a tiny SigLIP, from nothing, on scenes that :mod:`.scenes` renders.

``python -m siglip_pipeline.demo.train --output DIR`` renders the pictures, trains, and writes a
folder that ``AutoModel`` and ``AutoProcessor`` load. The same seed and number of steps give the
same pictures, captions and order of batches.

The loss is SigLIP's: every picture against every text of the batch, each pair a yes-or-no question
with learned scale and bias (Zhai et al. 2023, https://arxiv.org/abs/2303.15343). One thing is
added that rendered data makes possible: the labels are the truth. A text is a positive for every
picture that it is true of, not only for the one it was written for, so that short texts such as
"something red" are no false negatives.

Shape legend: N pictures, M texts, S side of the square input.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from siglip_pipeline.demo.captions import (
    Claim,
    ObjectClaim,
    encode,
    full_claim,
    mutate,
    phrase,
    thin_out,
    truth_matrix,
    vocabulary,
)
from siglip_pipeline.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    MOTIONS,
    ROWS,
    SEEN_PAIRS,
    SHAPES,
    SIZES,
    Pixels,
    Scene,
    object_centre,
    random_scene,
    render_frame,
)
from siglip_pipeline.records import FloatArray

TEXT_LENGTH = 64
"""Positions of the text tower, as in every SigLIP 2 checkpoint; the last one is pooled."""
_SIZES = ((160, 120), (160, 90), (128, 128), (144, 108), (176, 132))
_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that the result depends on, apart from the machine's rounding."""

    seed: int = 0
    steps: int = 6000
    pictures: int = 32_000
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
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.03
    patch_weight: float = 4.0
    """Of the patches' loss against that of the pairs, whose gradients are multiplied by scale."""
    average_decay: float = 0.998
    """Per step, of the running average of the weights, which is what is saved."""


# ----------------------------------------------------------------------------------- pictures


def _through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _through_h264(frames: Sequence[Pixels], crf: int) -> list[Pixels]:
    """The frames as they come out of a film: encoded with x264 in memory and decoded again."""
    import av  # here, because only the workers that render need it

    height, width = frames[0].shape[:2]
    buffer = BytesIO()
    with av.open(buffer, "w", format="matroska") as film:
        options = {"crf": str(crf), "preset": "superfast", "g": "8", "sc_threshold": "0"}
        stream: Any = film.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        film.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as container:
        decoded: list[Any] = list(container.decode(video=0))
    return [np.asarray(frame.to_image()) for frame in decoded]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Rendered pictures and all that is known of them; mirror images are not among them."""

    scenes: list[Scene]
    pixels_NSSC: NDArray[np.uint8]
    places_NOP: NDArray[np.float32]
    """Of each of up to three objects: middle x, y and half extent x, y, as shares of the picture.
    Zeros where there is no object."""


def _places(scenes: Sequence[Scene], moments: Sequence[float], aspect: float) -> FloatArray:
    places_NOP = np.zeros((len(scenes), 3, 4), np.float32)
    for n, (scene, moment) in enumerate(zip(scenes, moments, strict=True)):
        for o, item in enumerate(scene.objects):
            x, y = object_centre(item, moment=moment, aspect=aspect)
            places_NOP[n, o] = x, y, item.radius / aspect, item.radius
    return places_NOP


def _render_chunk(seed: int, chunk: int, side: int) -> Pool:
    """Scenes of one size and their pictures, compressed and squashed as the pipeline does."""
    rng = np.random.default_rng((seed, 1, chunk))
    size = _SIZES[int(rng.integers(len(_SIZES)))]
    scenes = [random_scene(rng, pairs=SEEN_PAIRS) for _ in range(_CHUNK)]
    moments = rng.random(_CHUNK).tolist()
    frames = [
        render_frame(scene, moment=moment, size=size, frame=number)
        for number, (scene, moment) in enumerate(zip(scenes, moments, strict=True))
    ]
    if rng.random() < 0.5:
        frames = _through_h264(frames, crf=int(rng.integers(20, 37)))
    frames = [_through_jpeg(frame, quality=int(rng.integers(40, 95))) for frame in frames]
    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    squashed = [
        np.asarray(Image.fromarray(f).resize((side, side), filters[int(rng.integers(2))]))
        for f in frames
    ]
    places_NOP = _places(scenes, moments, size[0] / size[1])
    return Pool(scenes=scenes, pixels_NSSC=np.stack(squashed), places_NOP=places_NOP)


def render_pool(recipe: Recipe, *, workers: int) -> Pool:
    """Render all pictures; the result does not depend on the number of workers."""
    chunks = math.ceil(recipe.pictures / _CHUNK)
    parts: list[Pool] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        seeds, sides = [recipe.seed] * chunks, [recipe.image_size] * chunks
        for part in pool.map(_render_chunk, seeds, range(chunks), sides, chunksize=4):
            parts.append(part)
            if len(parts) % 50 == 0:
                print(
                    f"rendered {len(parts) * _CHUNK} of {chunks * _CHUNK}",
                    file=sys.stderr,
                    flush=True,
                )
    return Pool(
        scenes=[scene for part in parts for scene in part.scenes],
        pixels_NSSC=np.concatenate([part.pixels_NSSC for part in parts]),
        places_NOP=np.concatenate([part.places_NOP for part in parts]),
    )


def with_mirror_images(pool: Pool) -> tuple[list[Scene], FloatArray]:
    """Scenes and places of all pictures, and after them those of all their mirror images."""
    places_NOP = pool.places_NOP.copy()
    present = places_NOP[..., 2] > 0
    places_NOP[..., 0][present] = 1 - places_NOP[..., 0][present]
    scenes = [*pool.scenes, *(scene.mirrored() for scene in pool.scenes)]
    return scenes, np.concatenate([pool.places_NOP, places_NOP])


# --------------------------------------------------------------------------------------- texts


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the captions, one token each; others become ``<unk>``.

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


def batch_claims(scenes: Sequence[Scene], rng: np.random.Generator, *, count: int) -> list[Claim]:
    """Claims to set against a batch of scenes.

    Of eight, three say nearly all of one scene, two say a little of it, one is a near miss, and
    two are a single property or pair, drawn at random: those are true of many pictures at once,
    and without them training stands still for long before the first shapes are told apart.
    """
    claims: list[Claim] = []
    order = rng.permutation(len(scenes))
    for number in range(count):
        whole = full_claim(scenes[int(order[number % len(order)])])
        kind = number % 8
        if kind < 3:
            claims.append(thin_out(whole, rng, keep=0.95 if kind < 2 else 0.75))
        elif kind < 5:
            one = (whole.objects[int(rng.integers(len(whole.objects)))],)
            background = None if rng.random() < 0.7 else whole.background
            claims.append(thin_out(Claim(objects=one, background=background), rng, keep=0.5))
        elif kind == 5:
            claims.append(mutate(whole, rng))
        else:
            claims.append(_single_claim(rng))
    return claims


def _single_claim(rng: np.random.Generator) -> Claim:
    kind = int(rng.integers(10))
    if kind < 2:
        return Claim(objects=(ObjectClaim(colour=str(rng.choice(list(COLOURS)))),))
    if kind < 5:
        return Claim(objects=(ObjectClaim(shape=str(rng.choice(SHAPES))),))
    if kind == 5:
        colour, shape = SEEN_PAIRS[int(rng.integers(len(SEEN_PAIRS)))]
        return Claim(objects=(ObjectClaim(colour=colour, shape=shape),))
    if kind == 6:
        return Claim(objects=(ObjectClaim(motion=str(rng.choice(MOTIONS))),))
    if kind == 7:
        return Claim(objects=(ObjectClaim(size=str(rng.choice(SIZES))),))
    if kind == 8:
        row, column = str(rng.choice(ROWS[::2])), str(rng.choice(COLUMNS[::2]))
        sides = ({"row": row}, {"column": column}, {"row": row, "column": column})
        return Claim(objects=(ObjectClaim(**sides[int(rng.integers(3))]),))
    return Claim(background=str(rng.choice(list(BACKGROUNDS))))


# --------------------------------------------------------------------------------------- model


def make_model(recipe: Recipe, *, vocabulary_size: int) -> SiglipModel:
    """The untrained model.

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
    """Sines and cosines of the position, ``[positions, width]``: neighbours begin as neighbours.

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


# ------------------------------------------------------------------------------------ training


def sigmoid_loss(
    images_ND: torch.Tensor, texts_MD: torch.Tensor, truth_NM: torch.Tensor, model: SiglipModel
) -> torch.Tensor:
    """SigLIP's loss: mean over pictures of the sum over texts, labels +1 where true, else -1."""
    cosine = functional.normalize(images_ND, dim=-1) @ functional.normalize(texts_MD, dim=-1).T
    logits = cosine * model.logit_scale.exp() + model.logit_bias
    labels = truth_NM.to(logits.dtype) * 2 - 1
    return -functional.logsigmoid(labels * logits).sum() / len(images_ND)


def _batches(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Indices of batches, for ever, each picture once before any comes twice."""
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


_SHIFT = 3


def _to_input(
    pixels: NDArray[np.uint8], mirrored: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[torch.Tensor, FloatArray]:
    """uint8 NSSC to normalised float NCSS, mirrored where told.

    Shifted by up to 3 pixels, so that shapes meet the patches' borders everywhere, and a little
    changed in contrast and lightness.

    Returns:
        The input, and how far each picture was shifted in x and y, as a share of its side.
    """
    side = pixels.shape[1]
    padded = np.pad(pixels, ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)), mode="edge")
    padded = np.where(mirrored[:, None, None, None], padded[:, :, ::-1], padded)
    starts = rng.integers(0, 2 * _SHIFT + 1, (len(pixels), 2))
    moved = [p[y : y + side, x : x + side] for p, (x, y) in zip(padded, starts, strict=True)]
    x = torch.from_numpy(np.stack(moved)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    gain = torch.from_numpy(rng.uniform(0.88, 1.12, (len(x), 1, 1, 1)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-0.08, 0.08, (len(x), 1, 1, 1)).astype(np.float32))
    return x.mul_(gain).add_(shift).clamp_(-1, 1), ((_SHIFT - starts) / side).astype(np.float32)


class PatchHead(torch.nn.Module):
    """Tells from each patch's final state which object is there; used in training only.

    SigLIP 2 too trains its patches beside the pooled vector, by captions of regions (Tschannen et
    al. 2025, https://arxiv.org/abs/2502.14786). Here the renderer knows the region of each object,
    so the plainest form will do: a linear layer and a cross entropy for everything that a caption
    can say of an object. What the patches know, the pooled vector learns sooner.
    """

    _CLASSES = tuple(len(t) for t in (COLOURS, SHAPES, SIZES, ROWS, COLUMNS, MOTIONS))
    # Shape and motion are the hard ones: they are in the arrangement of pixels, not in their mean.
    _WEIGHTS = (1.0, 2.0, 1.0, 1.0, 1.0, 2.0)

    def __init__(self, width: int, *, grid: int) -> None:
        super().__init__()
        self.grid = grid
        # One class more in each: no object here.
        self.linear = torch.nn.Linear(width, sum(self._CLASSES) + len(self._CLASSES))

    def labels(self, places_NOP: FloatArray, objects_NOA: NDArray[np.int8]) -> torch.Tensor:
        """Class of each patch, int64 ``[N, patches, 6]``: the nearest object that covers it."""
        steps = (np.arange(self.grid) + 0.5) / self.grid
        y, x = (axis.reshape(-1) for axis in np.meshgrid(steps, steps, indexing="ij"))
        least = 0.5 / self.grid  # so that the smallest object still has a patch of its own
        middle, extent = places_NOP[:, :, None, :2], places_NOP[:, :, None, 2:]
        grid_PX = np.stack([x, y], axis=1)
        away_NOPX = np.abs(grid_PX - middle) / np.maximum(extent, least)
        away_NOP = np.where(extent[..., 0] > 0, away_NOPX.max(axis=-1), np.inf)
        nearest_NP = away_NOP.argmin(axis=1)
        rows = np.arange(len(places_NOP))[:, None]
        classes = objects_NOA[rows, nearest_NP].astype(np.int64)
        covered = away_NOP.min(axis=1) < 1
        classes[~covered] = self._CLASSES
        return torch.from_numpy(classes)

    def loss(self, states_NPD: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the cross entropies; patches with and without object weigh the same."""
        scores = self.linear(states_NPD).split([n + 1 for n in self._CLASSES], dim=-1)
        empty = labels[..., 0] == self._CLASSES[0]
        weight = torch.where(
            empty, 0.5 / empty.sum().clamp(min=1), 0.5 / (~empty).sum().clamp(min=1)
        )
        total = torch.zeros(())
        for number, score in enumerate(scores):
            each = functional.cross_entropy(
                score.flatten(0, 1), labels[..., number].flatten(), reduction="none"
            )
            total = total + self._WEIGHTS[number] * (each * weight.flatten()).sum()
        return total


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed: list[torch.Tensor] = []
    free: list[torch.Tensor] = []
    scalars: list[torch.Tensor] = []
    for name, weight in model.named_parameters():
        if weight.numel() == 1:
            scalars.append(weight)
        else:
            (free if weight.ndim < 2 or "embedding" in name else decayed).append(weight)
    # Scale and bias have far to go from where the paper starts them, and few steps to do it in.
    return [
        {"params": decayed, "weight_decay": weight_decay, "lr_factor": 1.0},
        {"params": free, "weight_decay": 0.0, "lr_factor": 1.0},
        {"params": scalars, "weight_decay": 0.0, "lr_factor": 10.0},
    ]


def train(
    recipe: Recipe, *, output: Path, minutes: float, workers: int, resume: Path | None = None
) -> None:
    """Render, train and write the folder, which is also written every 250 steps on the way.

    Args:
        recipe: what to train.
        output: the model's folder.
        minutes: after so long the schedule is cut short and the model finished as it is.
        workers: processes that render.
        resume: folder of a model to go on from; None starts from random weights.
    """
    began = time.monotonic()
    pool = render_pool(recipe, workers=workers)
    scenes, places_NOP = with_mirror_images(pool)
    objects_NOA, rest_NB = encode(scenes)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng((recipe.seed, 2))
    tokenizer = make_tokenizer()
    model: Any = make_model(recipe, vocabulary_size=len(tokenizer))
    if resume is not None:
        model = SiglipModel.from_pretrained(resume, local_files_only=True)
    whiten_patches(model, pool.pixels_NSSC, rng, strength=0.8)
    head = PatchHead(recipe.vision_width, grid=recipe.image_size // recipe.patch_size)
    model.train()
    averaging: Any = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
    average: Any = AveragedModel(model, multi_avg_fn=averaging)
    both = torch.nn.ModuleDict({"model": model, "head": head})
    optimizer = torch.optim.AdamW(
        _parameter_groups(both, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98)
    )
    started = time.monotonic()
    seconds_left = max(60.0, minutes * 60 - (started - began))
    losses: list[tuple[float, float]] = []
    for step, chosen in enumerate(_batches(len(scenes), recipe.batch_pictures, rng)):
        progress = max(step / recipe.steps, (time.monotonic() - started) / seconds_left)
        if progress >= 1:
            break
        rate = min(1.0, progress / recipe.warmup_share) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate * group["lr_factor"]
        claims = batch_claims([scenes[i] for i in chosen], rng, count=recipe.batch_texts)
        truth = truth_matrix((objects_NOA[chosen], rest_NB[chosen]), encode(claims))
        texts = tokenizer(
            [phrase(claim, rng) for claim in claims],
            padding="max_length",
            max_length=TEXT_LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        mirrored = chosen >= len(pool.scenes)
        inputs, shift_NX = _to_input(pool.pixels_NSSC[chosen % len(pool.scenes)], mirrored, rng)
        images = model.get_image_features(inputs)
        texts_MD = model.get_text_features(input_ids=texts["input_ids"]).pooler_output
        places = places_NOP[chosen].copy()
        places[..., :2] += shift_NX[:, None]
        labels = head.labels(places, objects_NOA[chosen])
        pair_loss = sigmoid_loss(images.pooler_output, texts_MD, torch.from_numpy(truth), model)
        patch_loss = head.loss(images.last_hidden_state, labels)
        optimizer.zero_grad(set_to_none=True)
        (pair_loss + recipe.patch_weight * patch_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(both.parameters(), 2.0)
        optimizer.step()
        average.update_parameters(model)
        losses.append((float(pair_loss.detach()), float(patch_loss.detach())))
        if step % 50 == 49:
            pace = (step + 1) * recipe.batch_pictures / (time.monotonic() - started)
            pairs, patches = np.mean(losses[-50:], axis=0)
            print(
                f"step {step + 1}  loss {pairs:.3f} + {patches:.3f}  {pace:.0f} pictures/s  "
                f"scale {model.logit_scale.exp().item():.1f}  bias {model.logit_bias.item():.1f}  "
                f"{(time.monotonic() - began) / 60:.1f} min",
                file=sys.stderr,
                flush=True,
            )
        if step % 250 == 249:
            save_folder(average.module, tokenizer, output)
    save_folder(average.module, tokenizer, output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description="Train the demo's tiny SigLIP.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--pictures", type=int, default=defaults.pictures)
    parser.add_argument(
        "--minutes", type=float, default=38.0, help="end the schedule early after so long"
    )
    parser.add_argument("--resume", type=Path, help="folder of a model to go on from")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    recipe = Recipe(seed=options.seed, steps=options.steps, pictures=options.pictures)
    train(
        recipe,
        output=options.output,
        minutes=options.minutes,
        workers=options.workers,
        resume=options.resume,
    )


if __name__ == "__main__":
    main()
