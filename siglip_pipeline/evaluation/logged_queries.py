"""Prove a sample of the queries that people asked: the recall that they got."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from siglip_pipeline.errors import QueryError
from siglip_pipeline.search import Receipt, SearchService, parse_query
from siglip_pipeline.store.index.recall.truth import bootstrap
from siglip_pipeline.store.query_log import QueryLog

SAMPLE = 100
"""Queries that one night proves."""
_SINCE = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedQuery:
    """A logged query, and how much of its exact answer the index found."""

    text: str
    recall: float
    missed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRecall:
    """The recall@10 of a sample of the queries that people asked."""

    queries: tuple[ProvedQuery, ...]
    """Worst first."""
    recall: float
    """Mean over the sample; 1 if nothing was asked."""
    low: float
    high: float


def prove_logged_queries(
    log: QueryLog, service: SearchService, *, keep_days: int, now: datetime | None = None
) -> LoggedRecall:
    """Prove a sample of the last day's queries, and delete what is older than ``keep_days``.

    Raises:
        NothingIndexedError: no index has been published yet.
    """
    now = now or datetime.now(UTC)
    log.remove_before(now - timedelta(days=keep_days))
    proved = [
        found
        for text in log.sample(since=now - _SINCE, count=SAMPLE)
        if (found := _prove(service, text)) is not None
    ]
    if not proved:
        return LoggedRecall(queries=(), recall=1.0, low=1.0, high=1.0)
    recalls = np.array([query.recall for query in proved])
    low, high = bootstrap(recalls)
    return LoggedRecall(
        queries=_worst_first(proved), recall=float(recalls.mean()), low=low, high=high
    )


def _prove(service: SearchService, text: str) -> ProvedQuery | None:
    """Return the proof of a text; None if it is no query any more."""
    try:
        proof = service.with_receipt(parse_query(text), Receipt(prove=True)).proof
    except QueryError:
        return None
    assert proof is not None, "it was asked for"
    return ProvedQuery(text=text, recall=proof.recall, missed=len(proof.missed))


def _worst_first(proved: Sequence[ProvedQuery]) -> tuple[ProvedQuery, ...]:
    return tuple(sorted(proved, key=lambda query: (query.recall, query.text)))
