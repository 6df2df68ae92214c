"""Stop measuring once the recall is clear of a bound.

The recalls of queries lie between 0 and 1. For the mean m of n such values whose expectation is p,
Hoeffding (1963, "Probability inequalities for sums of bounded random variables", theorem 1) gives
P(mean >= m) <= exp(-n KL(m, p)) for m > p, and likewise below; KL is the relative entropy of two
coins. The error of all looks together is split evenly among them (Bonferroni).
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

LOOKS = (0.25, 0.5, 0.75)
"""Shares of the queries after which a measurement may stop."""
ERROR = 0.05
"""Probability of a stop on the wrong side of the bound."""


def looks(queries: int) -> Iterator[int]:
    """Yield the numbers of queries after which to look; all of them at last."""
    yield from (math.ceil(share * queries) for share in LOOKS)
    yield queries


def is_clear(values_Q: NDArray[np.float64], bound: float) -> bool:
    """Return whether the expectation of values in [0, 1] lies on the same side as their mean."""
    entropy = _relative_entropy(float(values_Q.mean()), bound)
    return len(values_Q) * entropy >= math.log(2 * len(LOOKS) / ERROR)


def _relative_entropy(mean: float, bound: float) -> float:
    """Return the relative entropy of two coins; infinite if the bound's cannot fall so."""
    total = 0.0
    for own, theirs in ((mean, bound), (1 - mean, 1 - bound)):
        if own > 0:
            total += own * math.log(own / theirs) if theirs > 0 else math.inf
    return total
