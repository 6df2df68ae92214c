"""Find the pictures that a large part of all moments show: a fade from black, a logo, a test card.

Imports numpy where vectors are at hand: `status` reads index kinds without it.

Shapes: S moments of a sample, D dimensions.
"""

from collections.abc import Sequence
from typing import Any, Final

from siglip_pipeline.records import FloatArray

CLOSE: Final = 0.99
"""Least cosine of a moment with the centre of its cluster. Further apart are moments that differ in
what people look for, as those of one fixed camera."""
LEAST_SHARE: Final = 0.02
"""Of all moments; fewer do not keep a walk of the graph from the others (decision 0142)."""
FEWEST_MOMENTS: Final = 1_000
"""A walk of a smaller index meets most of it."""
SAMPLE: Final = 4_000
"""Moments that are compared with each other: a cluster of the least share has some 80 of them."""


_CLUSTERS: Final = "clusters"
"""Parameter of a generation: how many clusters it has; absent without any."""


def parameters_for(clusters: int) -> dict[str, Any]:
    """Return the parameters of a generation with so many clusters."""
    return {_CLUSTERS: clusters} if clusters else {}


def number_of_clusters(parameters: dict[str, Any]) -> int:
    """Return how many clusters a generation with these parameters has."""
    return int(parameters.get(_CLUSTERS, 0))


def find_clusters(sample: Sequence[FloatArray]) -> list[FloatArray]:
    """Return the centres of clusters in a sample of moments, the largest first.

    Greedy: the moment with the most others around it makes a cluster with those that are close to
    their mean, and so on with what is left.

    Args:
        sample: unit vectors [D].

    Returns:
        Unit vectors [D], each the mean of the members in the sample.
    """
    import numpy as np

    sample_SD = np.array(sample, np.float32)
    # Members that are this close to their centre have about the square of it between them.
    near_SS = sample_SD @ sample_SD.T >= CLOSE**2
    least = max(2.0, LEAST_SHARE * len(sample_SD))
    centres = []
    while near_SS.size:
        count_S = near_SS.sum(axis=1)
        first = int(count_S.argmax())
        if count_S[first] < least:
            break
        around_S = near_SS[first].copy()
        mean_D = sample_SD[around_S].mean(axis=0)
        members_S = around_S & (sample_SD @ mean_D >= CLOSE * np.linalg.norm(mean_D))
        if members_S.sum() >= least:
            centre_D = sample_SD[members_S].mean(axis=0)
            centres.append(centre_D / np.linalg.norm(centre_D))
            near_SS[:, members_S] = False
            near_SS[members_S] = False
        else:
            near_SS[around_S] = False  # they are too far from each other
    return centres
