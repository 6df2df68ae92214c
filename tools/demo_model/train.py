"""Train the demo model: a tiny SigLIP, from nothing, on rendered scenes.

``python -m tools.demo_model.train --output DIR`` renders the pictures, trains, and writes a
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import SiglipModel

from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.records import FloatArray
from tools.demo_model.captions import encode, phrase, truth_matrix
from tools.demo_model.lessons import (
    PropertyHead,
    balanced,
    batch_claims,
    patch_classes,
    sigmoid_loss,
)
from tools.demo_model.network import make_model, make_tokenizer, save_folder, whiten_patches
from tools.demo_model.pictures import Pool, render_pool, with_mirror_images
from tools.demo_model.recipe import TEXT_LENGTH, Recipe


def _batches(
    pictures: NDArray[np.int64], size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield batches of pictures without end; each epoch takes each picture once."""
    while True:
        order = rng.permutation(pictures)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


_SHIFT = 3


def _to_input(
    pixels: NDArray[np.uint8], mirrored: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[torch.Tensor, FloatArray]:
    """Convert uint8 NSSC to normalised float NCSS, mirrored where ``mirrored`` says so.

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
        """Return a batch of pictures, and a function for the loss of the patches."""
        count = len(self._pool.scenes)
        pixels = self._pool.pixels_NSSC[chosen % count]
        inputs, shift_NX = _to_input(pixels, chosen >= count, self._rng)
        places_NOP = self._places_NOP[chosen].copy()
        places_NOP[..., :2] += shift_NX[:, None]
        grid = self.recipe.image_size // self.recipe.patch_size
        classes = patch_classes(places_NOP, self._objects_NOA[chosen], grid=grid)

        def patch_loss_of(seen: Any) -> torch.Tensor:
            states_VD = seen.last_hidden_state.flatten(0, 1)
            return self._patch_head.loss(states_VD, classes, balanced(classes))

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
    """Run the command line."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description="Train the demo's tiny SigLIP.")
    parser.add_argument("--output", type=Path, default=MODEL_FOLDER)
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
