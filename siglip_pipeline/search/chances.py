"""Cosines and probabilities of a model, both ways."""

import math

from siglip_pipeline.siglip.similarity import probability
from siglip_pipeline.store.models import ModelRow


def probability_of(score: float, model: ModelRow) -> float:
    """SigLIP's sigmoid of a cosine: how probable it is that a text fits."""
    return float(probability(score, model.logit_scale, model.logit_bias))


def score_of(chance: float, model: ModelRow) -> float:
    """The cosine at which a text has this probability: the sigmoid backwards."""
    if chance <= 0:
        return -2.0
    logit = math.inf if chance >= 1 else math.log(chance / (1 - chance))
    return (logit - model.logit_bias) / math.exp(model.logit_scale)
