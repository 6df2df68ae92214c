"""Queries a second of several searches, taking turns query by query."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.recall.queries import Query
from siglip_pipeline.store.kinds import Generation, Scope, index_kind
from siglip_pipeline.store.search.execution import effort_of
from siglip_pipeline.store.search.near_frames import NearFrames

Searcher = Callable[[Database], Callable[[FloatArray], object]]


def searcher(target: Generation, kind: str | None = None) -> Searcher:
    def search(database: Database) -> Callable[[FloatArray], object]:
        def once(query_D: FloatArray) -> object:
            with database.connection() as connection:
                chosen = index_kind(kind or target.kind)
                effort = effort_of(chosen, target, query_D)
                search = NearFrames(connection, chosen, target, k=10, scope=Scope(), effort=effort)
                return search(query_D)

        return once

    return search


def alternate(
    database: Database, searchers: Sequence[Searcher], queries: Sequence[Query]
) -> list[float]:
    """Queries a second of each, one client, taking turns query by query."""
    calls = [make(database) for make in searchers]
    for call in calls:
        call(queries[0].embedding_D)
    spent = np.zeros(len(calls))
    for query in queries:
        for i, call in enumerate(calls):
            began = time.perf_counter()
            call(query.embedding_D)
            spent[i] += time.perf_counter() - began
    return [len(queries) / float(seconds) for seconds in spent]
