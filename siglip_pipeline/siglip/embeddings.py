"""Embed pictures and texts as unit vectors. N items, D dimensions."""

import logging
from collections.abc import Sequence

import numpy as np

from siglip_pipeline.errors import EmbeddingError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.siglip.jpeg_decoding import ImageLike
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.preprocess import assemble, prepare
from siglip_pipeline.siglip.runner import BatchSize, run_batch

_log = logging.getLogger(__name__)

_TEXTS_AT_ONCE = 64


def extract_image_embeddings(images: Sequence[ImageLike], *, model: SiglipModel) -> FloatArray:
    """Embed pictures.

    For many frames use :class:`.engine.EmbeddingEngine`, which decodes in parallel to the model.

    Args:
        images: PIL images, encoded pictures (JPEG, PNG, … as bytes) or uint8 arrays [H, W, 3].
        model: a model whose vision tower is loaded.

    Returns:
        Float32 [N, D], each row of length 1, in the order of ``images``.

    Raises:
        ValueError: a picture cannot be read; the message says which.
        EmbeddingError: a vector is NaN or infinite.
    """
    device_resizes = model.device.startswith("cuda")
    sizes = BatchSize(fixed=model.settled_batch_size or 16)
    vectors = [np.empty((0, model.spec.dim), np.float32)]
    start = 0
    while start < len(images):
        batch = []
        for i, image in enumerate(images[start : start + sizes.current], start):
            try:
                batch.append(prepare(image, model.recipe, device_resizes=device_resizes))
            except ValueError as error:
                raise ValueError(f"images[{i}]: {error}") from error
        vectors.append(run_batch(model, assemble(batch), sizes).vectors_ND)
        start += len(batch)
    result = np.concatenate(vectors)
    _check_finite(result, "images", model)
    return result


def extract_text_embeddings(texts: Sequence[str], *, model: SiglipModel) -> FloatArray:
    """Embed texts as in SigLIP's training: lowercased, padded or truncated to 64 tokens.

    A text that is too long is truncated, and a warning says by how many tokens.

    Args:
        texts: any strings.
        model: a model whose text tower is loaded.

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
        vectors.append(model.encode_texts(tokens.ids_NT).cpu().numpy())
    result = np.concatenate(vectors)
    _check_finite(result, "texts", model)
    return result


def _check_finite(vectors_ND: FloatArray, what: str, model: SiglipModel) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))
    if bad.size:
        remedy = "" if model.dtype == "float32" else "; set SIGLIP_DTYPE=float32"
        raise EmbeddingError(
            f"{what}[{bad[0]}]: {model.spec.name} gave a vector that is not finite in {model.dtype}"
            + remedy
        )
