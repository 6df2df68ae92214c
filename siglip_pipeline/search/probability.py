"""Convert between a model's cosines and probabilities."""

import math

from siglip_pipeline.siglip import similarity
from siglip_pipeline.store.models import ModelRow


def probability_of(score: float, model: ModelRow) -> float:
    """Return the probability that a text fits: SigLIP's sigmoid of the cosine."""
    return float(similarity.probability(score, model.logit_scale, model.logit_bias))


def score_of(probability: float, model: ModelRow) -> float:
    """Return the cosine at which a text has this probability: the inverse sigmoid."""
    if probability <= 0:
        return -2.0
    logit = math.inf if probability >= 1 else math.log(probability / (1 - probability))
    return (logit - model.logit_bias) / math.exp(model.logit_scale)
