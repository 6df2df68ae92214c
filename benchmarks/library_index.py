"""HNSW of a library, in this process: what a search costs without a database."""

import sys
import time
from collections.abc import Sequence

import numpy as np
from store_report import Case
from timing import alternate, searcher

from siglip_pipeline.store import tables
from siglip_pipeline.store.copy import read_vectors
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.recall.queries import Query
from siglip_pipeline.store.index.recall.truth import find_truth, found_share
from siglip_pipeline.store.kinds import Generation, Scope, index_kind


def against_library(
    database: Database, prefix: str, target: Generation, seconds: float, queries: Sequence[Query]
) -> list[Case]:
    """HNSW in this process: no network, no SQL, no transactions; all frames in memory."""
    try:
        import faiss  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        print("faiss is not installed: left out", file=sys.stderr)
        return []
    began = time.monotonic()
    index = faiss.IndexHNSWFlat(target.dim, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.hnsw.efSearch = index_kind("hnsw").default_ef_search
    with database.connection() as connection:
        table = tables.frames(target.model_id)
        for _, _, vectors_RD in read_vectors(connection, table, target.dim):
            index.add(np.ascontiguousarray(vectors_RD))
        truth = find_truth(connection, target, queries, [Scope()], 11)[0]
    library_seconds = time.monotonic() - began
    held = [query.held_out is not None for query in queries]
    shares: dict[str, list[float]] = {"picture": [], "text": []}
    spent = 0.0
    for query, truth_K, own in zip(queries, truth, held, strict=True):
        start = time.perf_counter()
        scores, _ = index.search(query.embedding_D[None], 11)
        spent += time.perf_counter() - start
        distances = sorted(-scores[0])[1 if own else 0 :][:10]
        shares[query.modality].append(found_share(truth_K, [float(d) for d in distances], 10))
    (own_qps,) = alternate(database, [searcher(target)], queries[:100])
    name = f"faiss {faiss.__version__} HNSW of all frames, in process, float32"
    return [
        Case(
            name=f"{prefix}_moments_qps_against_library",
            value=own_qps,
            unit="queries_per_second",
            reference=name,
            reference_value=len(queries) / spent,
            better="higher",
            note=", ".join(f"its {m} recall@10 {np.mean(v):.3f}" for m, v in shares.items()),
        ),
        Case(
            name=f"{prefix}_moments_build_against_library",
            value=seconds,
            unit="seconds",
            reference=name,
            reference_value=library_seconds,
            better="lower",
        ),
    ]
