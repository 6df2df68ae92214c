"""Are moments the right default? Recall, size, build time and speed of the kinds of index.

On made footage (``vectors.py``) of 100k, 500k and 1M frames, neighbours at cosine 0.97 and, more
varied, 0.93. In the same run and on the same vectors: HNSW over all frames, exact SQL, and faiss
or hnswlib in this process if one of them is installed.

    python benchmarks/bench_index.py [--quick] [--json] [--frames 100000 …] [--neighbours 0.97 …]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from store_report import Case, print_report
from vectors import Footage

from siglip_pipeline.records import FloatArray, ModelSpec
from siglip_pipeline.settings import Settings
from siglip_pipeline.store import building, recall
from siglip_pipeline.store.database import Database, open_database
from siglip_pipeline.store.index import build_index
from siglip_pipeline.store.index_kinds import Generation, Scope, index_kind
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.near_frames import NearFrames
from siglip_pipeline.store.recall.queries import Query, prepare_queries
from siglip_pipeline.store.recall.truth import find_truth, found_share
from siglip_pipeline.store.vectors import VectorStore

RECALL_GOAL = 0.98
BYTES_GOAL = 350.0
BUILD_SECONDS_GOAL = 300.0
TIMED_QUERIES = 100


@dataclass(frozen=True, slots=True)
class Built:
    """A generation that was built beside the live one, and what that took."""

    target: Generation
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50,000 frames, within 5 minutes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", type=int, nargs="+", default=[100_000, 500_000, 1_000_000])
    parser.add_argument("--neighbours", type=float, nargs="+", default=[0.97, 0.93])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--threshold", type=float, default=None, help="moment_threshold")
    parser.add_argument("--others", nargs="*", default=["hnsw"], help="kinds to compare with")
    parser.add_argument("--no-library", action="store_true", help="leave faiss and hnswlib out")
    options = parser.parse_args(arguments)
    sizes = [50_000] if options.quick else options.frames
    cases: list[Case] = []
    for frames in sizes:
        for neighbours in options.neighbours:
            footage = Footage(frames, dim=options.dim, neighbours=neighbours)
            log(f"{frames:,} frames, neighbours at {neighbours}")
            cases += run(footage, options.threshold, options.others, not options.no_library)
    print_report("index", cases, as_json=options.json)


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextmanager
def fresh_database(threshold: float | None) -> Iterator[tuple[Database, Settings]]:
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        Path(folder).chmod(0o755)
        overrides = {} if threshold is None else {"moment_threshold": threshold}
        settings = Settings.load(
            home=folder, database_url=None, index_min_recall=0.0, index_kind="moments", **overrides
        )
        with open_database(settings) as database:
            yield database, settings


def run(
    footage: Footage, threshold: float | None, others: Sequence[str], library: bool
) -> list[Case]:
    prefix = f"{footage.frames // 1000}k_{footage.neighbours}"
    with fresh_database(threshold) as (database, settings):
        models = ModelStore(database)
        spec = ModelSpec(
            name="made", revision=None, key="made", dim=footage.dim, logit_scale=0, logit_bias=0
        )
        model_id = models.register(spec, moment_threshold=settings.moment_threshold)
        load(database, model_id, footage)
        began = time.monotonic()
        report = build_index(
            database,
            model_id,
            settings=settings,
            embed_texts=lambda labels: footage.text_queries(len(labels)),
            progress=log,
        )
        published = time.monotonic() - began
        assert report.recall is not None
        cases = [
            *recall_cases(prefix, "moments", report.recall, goal=RECALL_GOAL),
            Case(
                name=f"{prefix}_moments_bytes_per_frame",
                value=report.recall.bytes_per_frame,
                unit="bytes",
                goal=BYTES_GOAL if footage.neighbours >= 0.97 else None,
                better="lower",
            ),
            Case(
                name=f"{prefix}_moments_build_and_publish",
                value=published,
                unit="seconds",
                goal=BUILD_SECONDS_GOAL if footage.frames >= 1_000_000 else None,
                better="lower",
            ),
        ]
        queries = prepare_queries(
            database,
            models.get(model_id),
            embed_texts=lambda labels: footage.text_queries(len(labels)),
        )
        with database.connection() as connection:
            from siglip_pipeline.store import generations

            live = generations.live(connection, model_id)
        assert live is not None
        moments = Built(target=live, seconds=report.build_seconds)
        for kind in others:
            other = build_beside(database, model_id, kind)
            checked = recall.check_recall(
                database, other.target, queries, progress=log, sweep=False
            )
            cases += recall_cases(prefix, kind, checked)
            cases += compare(database, prefix, moments, other, report.recall, checked, queries)
        cases += against_exact(database, prefix, moments.target, queries)
        if library:
            cases += against_library(database, prefix, moments, queries)
    return cases


def load(database: Database, model_id: int, footage: Footage) -> None:
    began = time.monotonic()
    vectors = VectorStore(database)
    for batch in footage:
        vectors.load(model_id, batch, source_sha256="0" * 64, sampling="fps:1")
    log(f"made and loaded in {time.monotonic() - began:.0f} s")


def build_beside(database: Database, model_id: int, kind: str) -> Built:
    began = time.monotonic()
    target = building.begin(database, model_id, kind)
    rows = building.fill(database, target)
    building.create_index(database, target, rows, progress=log)
    return Built(target=target, seconds=time.monotonic() - began)


def recall_cases(
    prefix: str, kind: str, report: recall.RecallReport, *, goal: float | None = None
) -> list[Case]:
    return [
        Case(
            name=f"{prefix}_{kind}_{case.modality}_recall_at_10"
            + ("" if case.share == 1 else f"_filtered_{case.share:g}"),
            value=round(case.recall_at_10, 4),
            unit="recall",
            goal=goal,
            better="higher",
            note=f"{case.searched}, recall@100 {case.recall_at_100:.3f}, rows "
            f"{case.rows_share:.1%}, p50 {1000 * case.p50_seconds:.1f} ms, p99 "
            f"{1000 * case.p99_seconds:.1f} ms, 95% {case.low:.3f}-{case.high:.3f}",
        )
        for case in report.cases
    ]


def compare(
    database: Database,
    prefix: str,
    moments: Built,
    other: Built,
    own: recall.RecallReport,
    theirs: recall.RecallReport,
    queries: Sequence[Query],
) -> list[Case]:
    kind = other.target.kind
    chosen = queries[:TIMED_QUERIES]
    own_qps, other_qps = alternate(
        database, [searcher(moments.target), searcher(other.target)], chosen
    )
    return [
        Case(
            name=f"{prefix}_moments_qps",
            value=own_qps,
            unit="queries_per_second",
            reference=f"{kind} of all frames",
            reference_value=other_qps,
            better="higher",
        ),
        Case(
            name=f"{prefix}_moments_build",
            value=moments.seconds,
            unit="seconds",
            reference=f"{kind} of all frames",
            reference_value=other.seconds,
            better="lower",
        ),
        Case(
            name=f"{prefix}_moments_bytes",
            value=own.bytes_per_frame,
            unit="bytes_per_frame",
            reference=f"{kind} of all frames",
            reference_value=theirs.bytes_per_frame,
            better="lower",
        ),
    ]


def against_exact(
    database: Database, prefix: str, target: Generation, queries: Sequence[Query]
) -> list[Case]:
    own_qps, exact_qps = alternate(
        database, [searcher(target), searcher(target, "exact")], queries[:15]
    )
    return [
        Case(
            name=f"{prefix}_moments_qps_against_exact",
            value=own_qps,
            unit="queries_per_second",
            reference="exact SQL",
            reference_value=exact_qps,
            better="higher",
        )
    ]


Searcher = Callable[[Database], Callable[[FloatArray], object]]


def searcher(target: Generation, kind: str | None = None) -> Searcher:
    def search(database: Database) -> Callable[[FloatArray], object]:
        def once(query_D: FloatArray) -> object:
            with database.connection() as connection:
                chosen = index_kind(kind or target.kind)
                return NearFrames(connection, chosen, target, k=10, scope=Scope())(query_D)

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


def against_library(
    database: Database, prefix: str, moments: Built, queries: Sequence[Query]
) -> list[Case]:
    """HNSW in this process: no network, no SQL, no transactions; all frames in memory."""
    try:
        import faiss  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        log("neither faiss nor a stand-in is installed: left out")
        return []
    from siglip_pipeline.store import tables
    from siglip_pipeline.store.copy import read_vectors

    target = moments.target
    began = time.monotonic()
    index = faiss.IndexHNSWFlat(target.dim, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.hnsw.efSearch = index_kind("hnsw").default_effort
    with database.connection() as connection:
        table = tables.frames(target.model_id)
        for _, _, vectors_RD in read_vectors(connection, table, target.dim):
            index.add(np.ascontiguousarray(vectors_RD))
        truth = find_truth(connection, target, queries, [Scope()], 11)[0]
    seconds = time.monotonic() - began
    held = [query.held_out is not None for query in queries]
    shares: dict[str, list[float]] = {"picture": [], "text": []}
    spent = 0.0
    for query, truth_K, own in zip(queries, truth, held, strict=True):
        start = time.perf_counter()
        scores, _ = index.search(query.embedding_D[None], 11)
        spent += time.perf_counter() - start
        distances = sorted(-scores[0])[1 if own else 0 :][:10]
        shares[query.modality].append(found_share(truth_K, [float(d) for d in distances], 10))
    (own_qps,) = alternate(database, [searcher(target)], queries[:TIMED_QUERIES])
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
            value=moments.seconds,
            unit="seconds",
            reference=name,
            reference_value=seconds,
            better="lower",
        ),
    ]


if __name__ == "__main__":
    main()
