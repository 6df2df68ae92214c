"""Cosines and probabilities of a model, both ways."""

import math

from siglip_pipeline.siglip import similarity
from siglip_pipeline.store.models import ModelRow


def probability_of(score: float, model: ModelRow) -> float:
    """SigLIP's sigmoid of a cosine: how probable it is that a text fits."""
    return float(similarity.probability(score, model.logit_scale, model.logit_bias))


def score_of(probability: float, model: ModelRow) -> float:
    """The cosine at which a text has this probability: the sigmoid backwards."""
    if probability <= 0:
        return -2.0
    logit = math.inf if probability >= 1 else math.log(probability / (1 - probability))
    return (logit - model.logit_bias) / math.exp(model.logit_scale)
