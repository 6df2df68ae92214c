"""Indexes of a library, in this process: what a search costs without a database."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from store_report import Case
from timing import alternate, searcher

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.copy import read_vectors
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.recall.queries import Query
from siglip_pipeline.store.index.recall.truth import find_truth, found_share
from siglip_pipeline.store.kinds import Generation, Scope, index_kind

CODE_BYTES = 96
"""Of a vector's code in IVF-PQ, beside 1,536 of a halfvec(768)."""
PROBES = 32
TRAINED_ON = 50
"""Frames per list of IVF-PQ; faiss advises at least 39."""
BLOCK = 10_000


def against_library(
    database: Database, prefix: str, target: Generation, seconds: float, queries: Sequence[Query]
) -> list[Case]:
    """HNSW and IVF-PQ in this process: no network, no SQL, no transactions; all in memory."""
    try:
        import faiss  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        print("faiss is not installed: left out", file=sys.stderr)
        return []
    with database.connection() as connection:
        blocks = read_vectors(connection, tables.frames(target.model_id), target.dim)
        vectors_ND = np.concatenate([vectors_RD.astype(np.float16) for _, _, vectors_RD in blocks])
        truth = find_truth(connection, target, queries, [Scope()], 11)[0].distances_QK
    graph = faiss.IndexHNSWFlat(target.dim, 16, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 200
    graph.hnsw.efSearch = index_kind("hnsw").default_ef_search
    lists = int(4 * len(vectors_ND) ** 0.5)
    codes = faiss.index_factory(
        target.dim, f"IVF{lists},PQ{CODE_BYTES}", faiss.METRIC_INNER_PRODUCT
    )
    faiss.ParameterSpace().set_index_parameter(codes, "nprobe", PROBES)
    cases = []
    for name, index in (("HNSW", graph), ("IVF-PQ", codes)):
        began = time.monotonic()
        _fill(index, vectors_ND, TRAINED_ON * lists)
        spent = time.monotonic() - began
        title = f"faiss {faiss.__version__} {name} of all frames, in process"
        cases += _compare(
            database, prefix, target, queries, truth, vectors_ND, index, title, (seconds, spent)
        )
    return cases


def _fill(index: Any, vectors_ND: NDArray[np.float16], sample: int) -> None:
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(vectors_ND))[:sample])
    index.train(vectors_ND[rows].astype(np.float32))
    for start in range(0, len(vectors_ND), BLOCK):
        index.add(vectors_ND[start : start + BLOCK].astype(np.float32))


def _compare(
    database: Database,
    prefix: str,
    target: Generation,
    queries: Sequence[Query],
    truth_QK: FloatArray,
    vectors_ND: NDArray[np.float16],
    index: Any,
    title: str,
    seconds: tuple[float, float],
) -> list[Case]:
    shares: dict[str, list[float]] = {"picture": [], "text": []}
    spent = 0.0
    for query, truth_K in zip(queries, truth_QK, strict=True):
        start = time.perf_counter()
        _, rows = index.search(query.embedding_D[None], 11)
        spent += time.perf_counter() - start
        # Codes give estimates: compare the vectors themselves.
        found_KD = vectors_ND[rows[0][rows[0] >= 0]].astype(np.float32)
        distances = sorted((-(found_KD @ query.embedding_D)).tolist())
        others = distances[1:] if query.held_out is not None else distances
        shares[query.modality].append(found_share(truth_K, others[:10], 10))
    (own_qps,) = alternate(database, [searcher(target)], queries[:100])
    return [
        Case(
            name=f"{prefix}_moments_qps_against_library",
            value=own_qps,
            unit="queries_per_second",
            reference=title,
            reference_value=len(queries) / spent,
            better="higher",
            note=", ".join(f"its {m} recall@10 {np.mean(v):.3f}" for m, v in shares.items()),
        ),
        Case(
            name=f"{prefix}_moments_build_against_library",
            value=seconds[0],
            unit="seconds",
            reference=title,
            reference_value=seconds[1],
            better="lower",
        ),
    ]
