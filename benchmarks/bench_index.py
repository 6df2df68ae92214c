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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from library_index import against_library
from real_footage import RealFootage
from store_report import Case, print_report
from timing import alternate, searcher
from vectors import FRAMES_PER_VIDEO, Footage

from siglip_pipeline.records import FloatArray, ModelSpec
from siglip_pipeline.settings import Settings
from siglip_pipeline.store import counts, generations
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.index import build as building
from siglip_pipeline.store.index import recall
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.recall.queries import Query, prepare_queries
from siglip_pipeline.store.index.similarity_index import IndexReport, build_index
from siglip_pipeline.store.kinds import Generation
from siglip_pipeline.store.models import ModelStore
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
    parser.add_argument("--per-video", type=int, default=FRAMES_PER_VIDEO, help="frames of each")
    parser.add_argument(
        "--shared", type=int, default=0, help="frames at both ends that are the same in all videos"
    )
    parser.add_argument("--copies", type=int, default=1, help="how often each video is uploaded")
    parser.add_argument("--threshold", type=float, default=None, help="moment_threshold")
    parser.add_argument("--others", nargs="*", default=["hnsw"], help="kinds to compare with")
    parser.add_argument("--no-library", action="store_true", help="leave faiss and hnswlib out")
    parser.add_argument(
        "--real", type=Path, help="instead: the demo's model over the videos of this folder"
    )
    parser.add_argument("--minutes", type=int, default=60, help="of rendered film beside --real")
    parser.add_argument("--sampling", default="fps:1", help="of --real")
    options = parser.parse_args(arguments)
    sizes = [50_000] if options.quick else options.frames
    if options.real is not None:
        real = RealFootage(options.real, minutes=options.minutes, sampling=options.sampling)
        cases = run(real, options.threshold, options.others, not options.no_library)
        print_report("index", cases, as_json=options.json)
        return
    cases = []
    for frames in sizes:
        for neighbours in options.neighbours:
            log(f"{frames:,} frames, neighbours at {neighbours}")
            footage = Footage(
                frames,
                dim=options.dim,
                neighbours=neighbours,
                per_video=options.per_video,
                shared=options.shared,
                copies=options.copies,
            )
            made = MadeFootage(footage)
            cases += run(made, options.threshold, options.others, not options.no_library)
    print_report("index", cases, as_json=options.json)


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextmanager
def fresh_database(
    threshold: float | None, overrides: dict[str, str]
) -> Iterator[tuple[Database, Settings]]:
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        Path(folder).chmod(0o755)
        chosen = {} if threshold is None else {"moment_threshold": threshold}
        settings = Settings.load(
            home=folder,
            database_url=None,
            index_min_recall=0.0,
            index_kind="moments",
            **chosen,
            **overrides,
        )
        with open_database(DatabaseOptions.from_settings(settings)) as database:
            yield database, settings


class Collection(Protocol):
    """What is searched."""

    name: str
    frames: int
    spec: ModelSpec
    overrides: dict[str, str]
    """Settings that it needs."""

    def load(self, database: Database, model_id: int, settings: Settings) -> None: ...

    def embed_texts(self, labels: Sequence[str]) -> FloatArray: ...


class MadeFootage:
    """Made vectors; texts are made too, whatever they say."""

    def __init__(self, footage: Footage) -> None:
        self._footage = footage
        self.name = f"{footage.frames // 1000}k_{footage.neighbours}"
        self.frames = footage.frames
        self.compact = footage.neighbours >= 0.97
        self.spec = ModelSpec(
            name="made", revision=None, key="made", dim=footage.dim, logit_scale=0, logit_bias=0
        )
        self.overrides: dict[str, str] = {}

    def load(self, database: Database, model_id: int, settings: Settings) -> None:
        vectors = VectorStore(database)
        for batch in self._footage:
            vectors.load(model_id, batch, source_sha256="0" * 64, sampling="fps:1")

    def embed_texts(self, labels: Sequence[str]) -> FloatArray:
        return self._footage.text_queries(len(labels))


def run(
    collection: Collection, threshold: float | None, others: Sequence[str], library: bool
) -> list[Case]:
    prefix = collection.name
    with fresh_database(threshold, collection.overrides) as (database, settings):
        models = ModelStore(database)
        model_id = models.register(collection.spec, moment_threshold=settings.moment_threshold)
        began = time.monotonic()
        collection.load(database, model_id, settings)
        log(f"{collection.frames:,} frames made and loaded in {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        report = build_index(
            database,
            model_id,
            options=IndexOptions.from_settings(settings),
            embed_texts=collection.embed_texts,
            progress=log,
        )
        published = time.monotonic() - began
        assert report.recall is not None
        cases = moments_cases(database, model_id, collection, report, published)
        queries = prepare_queries(
            database,
            models.get(model_id),
            embed_texts=collection.embed_texts,
        )
        with database.connection() as connection:
            live = generations.live(connection, model_id)
        assert live is not None
        moments = Built(target=live, seconds=report.build_seconds)
        for kind in others:
            other = build_beside(database, model_id, kind)
            checked = recall.check_recall(
                database, other.target, queries, min_recall=RECALL_GOAL, progress=log
            )
            # As searches would: with the ef_search that the check chose.
            other = replace(other, target=replace(other.target, parameters=checked.parameters))
            cases += recall_cases(prefix, kind, checked)
            cases += compare(database, prefix, moments, other, report.recall, checked, queries)
        cases += against_exact(database, prefix, moments.target, queries)
        if library:
            cases += against_library(database, prefix, moments.target, moments.seconds, queries)
    return cases


def moments_cases(
    database: Database,
    model_id: int,
    collection: Collection,
    report: IndexReport,
    published_seconds: float,
) -> list[Case]:
    prefix = collection.name
    with database.connection() as connection:
        stored = counts.stored(connection, model_id)
    assert report.recall is not None
    return [
        *recall_cases(prefix, "moments", report.recall, goal=RECALL_GOAL),
        Case(
            name=f"{prefix}_moments_bytes_per_frame",
            value=report.recall.bytes_per_frame,
            unit="bytes",
            note=f"{stored.frames / stored.moments:.1f} frames a moment",
            goal=BYTES_GOAL if getattr(collection, "compact", False) else None,
            better="lower",
        ),
        Case(
            name=f"{prefix}_moments_build_and_publish",
            value=published_seconds,
            unit="seconds",
            note=f"building {report.build_seconds:.0f}, check {report.recall.seconds:.0f}",
            goal=BUILD_SECONDS_GOAL if collection.frames >= 1_000_000 else None,
            better="lower",
        ),
    ]


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
            note=f"{case.searched} {case.ef_search}, recall@100 {case.recall_at_100:.3f}, rows "
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


if __name__ == "__main__":
    main()
