"""A loaded model, which embeds pictures and tokens as unit vectors."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from siglip_pipeline.errors import ModelError
from siglip_pipeline.records import FloatArray, IntArray, ModelSpec
from siglip_pipeline.siglip.checkpoint import Checkpoint
from siglip_pipeline.siglip.forward import EagerForward, Forward
from siglip_pipeline.siglip.preprocess import ImageBatch, ModelInputs, model_inputs
from siglip_pipeline.siglip.recipe import Recipe
from siglip_pipeline.siglip.tokenizer import TextTokenizer, Tokens

Tower = Literal["both", "text", "image"]


class SiglipModel:
    """A loaded SigLIP or SigLIP 2 model, whole or one tower of it.

    Attributes:
        spec: identity; vectors of models with equal ``spec.key`` may be compared.
        recipe: the preprocessing of pictures and texts.
        device: ``cuda:N``, ``mps`` or ``cpu``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; vectors are always float32.
        tower: the loaded tower, or both.
        settled_batch_size: tuned by the embedding engine, and kept for its next run.
        forward: how batches go through the vision tower; the engine chooses it.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        recipe: Recipe,
        checkpoint: Checkpoint,
        device: str,
        dtype: torch.dtype,
        tower: Tower,
        text: torch.nn.Module | None,
        vision: torch.nn.Module | None,
    ) -> None:
        self.spec = spec
        self.recipe = recipe
        self.device = device
        self.dtype = str(dtype).removeprefix("torch.")
        self.tower = tower
        self.torch_dtype = dtype
        self.torch_device = torch.device(device)
        self.settled_batch_size: int | None = None
        self.forward: Forward = EagerForward()
        self._text = text
        self._vision = vision
        self._tokenizer = TextTokenizer(checkpoint, recipe)

    def __repr__(self) -> str:
        return (
            f"SiglipModel({self.spec.name!r}, key={self.spec.key!r}, tower={self.tower!r}, "
            f"device={self.device!r}, dtype={self.dtype!r})"
        )

    @property
    def vision(self) -> torch.nn.Module:
        """Return the vision tower.

        Raises:
            ModelError: only the text tower is loaded.
        """
        if self._vision is None:
            raise ModelError("this model was loaded with tower='text': it cannot embed pictures")
        return self._vision

    @property
    def text(self) -> torch.nn.Module:
        """Return the text tower.

        Raises:
            ModelError: only the vision tower is loaded.
        """
        if self._text is None:
            raise ModelError("this model was loaded with tower='image': it cannot embed texts")
        return self._text

    def add_tower(self, other: "SiglipModel") -> None:
        """Take over the tower that this model lacks from another load of the same checkpoint."""
        if self._text is None:
            self._text = other.text
        else:
            self._vision = other.vision
        self.tower = "both"

    def inputs(self, batch: ImageBatch) -> ModelInputs:
        """Return a batch on this model's device as input of the vision tower."""
        with torch.inference_mode():
            return model_inputs(batch, self.recipe, self.torch_dtype)

    def encode_images(self, inputs: ModelInputs) -> torch.Tensor:
        """Return unit vectors, float32 [N, D], on the device; callers must check for NaN."""
        arguments = dict(inputs.arguments)
        if self.recipe.family == "siglip2":
            # Without padding there is no mask, and attention takes its fast path.
            arguments.setdefault("pixel_attention_mask", None)  # type: ignore[arg-type]
        with torch.inference_mode():
            return _unit(self.vision(**arguments).pooler_output)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return texts as token ids; see :meth:`.TextTokenizer.tokenize`."""
        return self._tokenizer.tokenize(texts)

    def encode_texts(self, ids_NT: IntArray) -> FloatArray:
        """Return unit vectors [N, D]; without a mask, as in training. Callers check for NaN."""
        ids = torch.from_numpy(ids_NT).to(self.torch_device)
        with torch.inference_mode():
            return np.asarray(_unit(self.text(input_ids=ids).pooler_output).cpu())


def _unit(vectors_ND: torch.Tensor) -> torch.Tensor:
    # Normalised in float32, as in bfloat16 the length would be off by half a percent.
    vectors_ND = vectors_ND.float()
    return torch.nn.functional.normalize(vectors_ND, dim=-1, eps=0.0)
