"""Stop measuring once the recall is clear of a bound.

Two bets are made on the recalls of queries, which lie between 0 and 1 (Waudby-Smith and Ramdas
2023, "Estimating means of bounded random variables by betting"). Each starts with a capital of 1.
The first multiplies it by ``1 + stake * (recall - bound)`` at each query: unless the expected
recall is above the bound, it is not expected to grow, and by Ville's inequality it ever reaches
``1 / ERROR`` with a probability of at most ``ERROR``, however often one looks. The second bets
likewise on a recall below the bound. Only one of them can be wrong.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

FIRST_LOOK = 0.1
"""Share of the queries after which a measurement may stop."""
NEXT_LOOKS = 0.05
ERROR = 0.05
"""Probability of a stop on the wrong side of the bound."""
MISSED = 0.9
"""Part of its capital that the first bet loses by a query that finds nothing."""
FOUND = 0.05
"""Part of its capital that the second bet loses by a query that finds everything."""


def looks(queries: int, first: float = FIRST_LOOK) -> Iterator[int]:
    """Yield the numbers of queries after which to look, rising; all of them at last."""
    yield from range(math.ceil(first * queries), queries, max(1, round(NEXT_LOOKS * queries)))
    yield queries


def is_clear(values_Q: NDArray[np.float64], bound: float) -> bool:
    """Return whether the expectation of values in [0, 1] lies on the same side as their mean."""
    if not 0 < bound < 1:
        return bound <= 0 or bool(values_Q.mean() < bound)
    above = np.log1p(MISSED * (values_Q / bound - 1)).sum()
    below = np.log1p(FOUND * (bound - values_Q) / (1 - bound)).sum()
    return bool(max(above, below) >= math.log(1 / ERROR))
