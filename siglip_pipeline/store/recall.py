"""The recall check: what an index finds of what an exact search finds, and how fast.

The same code measures every kind of index. The truth is found once per query by looking at every
frame. A frame counts as found when it is as near as the last one of the truth, so that ties, and
frames that are copies of each other, are not held against an index.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.generations import Generation
from siglip_pipeline.store.index_kinds import Scope, index_kind
from siglip_pipeline.store.search import choose_kind, near_frames

Modality = Literal["picture", "text"]

QUERIES = 200
SEED = 20_250_117
DEPTHS = (1, 10, 100)
# Half precision: two frames whose inner products differ by less are as near as each other.
TIE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query of the check."""

    modality: Modality
    label: str
    """A frame (``path@index``) or a text, for people."""
    embedding_D: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallCase:
    """What was measured with one kind of query under one filter at one effort."""

    modality: Modality
    share: float
    """Share of videos that the filter lets through; 1: no filter."""
    effort: int
    queries: int
    recall: dict[int, float]
    """Mean recall at each depth."""
    interval: tuple[float, float]
    """95% bootstrap interval of recall@10."""
    rows: float
    """Mean rows returned, of those that exist up to 10."""
    p50_seconds: float
    p99_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallReport:
    """All cases of one check."""

    cases: list[RecallCase] = field(default_factory=list)
    plan: str = ""
    """EXPLAIN of one unfiltered search."""
    uses_index: bool = True

    @property
    def recall_at_10(self) -> float:
        """The worst unfiltered recall@10 of the kinds of query, at the default effort."""
        return min((case.recall[10] for case in self.cases if case.share == 1), default=1.0)


def exact_distances(
    connection: Connection, target: Generation, query_D: FloatArray, scope: Scope, k: int
) -> NDArray[np.float64]:
    """Distances of the nearest frames, found by looking at all of them."""
    found = near_frames(connection, index_kind("exact"), target, query_D, k=k, scope=scope)
    return np.array([frame.distance for frame in found])


def found_share(truth_K: NDArray[np.float64], found: Sequence[float], k: int) -> float:
    """Recall at ``k``; 1 when there is nothing to find."""
    wanted = min(k, len(truth_K))
    if wanted == 0:
        return 1.0
    limit = truth_K[wanted - 1] + TIE
    return min(wanted, sum(distance <= limit for distance in found[:k])) / wanted


def bootstrap(values_N: NDArray[np.float64], *, seed: int = SEED) -> tuple[float, float]:
    """95% interval of the mean, by a thousand resamplings."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values_N), size=(1000, len(values_N)))
    low, high = np.percentile(values_N[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def measure(
    connection: Connection,
    target: Generation,
    queries: Sequence[Query],
    *,
    share: float = 1.0,
    scope: Scope | None = None,
    effort: int | None = None,
    truth: Sequence[NDArray[np.float64]] | None = None,
) -> RecallCase:
    """Search with each query, and compare with the truth."""
    scope = scope or Scope()
    kind = choose_kind(target, scope)
    recalls: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    seconds: list[float] = []
    rows: list[int] = []
    for i, query in enumerate(queries):
        exact_K = (
            exact_distances(connection, target, query.embedding_D, scope, max(DEPTHS))
            if truth is None
            else truth[i]
        )
        began = time.perf_counter()
        ten = near_frames(
            connection, kind, target, query.embedding_D, k=10, scope=scope, effort=effort
        )
        seconds.append(time.perf_counter() - began)
        hundred = near_frames(
            connection, kind, target, query.embedding_D, k=100, scope=scope, effort=effort
        )
        rows.append(len(ten))
        for depth in DEPTHS:
            found = ten if depth <= 10 else hundred
            recalls[depth].append(found_share(exact_K, [f.distance for f in found], depth))
    at_10 = np.array(recalls[10])
    return RecallCase(
        modality=queries[0].modality,
        share=share,
        effort=effort or kind.default_effort,
        queries=len(queries),
        recall={depth: float(np.mean(values)) for depth, values in recalls.items()},
        interval=bootstrap(at_10),
        rows=float(np.mean(rows)),
        p50_seconds=float(np.percentile(seconds, 50)),
        p99_seconds=float(np.percentile(seconds, 99)),
    )
