"""A loaded model, which embeds pictures and tokens as unit vectors."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch

from siglip_pipeline.errors import ModelError, UnsupportedModelError
from siglip_pipeline.records import ModelSpec
from siglip_pipeline.siglip.checkpoint import Checkpoint
from siglip_pipeline.siglip.forward import EagerForward, Forward
from siglip_pipeline.siglip.preprocess import ImageBatch, ModelInputs, model_inputs
from siglip_pipeline.siglip.recipe import Recipe

Tower = Literal["both", "text", "image"]


class Tokens(NamedTuple):
    """Texts as input of the text tower."""

    ids_NT: torch.Tensor
    """int64 [N, T] with T = ``recipe.text_length``."""
    cut_N: list[int]
    """The number of truncated tokens of each text."""


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
        self._checkpoint = checkpoint
        self._text = text
        self._vision = vision
        self._tokenizer: Any = None
        self._tokenizer_lock = threading.Lock()

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
        """Return texts as token ids, prepared as in SigLIP's training.

        Lowercased here, as the tokenizers of ``siglip`` checkpoints with a Gemma vocabulary do not
        do it; padded to the full length, as the tower pools the last position.
        """
        lowered = [text.lower() for text in texts]
        length = self.recipe.text_length
        # A fast tokenizer keeps its padding and truncation in shared state.
        with self._tokenizer_lock:
            tokenizer = self._load_tokenizer()
            whole = tokenizer(lowered, padding=False, truncation=False, verbose=False)["input_ids"]
            ids = tokenizer(
                lowered,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )["input_ids"]
        vocabulary = int(self._checkpoint.text_config.get("vocab_size", 32_000))
        if ids.numel() and int(ids.max()) >= vocabulary:
            raise UnsupportedModelError(
                f"{self.spec.name!r}: its tokenizer gives token {int(ids.max())}, the model knows "
                f"{vocabulary}; tokenizer.json does not belong to config.json"
            )
        return Tokens(ids, [max(0, len(tokens) - length) for tokens in whole])

    def encode_texts(self, ids_NT: torch.Tensor) -> torch.Tensor:
        """Return unit vectors, float32 [N, D], on the device; without a mask, as in training."""
        with torch.inference_mode():
            return _unit(self.text(input_ids=ids_NT.to(self.torch_device)).pooler_output)

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                with quiet_transformers():
                    self._tokenizer = AutoTokenizer.from_pretrained(
                        self._checkpoint.folder, local_files_only=True, trust_remote_code=False
                    )
            except Exception as error:  # the Rust library raises plain Exception for a damaged file
                raise UnsupportedModelError(
                    f"{self.spec.name!r}: its tokenizer cannot be loaded ({error}). Needed are "
                    "tokenizer.json or spiece.model beside config.json"
                ) from error
        return self._tokenizer


def _unit(vectors_ND: torch.Tensor) -> torch.Tensor:
    # Normalised in float32, as in bfloat16 the length would be off by half a percent.
    vectors_ND = vectors_ND.float()
    return torch.nn.functional.normalize(vectors_ND, dim=-1, eps=0.0)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bar, and the report about a tower that is not loaded."""
    from transformers.utils import logging as hf

    verbosity, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity(logging.ERROR)
    hf.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf.set_verbosity(verbosity)
        if bars:
            hf.enable_progress_bar()  # type: ignore[no-untyped-call]
