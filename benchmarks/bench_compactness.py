"""From how many frames a moment on do moments pay? What ``SIGLIP_INDEX_KIND=auto`` goes by.

One made collection, its moments cut at rising thresholds, so that there are fewer and fewer frames
in each. Each time: size, build time, and queries a second at the effort that reaches recall, beside
HNSW over all frames of the same vectors.

    python benchmarks/bench_compactness.py [--quick] [--json] [--frames 50000] [--thresholds 0.9 …]
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from bench_index import Built, MadeFootage, build_beside, fresh_database, log
from store_report import Case, print_report
from timing import alternate, searcher
from vectors import Footage

from siglip_pipeline.store import building, counts, recall
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.recall.queries import Query, prepare_queries

THRESHOLDS = [0.9, 0.92, 0.925, 0.93, 0.935, 0.94]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 frames")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--neighbours", type=float, default=0.93)
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    options = parser.parse_args(arguments)
    frames = 20_000 if options.quick else options.frames
    made = MadeFootage(Footage(frames, neighbours=options.neighbours))
    print_report("compactness", run(made, options.thresholds), as_json=options.json)


def run(made: MadeFootage, thresholds: Sequence[float]) -> list[Case]:
    cases: list[Case] = []
    with fresh_database(thresholds[0], {}) as (database, settings):
        models = ModelStore(database)
        model_id = models.register(made.spec, moment_threshold=thresholds[0])
        made.load(database, model_id, settings)
        queries = prepare_queries(
            database, models.get(model_id), embed_texts=made.embed_texts, count=100
        )
        frames, checked_frames = built(database, model_id, "hnsw", queries)
        for threshold in thresholds:
            building.recut(database, model_id, threshold, log)
            moments, checked = built(database, model_id, "moments", queries)
            with database.connection() as connection:
                stored = counts.stored(connection, model_id)
            compactness = stored.frames / stored.moments
            own, theirs = alternate(
                database, [searcher(moments.target), searcher(frames.target)], queries
            )
            note = (
                f"threshold {threshold}; recall@10 {plain_recall(checked)} at {checked.effort}, "
                f"of hnsw {plain_recall(checked_frames)} at {checked_frames.effort}"
            )
            for what, unit, value, reference, better in (
                ("qps", "queries_per_second", own, theirs, "higher"),
                ("build", "seconds", moments.seconds, frames.seconds, "lower"),
                (
                    "bytes",
                    "bytes_per_frame",
                    checked.bytes_per_frame,
                    checked_frames.bytes_per_frame,
                    "lower",
                ),
            ):
                cases.append(
                    Case(
                        name=f"{compactness:.1f}_frames_a_moment_{what}",
                        value=value,
                        unit=unit,
                        reference="hnsw of all frames",
                        reference_value=reference,
                        better="higher" if better == "higher" else "lower",
                        note=note,
                    )
                )
            log(f"{compactness:.1f} frames a moment: {own / theirs:.2f} of its speed; {note}")
    return cases


def built(
    database: Database, model_id: int, kind: str, queries: Sequence[Query]
) -> tuple[Built, recall.RecallReport]:
    """A generation of a kind, at the effort that the recall check chooses."""
    made = build_beside(database, model_id, kind)
    checked = recall.check_recall(database, made.target, queries, progress=log)
    parameters = made.target.parameters | {"effort": checked.effort}
    return replace(made, target=replace(made.target, parameters=parameters)), checked


def plain_recall(report: recall.RecallReport) -> str:
    """Without a filter, of pictures and texts."""
    return "/".join(f"{case.recall_at_10:.3f}" for case in report.cases if case.share == 1)


if __name__ == "__main__":
    main()
