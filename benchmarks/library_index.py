"""Indexes of a library, in this process: what a search costs without a database.

An index that needs more memory than is free, or takes too long to build, is left out, and what it
would need is printed.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from store_report import Case
from timing import alternate, searcher

from siglip_pipeline.embedded_postgres.tuning import this_machine
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import counts, tables
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
TRAINING_ROUNDS = 10
"""Of faiss's k-means for the lists."""
BLOCK = 10_000
LINKS = 16
"""Of HNSW: half as many as in its lowest layer."""
SECONDS_LIMIT = 600


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
        frames = counts.stored(connection, target.model_id).frames
        vectors_ND = np.empty((frames, target.dim), np.float16)
        start = 0
        table = tables.frames(target.model_id)
        for _, _, vectors_RD in read_vectors(connection, table, target.dim):
            vectors_ND[start : start + len(vectors_RD)] = vectors_RD
            start += len(vectors_RD)
        truth = find_truth(connection, target, queries, [Scope()], 11)[0].distances_QK
    lists = int(4 * frames**0.5)
    cases = []
    for name, index in _fitting(faiss, frames, target.dim, lists):
        began = time.monotonic()
        _fill(index, vectors_ND, TRAINED_ON * lists)
        spent = time.monotonic() - began
        title = f"faiss {faiss.__version__} {name} of all frames, in process"
        cases += _compare(
            database, prefix, target, queries, truth, vectors_ND, index, title, (seconds, spent)
        )
    return cases


def _fitting(faiss: Any, frames: int, dim: int, lists: int) -> Iterator[tuple[str, Any]]:
    """Yield the empty indexes that this machine can hold and build; print why others are not."""
    # A vector of C++ that grows holds its elements up to three times.
    needed = 3 * frames * (4 * dim + 4 * 2 * LINKS)
    if _fits("HNSW", needed, 0.0):
        graph = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 200
        graph.hnsw.efSearch = index_kind("hnsw").default_ef_search
        yield "HNSW", graph
        del graph  # its memory is needed by the next
    sample = TRAINED_ON * lists
    needed = 4 * dim * (2 * sample + lists) + 3 * frames * (CODE_BYTES + 8)
    # At least: training compares its sample with all lists in each round, filling each frame once.
    products = 2.0 * dim * lists * (TRAINING_ROUNDS * sample + frames)
    if _fits("IVF-PQ", needed, products / _products_a_second(faiss, dim)):
        codes = faiss.index_factory(dim, f"IVF{lists},PQ{CODE_BYTES}", faiss.METRIC_INNER_PRODUCT)
        faiss.ParameterSpace().set_index_parameter(codes, "nprobe", PROBES)
        yield "IVF-PQ", codes


def _fits(name: str, needed: int, seconds: float) -> bool:
    """Return whether an index can be held and built; print what it needs if it cannot."""
    free = min(psutil.virtual_memory().available, this_machine().memory_bytes)
    if needed <= free and seconds <= SECONDS_LIMIT:
        return True
    print(
        f"faiss {name} is left out: it needs some {needed / 2**30:.1f} GiB of memory "
        f"({free / 2**30:.1f} are free) and at least {seconds:.0f} s to compare frames with lists "
        f"(at most {SECONDS_LIMIT})",
        file=sys.stderr,
    )
    return False


def _products_a_second(faiss: Any, dim: int) -> float:
    """Return how many operations faiss does a second as it compares vectors with lists."""
    made_ND = np.random.default_rng(0).standard_normal((4096, dim), dtype=np.float32)
    flat = faiss.IndexFlatIP(dim)
    flat.add(made_ND)
    flat.search(made_ND, 1)
    began = time.perf_counter()
    flat.search(made_ND, 1)
    return float(2.0 * dim * len(made_ND) ** 2 / (time.perf_counter() - began))


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
