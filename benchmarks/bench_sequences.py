"""What does "A then B" cost beside a single search?

A made collection, indexed by moments. Each query is asked alone, as a search for 10 hits with
neighbouring moments joined, and as the first text of a sequence; its second text is another query.

    python benchmarks/bench_sequences.py [--quick] [--json] [--frames 100000]
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from bench_similarity import DIM, made_database, register
from store_report import Case, print_report
from vectors import Footage

from siglip_pipeline.hits import SearchFilter, SearchRequest
from siglip_pipeline.search.sequences import find_sequences
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.search.moment_search import MomentSearch
from siglip_pipeline.store.vectors import VectorStore

K, QUERIES, WITHIN, WITHIN_SECONDS = 10, 80, 0.02, 30.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 frames")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", type=int, default=100_000)
    options = parser.parse_args(arguments)
    footage = Footage(20_000 if options.quick else options.frames, dim=DIM)
    with made_database() as database:
        cases = compared(database, footage)
    print_report("sequences", cases, as_json=options.json)


def compared(database: Database, footage: Footage) -> list[Case]:
    model_id, vectors = register(database), VectorStore(database)
    for batch in footage:
        with database.connection() as connection:
            connection.execute("INSERT INTO videos (path) VALUES (%s)", [batch.video])
        vectors.load(model_id, batch, source_sha256=batch.video, sampling="fps:1")
    report = build_index(database, model_id, options=IndexOptions(min_recall=0.0))
    assert report.published, report.reason
    model, moments = ModelStore(database).get(model_id), MomentSearch(database)
    queries_QD = footage.text_queries(QUERIES)
    alone: list[float] = []
    sequences: list[float] = []
    for number in range(2 * QUERIES):
        texts_TD = queries_QD[[number % QUERIES, (number + 1) % QUERIES]]
        began = time.perf_counter()
        hits = moments.search(
            model, SearchRequest(query_QD=texts_TD[:1], k=K, within=WITHIN), must_be_active=True
        )
        between = time.perf_counter()
        found = find_sequences(
            database,
            moments,
            model,
            texts_TD,
            within_seconds=WITHIN_SECONDS,
            k=K,
            filter=SearchFilter(),
            min_probability=0.0,
        )
        ended = time.perf_counter()
        assert len(hits) == len(found) == K
        for hit in found:
            first, second = hit.steps or ()
            assert 0 < second.time_seconds - first.time_seconds <= WITHIN_SECONDS
        if number >= QUERIES:  # the first round warms the caches
            alone.append(1000 * (between - began))
            sequences.append(1000 * (ended - between))
    return [
        Case(
            name=f"sequence_p{percentile}_at_{footage.frames}_frames",
            value=float(np.percentile(sequences, percentile)),
            unit="ms",
            reference=f"a single search for {K} hits",
            reference_value=float(np.percentile(alone, percentile)),
            goal=3.0 if percentile == 95 else None,
            better="lower",
        )
        for percentile in (50, 95)
    ]


if __name__ == "__main__":
    main()
