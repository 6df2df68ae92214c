"""Zero-shot labels: score how well each label fits a frame. N frames, L labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import FloatArray
from siglip_pipeline.siglip.prompt_template import PROMPT_TEMPLATE
from siglip_pipeline.siglip.similarity import cosine_similarity, probability
from siglip_pipeline.siglip.text_embeddings import TextEncoder, extract_text_embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLabels:
    """How well each label fits each frame."""

    labels: tuple[str, ...]
    cosine_NL: FloatArray
    probability_NL: NDArray[np.float64]
    """Independent sigmoids: a row does not add up to 1, and may have no label above 0.5."""

    def best(self, frame: int, *, k: int = 5) -> list[tuple[str, float]]:
        """Return the k most probable labels of a frame with probabilities; ties in label order."""
        order = np.argsort(-self.probability_NL[frame], kind="stable")[:k]
        return [(self.labels[i], float(self.probability_NL[frame, i])) for i in order]


def label_frames(
    vectors_ND: FloatArray,
    labels: Sequence[str],
    *,
    model: TextEncoder,
    template: str = PROMPT_TEMPLATE,
) -> FrameLabels:
    """Score how well ``labels`` fit frames.

    Args:
        vectors_ND: frame vectors [N, D] of the same model.
        labels: nouns, such as ``"a red car"``; at least one.
        model: a model whose text tower is loaded.
        template: a sentence with ``{label}`` in it.

    Raises:
        ValueError: no labels, an empty label, or a template without ``{label}``.
    """
    if isinstance(labels, str) or not labels or not all(label.strip() for label in labels):
        raise ValueError(f"labels={labels!r}: expected at least one label, none of them empty")
    if "{label}" not in template:
        raise ValueError(f"template={template!r} has no {{label}} in it")
    sentences = [template.replace("{label}", label) for label in labels]
    texts_LD = extract_text_embeddings(sentences, model=model)
    cosine_NL = np.asarray(cosine_similarity(np.atleast_2d(vectors_ND), texts_LD), np.float32)
    return FrameLabels(
        labels=tuple(labels),
        cosine_NL=cosine_NL,
        probability_NL=probability(cosine_NL, model.spec.logit_scale, model.spec.logit_bias),
    )
