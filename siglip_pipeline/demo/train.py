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
from collections.abc import Callable, Iterator, Sequence
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


def _batches(
    pictures: NDArray[np.int64], size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Batches of pictures, for ever, each picture once before any comes twice."""
    while True:
        order = rng.permutation(pictures)
        for start in range(0, len(order) - size + 1, size):
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


class PropertyHead(torch.nn.Module):
    """Tells from a vector which object it shows; used in training only.

    A linear layer and a cross entropy for everything that a caption can say of an object: the
    renderer knows it. One head reads the pooled vector of pictures with a single object. Another
    reads each patch's final state, as SigLIP 2 too trains its patches, by captions of regions
    (Tschannen et al. 2025, https://arxiv.org/abs/2502.14786). What the patches know, the pooled
    vector learns sooner.
    """

    CLASSES = tuple(len(t) for t in (COLOURS, SHAPES, SIZES, ROWS, COLUMNS, MOTIONS))
    # Shape and motion are the hard ones: they are in the arrangement of pixels, not in their mean.
    _WEIGHTS = (1.0, 2.0, 1.0, 1.0, 1.0, 2.0)

    def __init__(self, width: int) -> None:
        super().__init__()
        # One class more in each: no object here.
        self.linear = torch.nn.Linear(width, sum(self.CLASSES) + len(self.CLASSES))

    def loss(
        self, vectors_VD: torch.Tensor, classes_VA: torch.Tensor, weights_V: torch.Tensor
    ) -> torch.Tensor:
        """Weighted sum over the vectors of their cross entropies, one a property.

        Args:
            vectors_VD: what to read.
            classes_VA: int64, the object's properties in the order of ``CLASSES``.
            weights_V: weight of each vector.
        """
        scores = self.linear(vectors_VD).split([n + 1 for n in self.CLASSES], dim=-1)
        total = torch.zeros(())
        for number, score in enumerate(scores):
            each = functional.cross_entropy(score, classes_VA[:, number], reduction="none")
            total = total + self._WEIGHTS[number] * (each * weights_V).sum()
        return total


def patch_classes(
    places_NOP: FloatArray, objects_NOA: NDArray[np.int8], *, grid: int
) -> torch.Tensor:
    """Properties of the nearest object that covers each patch, int64 ``[N * grid * grid, 6]``.

    Where there is none, each property is one past its last class.
    """
    steps = (np.arange(grid) + 0.5) / grid
    y, x = (axis.reshape(-1) for axis in np.meshgrid(steps, steps, indexing="ij"))
    least = 0.5 / grid  # so that the smallest object still has a patch of its own
    middle, extent = places_NOP[:, :, None, :2], places_NOP[:, :, None, 2:]
    grid_PX = np.stack([x, y], axis=1)
    away_NOPX = np.abs(grid_PX - middle) / np.maximum(extent, least)
    away_NOP = np.where(extent[..., 0] > 0, away_NOPX.max(axis=-1), np.inf)
    nearest_NP = away_NOP.argmin(axis=1)
    classes = objects_NOA[np.arange(len(places_NOP))[:, None], nearest_NP].astype(np.int64)
    classes[away_NOP.min(axis=1) >= 1] = PropertyHead.CLASSES
    return torch.from_numpy(classes).flatten(0, 1)


def _balanced(classes_VA: torch.Tensor) -> torch.Tensor:
    """Weights under which patches with and without an object count the same, 1 in all."""
    empty = classes_VA[:, 0] == PropertyHead.CLASSES[0]
    return torch.where(empty, 0.5 / empty.sum().clamp(min=1), 0.5 / (~empty).sum().clamp(min=1))


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


class Trainer:
    """One training run: first the image tower alone, then both towers on pairs.

    Args:
        recipe: what to train.
        pool: the pictures.
        model: the model to begin with; trained in place.
    """

    def __init__(self, recipe: Recipe, pool: Pool, model: Any) -> None:
        self.recipe = recipe
        self.model = model
        self.tokenizer = make_tokenizer()
        self._pool = pool
        self._scenes, self._places_NOP = with_mirror_images(pool)
        self._objects_NOA, self._rest_NB = encode(self._scenes)
        self._rng = np.random.default_rng((recipe.seed, 2))
        self._patch_head = PropertyHead(recipe.vision_width)
        self._began = time.monotonic()

    def learn_objects(self, *, steps: int, seconds: float) -> None:
        """Train the image tower to name the properties of single objects.

        From pairs alone the tower learns colours within minutes and shapes hardly at all: a text
        is true of a picture for many reasons, and the shape is the faintest. Asked for the shape
        outright, of one object at a time, it learns it.
        """
        (single,) = np.nonzero([len(scene.objects) == 1 for scene in self._scenes])
        head = PropertyHead(self.recipe.vision_width)

        def losses(chosen: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
            inputs, patch_loss_of = self._inputs(chosen)
            seen = self.model.vision_model(inputs)
            classes = torch.from_numpy(self._objects_NOA[chosen, 0].astype(np.int64))
            even = torch.full([len(chosen)], 1 / len(chosen))
            return head.loss(seen.pooler_output, classes, even), patch_loss_of(seen)

        modules = [self.model.vision_model, head, self._patch_head]
        batches = _batches(single, self.recipe.object_batch, self._rng)
        self._descend("objects", modules, batches, losses, 1.0, steps=steps, seconds=seconds)

    def learn_pairs(self, *, steps: int, seconds: float, output: Path) -> None:
        """Train both towers on pictures and texts; the averaged model goes to ``output``."""
        averaging: Any = get_ema_multi_avg_fn(self.recipe.average_decay)  # type: ignore[no-untyped-call]
        average: Any = AveragedModel(self.model, multi_avg_fn=averaging)

        def losses(chosen: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
            inputs, patch_loss_of = self._inputs(chosen)
            scenes = [self._scenes[i] for i in chosen]
            claims = batch_claims(scenes, self._rng, count=self.recipe.batch_texts)
            truth = truth_matrix((self._objects_NOA[chosen], self._rest_NB[chosen]), encode(claims))
            tokens = self.tokenizer(
                [phrase(claim, self._rng) for claim in claims],
                padding="max_length",
                max_length=TEXT_LENGTH,
                truncation=True,
                return_tensors="pt",
            )
            seen = self.model.get_image_features(inputs)
            texts_MD = self.model.get_text_features(input_ids=tokens["input_ids"]).pooler_output
            pairs = sigmoid_loss(seen.pooler_output, texts_MD, torch.from_numpy(truth), self.model)
            return pairs, patch_loss_of(seen)

        def after_step(step: int) -> None:
            average.update_parameters(self.model)
            if step % 250 == 249:
                save_folder(average.module, self.tokenizer, output)

        self._descend(
            "pairs",
            [self.model, self._patch_head],
            _batches(np.arange(len(self._scenes)), self.recipe.batch_pictures, self._rng),
            losses,
            self.recipe.patch_weight,
            steps=steps,
            seconds=seconds,
            after_step=after_step,
        )
        save_folder(average.module, self.tokenizer, output)

    def _inputs(
        self, chosen: NDArray[np.int64]
    ) -> tuple[torch.Tensor, Callable[[Any], torch.Tensor]]:
        """A batch of pictures, and what the patches' loss is once the tower has seen them."""
        count = len(self._pool.scenes)
        pixels = self._pool.pixels_NSSC[chosen % count]
        inputs, shift_NX = _to_input(pixels, chosen >= count, self._rng)
        places_NOP = self._places_NOP[chosen].copy()
        places_NOP[..., :2] += shift_NX[:, None]
        grid = self.recipe.image_size // self.recipe.patch_size
        classes = patch_classes(places_NOP, self._objects_NOA[chosen], grid=grid)

        def patch_loss_of(seen: Any) -> torch.Tensor:
            states_VD = seen.last_hidden_state.flatten(0, 1)
            return self._patch_head.loss(states_VD, classes, _balanced(classes))

        return inputs, patch_loss_of

    def _descend(
        self,
        name: str,
        modules: Sequence[torch.nn.Module],
        batches: Iterator[NDArray[np.int64]],
        losses: Callable[[NDArray[np.int64]], tuple[torch.Tensor, torch.Tensor]],
        patch_weight: float,
        *,
        steps: int,
        seconds: float,
        after_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Minimise a loss and the patches' loss over the batches: warm-up, cosine."""
        trained = torch.nn.ModuleList(modules)
        optimizer = torch.optim.AdamW(
            _parameter_groups(trained, self.recipe.weight_decay),
            lr=self.recipe.learning_rate,
            betas=(0.9, 0.98),
        )
        started = time.monotonic()
        history: list[tuple[float, float]] = []
        pictures = 0
        for step, chosen in enumerate(batches):
            progress = max(step / steps, (time.monotonic() - started) / seconds)
            if progress >= 1:
                break
            warm = min(1.0, progress / self.recipe.warmup_share)
            rate = self.recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_factor"]
            main_loss, patch_loss = losses(chosen)
            optimizer.zero_grad(set_to_none=True)
            (main_loss + patch_weight * patch_loss).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 2.0)
            optimizer.step()
            after_step(step)
            pictures += len(chosen)
            history.append((float(main_loss.detach()), float(patch_loss.detach())))
            if step % 50 == 49:
                pace = pictures / (time.monotonic() - started)
                mean_loss, mean_patches = np.mean(history[-50:], axis=0)
                print(
                    f"{name}: step {step + 1} of {steps}  loss {mean_loss:.3f} + "
                    f"{mean_patches:.3f}  {pace:.0f} pictures/s  "
                    f"{(time.monotonic() - self._began) / 60:.1f} min",
                    file=sys.stderr,
                    flush=True,
                )


def train(
    recipe: Recipe, *, output: Path, minutes: float, workers: int, resume: Path | None = None
) -> None:
    """Render, train and write the folder, which is also written every 250 steps on the way.

    Args:
        recipe: what to train.
        output: the model's folder.
        minutes: after so long the schedule is cut short and the model finished as it is.
        workers: processes that render.
        resume: folder of a model whose pairs are trained further; None starts from nothing.
    """
    began = time.monotonic()
    pool = render_pool(recipe, workers=workers)
    seconds = max(120.0, minutes * 60 - (time.monotonic() - began))
    torch.manual_seed(recipe.seed)
    if resume is not None:
        trainer = Trainer(
            recipe, pool, SiglipModel.from_pretrained(resume, local_files_only=True).train()
        )
        trainer.learn_pairs(steps=recipe.pair_steps, seconds=seconds, output=output)
        return
    model = make_model(recipe, vocabulary_size=len(make_tokenizer()))
    whiten_patches(model, pool.pixels_NSSC, np.random.default_rng((recipe.seed, 3)), strength=0.8)
    trainer = Trainer(recipe, pool, model.train())
    trainer.learn_objects(steps=recipe.object_steps, seconds=0.5 * seconds)
    left = max(60.0, minutes * 60 - (time.monotonic() - began))
    trainer.learn_pairs(steps=recipe.pair_steps, seconds=left, output=output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description="Train the demo's tiny SigLIP.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--object-steps", type=int, default=defaults.object_steps)
    parser.add_argument("--pair-steps", type=int, default=defaults.pair_steps)
    parser.add_argument("--pictures", type=int, default=defaults.pictures)
    parser.add_argument(
        "--minutes", type=float, default=38.0, help="end the schedule early after so long"
    )
    parser.add_argument(
        "--resume", type=Path, help="train the pairs of this folder's model further"
    )
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    recipe = Recipe(
        seed=options.seed,
        object_steps=options.object_steps,
        pair_steps=options.pair_steps,
        pictures=options.pictures,
    )
    train(
        recipe,
        output=options.output,
        minutes=options.minutes,
        workers=options.workers,
        resume=options.resume,
    )


if __name__ == "__main__":
    main()
