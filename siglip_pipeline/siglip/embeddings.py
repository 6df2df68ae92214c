"""Embed pictures as unit vectors. N items, D dimensions."""

from collections.abc import Sequence

import numpy as np

from siglip_pipeline.records import FloatArray
from siglip_pipeline.siglip.jpeg_decoding import ImageLike
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.preprocess import assemble, prepare
from siglip_pipeline.siglip.runner import BatchSize, run_batch
from siglip_pipeline.siglip.text_embeddings import check_finite


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
    check_finite(result, "images", model)
    return result
