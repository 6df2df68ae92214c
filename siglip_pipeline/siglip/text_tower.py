"""The text tower in numpy, for a process that embeds a few texts: it starts without torch.

Importing torch and transformers takes seconds, of which a search needs none: one text is one
product of some hundred megabytes of weights. They are mapped from the checkpoint's files, so that
of the vocabulary only the rows of the text's tokens are read.

N texts, T tokens, D dimensions, H heads.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from siglip_pipeline.records import FloatArray, IntArray, ModelSpec
from siglip_pipeline.siglip.checkpoint import Checkpoint, open_checkpoint
from siglip_pipeline.siglip.identity import spec_of
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.recipe import Recipe, read_recipe
from siglip_pipeline.siglip.tokenizer import TextTokenizer, Tokens
from siglip_pipeline.siglip.weights import read_header

_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_ROOT: Final = "text_model"


class NumpyTextModel:
    """The text tower of a checkpoint on the CPU, in float32; a :class:`.TextEncoder`. Thread-safe.

    Attributes:
        spec: identity; vectors of models with equal ``spec.key`` may be compared.
        recipe: the preparation of texts.
        dtype: of the arithmetic.
    """

    def __init__(self, spec: ModelSpec, recipe: Recipe, checkpoint: Checkpoint) -> None:
        self.spec = spec
        self.recipe = recipe
        self.dtype = "float32"
        self._tokenizer = TextTokenizer(checkpoint, recipe)
        self._tower = _Tower(checkpoint)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return texts as token ids; see :meth:`.TextTokenizer.tokenize`."""
        return self._tokenizer.tokenize(texts)

    def encode_texts(self, ids_NT: IntArray) -> FloatArray:
        """Return unit vectors [N, D]; callers must check for NaN."""
        with np.errstate(all="ignore"):
            vectors_ND = self._tower.pooled(ids_NT)
            return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True))


def open_text_model(options: ModelOptions) -> NumpyTextModel | None:
    """Open the text tower of the configured model.

    Returns:
        None for a checkpoint whose text tower differs from those of SigLIP and SigLIP 2, or whose
        weights are damaged: the loader of :mod:`.model` supports more, and says what is wrong.

    Raises:
        ModelError: as :func:`.open_checkpoint` and :func:`.read_recipe`.
    """
    checkpoint = open_checkpoint(options)
    recipe = read_recipe(checkpoint, max_num_patches=options.max_num_patches)
    spec = spec_of(checkpoint, recipe, cache=options.fingerprints)
    try:
        return NumpyTextModel(spec, recipe, checkpoint)
    except _UnusualTowerError:
        return None


class _UnusualTowerError(Exception):
    pass


class _Tensors:
    """The tensors of safetensors files, mapped into memory."""

    def __init__(self, files: tuple[Path, ...], name: str) -> None:
        self._tensors: dict[str, npt.NDArray[Any]] = {}
        for file in files:
            header, data = read_header(file, name)
            mapped = np.memmap(file, np.uint8, mode="r")
            for key, entry in header.items():
                kind = _TYPES.get(entry["dtype"])
                if key.startswith(f"{_ROOT}.") and kind is not None:
                    begin, end = entry["data_offsets"]
                    if end - begin == math.prod(entry["shape"]) * kind.itemsize:
                        flat = mapped[data + begin : data + end].view(kind)
                        self._tensors[key] = flat.reshape(entry["shape"])

    def get(self, name: str, *shape: int) -> npt.NDArray[Any]:
        """Return a tensor as it is stored; convert it with :func:`_float32`."""
        tensor = self._tensors.get(f"{_ROOT}.{name}")
        if tensor is None or tensor.shape != shape:
            raise _UnusualTowerError
        return tensor


def _float32(stored: npt.NDArray[Any]) -> FloatArray:
    if stored.dtype == _TYPES["BF16"]:
        # bfloat16 is the upper half of a float32.
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(stored, np.float32)


class _Linear:
    def __init__(self, tensors: _Tensors, name: str, inputs: int, outputs: int) -> None:
        self._weight_OI = tensors.get(f"{name}.weight", outputs, inputs)
        self._bias_O = _float32(tensors.get(f"{name}.bias", outputs))

    def __call__(self, x: FloatArray) -> FloatArray:
        return x @ _float32(self._weight_OI).T + self._bias_O


