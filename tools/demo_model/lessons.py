"""What the demo model is asked while it is trained: texts for a batch, and the losses.

Shape legend: N pictures, M texts, D dimensions, O objects, P patches, A properties, V vectors.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import SiglipModel

from siglip_pipeline.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    MOTIONS,
    ROWS,
    SEEN_PAIRS,
    SHAPES,
    SIZES,
    Scene,
)
from siglip_pipeline.records import FloatArray
from tools.demo_model.captions import Claim, ObjectClaim, full_claim, mutate, thin_out


def batch_claims(scenes: Sequence[Scene], rng: np.random.Generator, *, count: int) -> list[Claim]:
    """Draw claims to compare with a batch of scenes.

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


def sigmoid_loss(
    images_ND: torch.Tensor, texts_MD: torch.Tensor, truth_NM: torch.Tensor, model: SiglipModel
) -> torch.Tensor:
    """Return SigLIP's loss: mean over pictures of the sum over texts, labels +1 (true) or -1."""
    cosine = functional.normalize(images_ND, dim=-1) @ functional.normalize(texts_MD, dim=-1).T
    logits = cosine * model.logit_scale.exp() + model.logit_bias
    labels = truth_NM.to(logits.dtype) * 2 - 1
    return -functional.logsigmoid(labels * logits).sum() / len(images_ND)


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
        """Return the weighted sum over the vectors of their cross entropies, one a property.

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
    """Return properties of the nearest object over each patch, int64 ``[N * grid * grid, 6]``.

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


def balanced(classes_VA: torch.Tensor) -> torch.Tensor:
    """Return weights under which patches with and without an object count the same, 1 in all."""
    empty = classes_VA[:, 0] == PropertyHead.CLASSES[0]
    return torch.where(empty, 0.5 / empty.sum().clamp(min=1), 0.5 / (~empty).sum().clamp(min=1))
