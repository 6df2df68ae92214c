"""The result of an evaluation: each metric with its interval, of all queries and per tag."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from siglip_pipeline.evaluation.judged_queries import JudgedQuery
from siglip_pipeline.evaluation.metrics import PerQuery
from siglip_pipeline.store.index.recall.truth import bootstrap
from siglip_pipeline.text.json_form import DOCUMENTED, Given, Rounded6

NOTHING_HERE = "nothing-here precision"
"""Of the queries that were answered with "nothing here", the share that nothing answers."""
NOTHING_FOUND = "nothing-here recall"
"""Of the queries that nothing answers, the share that was answered with "nothing here"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """A metric over some queries, with the 95% interval of a bootstrap over the queries."""

    __pydantic_config__ = DOCUMENTED

    metric: str
    mean: Rounded6
    low: Rounded6
    high: Rounded6
    queries: int
    """Queries that the metric can rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagQuality:
    """The metrics of the queries with one tag."""

    tag: str
    """Empty: all queries."""
    queries: int
    metrics: tuple[MetricValue, ...]

    def metric(self, name: str) -> MetricValue | None:
        """Return a metric by its name; None if it rates no query."""
        return next((value for value in self.metrics if value.metric == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryQuality:
    """One query and what it scored."""

    line: int
    query: str
    values: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """How well judged queries were answered."""

    __pydantic_config__ = DOCUMENTED

    judged: str
    """Name of the file."""
    digest: str
    """Hash of what was asked and judged: results of equal digests compare."""
    model: str
    model_key: str
    generation: int | None
    """The index generation that was searched."""
    min_probability: float
    """A search answers "nothing here" if no hit is at least as probable; 0: it never does."""
    tags: tuple[TagQuality, ...]
    """All queries first, then each tag."""
    queries: tuple[QueryQuality, ...]
    skipped: int
    """Queries left out because a video of theirs is not indexed."""
    seconds: float
    ranking: Given[str] = None
    """SIGLIP_RANKING, where it names any technique."""

    @property
    def overall(self) -> TagQuality:
        """Return the metrics of all queries."""
        return self.tags[0]

    def per_query(self, metric: str) -> PerQuery:
        """Return a metric's value for each query that it rates, by line."""
        return {q.line: q.values[metric] for q in self.queries if metric in q.values}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the names of the metrics that rate any query."""
        return tuple(value.metric for value in self.overall.metrics)


def nothing_here(queries: Iterable[JudgedQuery], answered_nothing: set[int]) -> dict[str, PerQuery]:
    """Return the metrics of the answer "nothing here".

    Args:
        queries: all queries.
        answered_nothing: lines of the queries without a probable hit.
    """
    asked = list(queries)
    return {
        NOTHING_HERE: {q.line: float(not q.relevant) for q in asked if q.line in answered_nothing},
        NOTHING_FOUND: {q.line: float(q.line in answered_nothing) for q in asked if not q.relevant},
    }


def by_tag(
    queries: Sequence[JudgedQuery], values: Mapping[str, PerQuery]
) -> tuple[TagQuality, ...]:
    """Return the metrics of all queries, then of each tag in the order of its first query."""
    tags = dict.fromkeys(tag for query in queries for tag in query.tags)
    return (
        _quality("", queries, values),
        *(_quality(tag, [q for q in queries if tag in q.tags], values) for tag in tags),
    )


def _quality(
    tag: str, queries: Sequence[JudgedQuery], values: Mapping[str, PerQuery]
) -> TagQuality:
    metrics = []
    for name, of_all in values.items():
        rated = np.array([of_all[q.line] for q in queries if q.line in of_all])
        if len(rated):
            low, high = bootstrap(rated)
            metrics.append(
                MetricValue(
                    metric=name, mean=float(rated.mean()), low=low, high=high, queries=len(rated)
                )
            )
    return TagQuality(tag=tag, queries=len(queries), metrics=tuple(metrics))