class _LayerNorm:
    def __init__(self, tensors: _Tensors, name: str, width: int, epsilon: float) -> None:
        self._weight_D = _float32(tensors.get(f"{name}.weight", width))
        self._bias_D = _float32(tensors.get(f"{name}.bias", width))
        self._epsilon = epsilon

    def __call__(self, x: FloatArray) -> FloatArray:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(variance + self._epsilon)
        return np.asarray(scaled * self._weight_D + self._bias_D)


class _Block:
    """An encoder layer: attention and a perceptron, each after its own norm."""

    def __init__(
        self, tensors: _Tensors, name: str, *, width: int, inner: int, heads: int, epsilon: float
    ) -> None:
        def linear(of: str, inputs: int = width, outputs: int = width) -> _Linear:
            return _Linear(tensors, f"{name}.{of}", inputs, outputs)

        self._heads = heads
        self._norm_1 = _LayerNorm(tensors, f"{name}.layer_norm1", width, epsilon)
        self._norm_2 = _LayerNorm(tensors, f"{name}.layer_norm2", width, epsilon)
        self._query, self._key, self._value, self._out = (
            linear(f"self_attn.{of}_proj") for of in ["q", "k", "v", "out"]
        )
        self._up = linear("mlp.fc1", width, inner)
        self._down = linear("mlp.fc2", inner, width)

    def __call__(self, x_NTD: FloatArray) -> FloatArray:
        x_NTD = x_NTD + self._attention(self._norm_1(x_NTD))
        return x_NTD + self._down(_gelu(self._up(self._norm_2(x_NTD))))

    def _attention(self, x_NTD: FloatArray) -> FloatArray:
        def heads(y_NTD: FloatArray) -> FloatArray:
            return y_NTD.reshape(*y_NTD.shape[:2], self._heads, -1).swapaxes(1, 2)

        query, key, value = heads(self._query(x_NTD)), heads(self._key(x_NTD)), self._value(x_NTD)
        scores_NHTT = query @ key.swapaxes(2, 3) / np.float32(math.sqrt(query.shape[-1]))
        weights_NHTT = np.exp(scores_NHTT - scores_NHTT.max(axis=-1, keepdims=True))
        weights_NHTT /= weights_NHTT.sum(axis=-1, keepdims=True)
        return self._out((weights_NHTT @ heads(value)).swapaxes(1, 2).reshape(x_NTD.shape))


def _gelu(x: FloatArray) -> FloatArray:
    """Return GELU in its approximation by tanh, as ``gelu_pytorch_tanh``."""
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)))


class _Tower:
    """Embeddings of tokens and positions, the encoder, and the head over the last position."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        # The defaults of SiglipTextConfig, which both families share.
        config = {
            "vocab_size": 32_000,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            **{key: value for key, value in checkpoint.text_config.items() if value is not None},
        }
        width, heads = config["hidden_size"], config["num_attention_heads"]
        if config["hidden_act"] != "gelu_pytorch_tanh" or width % heads:
            raise _UnusualTowerError
        epsilon = float(config["layer_norm_eps"])
        tensors = _Tensors(checkpoint.weights, checkpoint.name)
        self._tokens_VD = tensors.get(
            "embeddings.token_embedding.weight", config["vocab_size"], width
        )
        positions = config.get("max_position_embeddings", 64)
        self._positions_TD = _float32(
            tensors.get("embeddings.position_embedding.weight", positions, width)
        )
        self._blocks = [
            _Block(
                tensors,
                f"encoder.layers.{layer}",
                width=width,
                inner=config["intermediate_size"],
                heads=heads,
                epsilon=epsilon,
            )
            for layer in range(config["num_hidden_layers"])
        ]
        self._norm = _LayerNorm(tensors, "final_layer_norm", width, epsilon)
        projected = config.get("projection_size") or width
        self._head = _Linear(tensors, "head", width, projected)

    def pooled(self, ids_NT: IntArray) -> FloatArray:
        """Return the vectors [N, D] of the last position, of any length."""
        x_NTD = _float32(self._tokens_VD[ids_NT]) + self._positions_TD
        for block in self._blocks:
            x_NTD = block(x_NTD)
        return self._head(self._norm(x_NTD)[:, -1])
