"""Compare two evaluations of the same judged queries: wins, losses and a paired test."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.evaluation.quality_report import QualityReport
from siglip_pipeline.text.json_form import DOCUMENTED, Rounded6

RESAMPLINGS = 9999
SEED = 20_261_128


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One metric before and after, over the queries that both evaluations rated."""

    __pydantic_config__ = DOCUMENTED

    metric: str
    before: Rounded6
    after: Rounded6
    wins: int
    """Queries that score more after."""
    losses: int
    ties: int
    p_value: Rounded6
    """Of a paired permutation test: how often chance alone gives a difference as large."""

    @property
    def difference(self) -> float:
        """Return how much better the metric is after."""
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class WorseQuery:
    """A query that scores less after."""

    line: int
    query: str
    before: Rounded6
    after: Rounded6


def compare_reports(before: QualityReport, after: QualityReport) -> tuple[Comparison, ...]:
    """Return the metrics that both reports have, in the order of the first."""
    return tuple(
        compared
        for name in before.metrics
        if (compared := _compare(name, before, after)) is not None
    )


def worse_queries(
    before: QualityReport, after: QualityReport, metric: str
) -> tuple[WorseQuery, ...]:
    """Return the queries that score less after, the largest loss first."""
    old, new = before.per_query(metric), after.per_query(metric)
    worse = [
        WorseQuery(line=q.line, query=q.query, before=old[q.line], after=new[q.line])
        for q in before.queries
        if q.line in old and q.line in new and new[q.line] < old[q.line]
    ]
    return tuple(sorted(worse, key=lambda query: (query.after - query.before, query.line)))


def _compare(name: str, before: QualityReport, after: QualityReport) -> Comparison | None:
    old, new = before.per_query(name), after.per_query(name)
    lines = [line for line in old if line in new]
    if not lines:
        return None
    old_Q = np.array([old[line] for line in lines])
    new_Q = np.array([new[line] for line in lines])
    wins, losses = int((new_Q > old_Q).sum()), int((new_Q < old_Q).sum())
    return Comparison(
        metric=name,
        before=float(old_Q.mean()),
        after=float(new_Q.mean()),
        wins=wins,
        losses=losses,
        ties=len(lines) - wins - losses,
        p_value=_p_value(new_Q - old_Q),
    )


def _p_value(differences_Q: NDArray[np.float64]) -> float:
    """Return the two-sided p of a permutation test that flips the signs of the differences."""
    changed = differences_Q[differences_Q != 0]
    if len(changed) < 2:  # of one difference both signs are as large
        return 1.0
    from scipy.stats import permutation_test

    result = permutation_test(
        (changed,),
        lambda d, axis: d.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLINGS,
        rng=SEED,
    )
    return float(result.pvalue)
