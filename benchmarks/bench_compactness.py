"""From how many frames a moment on do moments pay? What ``SIGLIP_INDEX_KIND=auto`` goes by.

Made collections of ever shorter scenes, down to one frame, so that fewer and fewer frames make up a
moment. On each: size, build time, and queries a second of moments beside HNSW over all frames of
the same vectors, each at the ef_search that reaches recall.

    python benchmarks/bench_compactness.py [--quick] [--json] [--frames 30000] [--scenes 40 …]
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from bench_index import Built, MadeFootage, build_beside, fresh_database, log
from store_report import Case, print_report
from timing import alternate, searcher
from vectors import Footage

from siglip_pipeline.store import counts
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index import recall
from siglip_pipeline.store.index.recall.queries import Query, prepare_queries
from siglip_pipeline.store.models import ModelStore

SCENES = [40, 8, 4, 3, 2, 1]
QUERIES = 100


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10,000 frames")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", type=int, default=30_000)
    parser.add_argument("--scenes", type=int, nargs="+", default=SCENES, help="mean lengths")
    options = parser.parse_args(arguments)
    frames = 10_000 if options.quick else options.frames
    cases: list[Case] = []
    for scene_frames in options.scenes:
        cases += run(MadeFootage(Footage(frames, scene_frames=scene_frames)))
    print_report("compactness", cases, as_json=options.json)


def run(made: MadeFootage) -> list[Case]:
    with fresh_database(None, {}) as (database, settings):
        models = ModelStore(database)
        model_id = models.register(made.spec, moment_threshold=settings.moment_threshold)
        made.load(database, model_id, settings)
        queries = prepare_queries(
            database, models.get(model_id), embed_texts=made.embed_texts, count=QUERIES
        )
        with database.connection() as connection:
            stored = counts.stored(connection, model_id)
        moments, own = built(database, model_id, "moments", queries)
        frames, theirs = built(database, model_id, "hnsw", queries)
        own_qps, their_qps = alternate(
            database, [searcher(moments.target), searcher(frames.target)], queries
        )
    compactness = stored.frames / stored.moments
    note = (
        f"recall@10 {plain_recall(own)} at ef {own.ef_search}, of hnsw {plain_recall(theirs)} at "
        f"{theirs.ef_search}"
    )
    log(f"{compactness:.1f} frames a moment: {own_qps / their_qps:.2f} of its speed; {note}")
    name, reference = f"{compactness:.1f}_frames_a_moment", "hnsw of all frames"
    return [
        Case(
            name=f"{name}_qps",
            value=own_qps,
            unit="queries_per_second",
            reference=reference,
            reference_value=their_qps,
            better="higher",
            note=note,
        ),
        Case(
            name=f"{name}_build",
            value=moments.seconds,
            unit="seconds",
            reference=reference,
            reference_value=frames.seconds,
            better="lower",
        ),
        Case(
            name=f"{name}_bytes",
            value=own.bytes_per_frame,
            unit="bytes_per_frame",
            reference=reference,
            reference_value=theirs.bytes_per_frame,
            better="lower",
        ),
    ]


def built(
    database: Database, model_id: int, kind: str, queries: Sequence[Query]
) -> tuple[Built, recall.RecallReport]:
    """A generation of a kind, at the ef_search that the recall check chooses."""
    made = build_beside(database, model_id, kind)
    checked = recall.check_recall(database, made.target, queries, min_recall=0.95, progress=log)
    parameters = checked.parameters
    return replace(made, target=replace(made.target, parameters=parameters)), checked


def plain_recall(report: recall.RecallReport) -> str:
    """Without a filter, of pictures and texts."""
    return "/".join(f"{case.recall_at_10:.3f}" for case in report.cases if case.share == 1)


if __name__ == "__main__":
    main()
