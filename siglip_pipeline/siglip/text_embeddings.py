"""Embed texts as unit vectors. Imports no torch. N items, T tokens, D dimensions."""

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from siglip_pipeline.errors import EmbeddingError
from siglip_pipeline.records import FloatArray, IntArray, ModelSpec
from siglip_pipeline.siglip.recipe import Recipe
from siglip_pipeline.siglip.tokenizer import Tokens

_log = logging.getLogger(__name__)

_TEXTS_AT_ONCE = 64


class Encoder(Protocol):
    """What embeds, for messages."""

    spec: ModelSpec
    dtype: str


class TextEncoder(Encoder, Protocol):
    """A model that embeds texts."""

    recipe: Recipe

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return texts as token ids."""
        ...

    def encode_texts(self, ids_NT: IntArray) -> FloatArray:
        """Return unit vectors [N, D]."""
        ...


def extract_text_embeddings(texts: Sequence[str], *, model: TextEncoder) -> FloatArray:
    """Embed texts as in SigLIP's training: lowercased, padded or truncated to 64 tokens.

    A text that is too long is truncated, and a warning says by how many tokens.

    Args:
        texts: any strings.
        model: a model whose text tower is loaded, in torch or in numpy.

    Returns:
        Float32 [N, D], each row of length 1, in the order of ``texts``.

    Raises:
        TypeError: ``texts`` is a single string, or holds other values than strings.
        EmbeddingError: a vector is NaN or infinite.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError("texts must be a sequence of strings; wrap a single text in a list")
    vectors = [np.empty((0, model.spec.dim), np.float32)]
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        batch = texts[start : start + _TEXTS_AT_ONCE]
        tokens = model.tokenize(batch)
        for text, cut in zip(batch, tokens.cut_N, strict=True):
            if cut:
                _log.warning(
                    "the text was truncated: the last %d of its %d tokens are ignored (the model "
                    "reads %d): %r",
                    cut,
                    cut + model.recipe.text_length,
                    model.recipe.text_length,
                    text[:60],
                )
        vectors.append(model.encode_texts(tokens.ids_NT))
    result = np.concatenate(vectors)
    check_finite(result, "texts", model)
    return result


def check_finite(vectors_ND: FloatArray, what: str, model: Encoder) -> None:
    """Refuse vectors that are not finite, and name the first.

    Raises:
        EmbeddingError: a vector is NaN or infinite.
    """
    bad = np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))
    if bad.size:
        remedy = "" if model.dtype == "float32" else "; set SIGLIP_DTYPE=float32"
        raise EmbeddingError(
            f"{what}[{bad[0]}]: {model.spec.name} gave a vector that is not finite in {model.dtype}"
            + remedy
        )
