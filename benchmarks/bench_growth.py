"""What stays quick as a collection grows? Searches before, during and after its changes.

On made footage (``vectors.py``), one client: load, build and publish; whole searches without and
with filters, beside exact SQL; 10,000 new short videos; a tenth of the videos embedded again; a
tenth deleted, then VACUUM; and a rebuild while the searches go on.

    python benchmarks/bench_growth.py [--quick] [--json] [--frames 1000000]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench_index import BUILD_SECONDS_GOAL, RECALL_GOAL, MadeFootage, log, recall_cases
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql
from store_report import Case, print_report
from vectors import Footage

from siglip_pipeline.hits import Hit, SearchFilter, SearchRequest
from siglip_pipeline.records import EmbeddingBatch, FloatArray
from siglip_pipeline.settings import Settings
from siglip_pipeline.store import generations, tables
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.similarity_index import IndexReport, build_index
from siglip_pipeline.store.kinds import Scope
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.search.scope import resolve_scope
from siglip_pipeline.store.search.search_run import find_hits
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore

MODEL = 1
QUERIES = 100
"""Of each modality; every figure is of at least so many searches."""
SHARES = (0.01, 0.05, 0.3)
NEW_VIDEO_FRAMES = 10
CHANGED_SHARE = 0.1
ALONE_SECONDS = 10
BUILDING_GOAL = 1.5
"""A build never slows searches by more than half."""
NEW_VIDEOS_GOAL = 2.0
"""New videos before a rebuild do not double the time of a search."""

Seconds = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50,000 frames, 500 new videos")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--new-videos", type=int, default=10_000)
    parser.add_argument("--build", help=argparse.SUPPRESS)  # the home, in the child process
    options = parser.parse_args()
    if options.quick:
        options.frames, options.new_videos = 50_000, 500
    footage = Footage(options.frames)
    if options.build:
        build(options.build, footage)
        return
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as home:
        Path(home).chmod(0o755)
        with open_database(DatabaseOptions.from_settings(settings_of(home))) as database:
            cases = said(first_build(database, home, footage))
            searches = Searches(database, footage)
            cases += said(searches_by_filter(searches))
            cases += said(hits_found(searches))
            cases += said(searches_about_something_else(searches) + filters_resolved(database))
            cases += said(new_videos(searches, footage, options.new_videos))
            cases += said(embedded_again(searches, footage))
            cases += said(deleted(searches, footage))
            cases += said(rebuilt(searches, home, footage))
    print_report("growth", cases, as_json=options.json)


def said(cases: list[Case]) -> list[Case]:
    """Log figures as they come: a large collection takes half an hour."""
    for case in cases:
        log(f"{case.name} {case.value:.4g} {case.unit}, {case.ratio or 1:.2f} ({case.note})")
    return cases


def settings_of(home: str) -> Settings:
    return Settings.load(home=home, database_url=None, index_kind="moments", index_min_recall=0.0)


class Searches:
    """Whole searches for ten hits with one connection, one after the other."""

    def __init__(self, database: Database, footage: Footage) -> None:
        self.database = database
        self.model = ModelStore(database).get(MODEL)
        self.queries = {
            "pictures": footage.picture_queries(QUERIES),
            "texts": footage.text_queries(QUERIES),
        }

    def once(self, query_D: FloatArray, scope: Scope, *, exact: bool = False) -> list[Hit]:
        request = SearchRequest(query_QD=query_D[None], k=10, exact=exact)
        hits = None
        while hits is None:  # a generation that was replaced meanwhile
            with self.database.connection() as connection:
                target = generations.live(connection, MODEL)
                assert target is not None
                hits = find_hits(connection, self.model, target, scope, request)
        assert len(hits) == min(10, scope.moments if not scope.everything else 10)
        return hits

    def found(self, query_D: FloatArray, scope: Scope) -> tuple[float, float]:
        """Return the share of the ten best hits that a search finds, and its seconds."""
        began = time.perf_counter()
        hits = self.once(query_D, scope)
        seconds = time.perf_counter() - began
        best = self.once(query_D, scope, exact=True)
        return sum(hit.score >= best[-1].score - 1e-6 for hit in hits) / len(best), seconds

    def timed(
        self, queries_QD: FloatArray, scope: Scope | None = None, *, exact: bool = False
    ) -> Seconds:
        """Return the seconds of each search; the first query is asked once more, untimed."""
        self.once(queries_QD[0], scope or Scope(), exact=exact)
        return np.array([self._seconds(query_D, scope, exact) for query_D in queries_QD])

    def until(self, ended: Callable[[], bool]) -> Seconds:
        """Return the seconds of searches without a filter, pictures and texts in turns."""
        queries_QD = np.stack(list(self.queries.values()), axis=1).reshape(2 * QUERIES, -1)
        seconds: list[float] = []
        while not ended():
            seconds.append(self._seconds(queries_QD[len(seconds) % len(queries_QD)], None, False))
        return np.array(seconds)

    def for_a_while(self) -> Seconds:
        """Return :meth:`until` for ten seconds."""
        began = time.monotonic()
        return self.until(lambda: time.monotonic() - began > ALONE_SECONDS)

    def _seconds(self, query_D: FloatArray, scope: Scope | None, exact: bool) -> float:
        began = time.perf_counter()
        self.once(query_D, scope or Scope(), exact=exact)
        return time.perf_counter() - began


def first_build(database: Database, home: str, footage: Footage) -> list[Case]:
    made = MadeFootage(footage)
    began = time.monotonic()
    made.load(database, ModelStore(database).register(made.spec), settings_of(home))
    loaded = time.monotonic() - began
    log(f"{footage.frames:,} frames made and loaded in {loaded:.0f} s")
    began = time.monotonic()
    report = build_published(database, home, footage)
    published = time.monotonic() - began
    assert report.recall is not None
    checked = report.recall.seconds
    return [
        *recall_cases("", "moments", report.recall, goal=RECALL_GOAL),
        Case(name="made_and_loaded", value=loaded, unit="seconds", better="lower"),
        Case(
            name="build_and_publish",
            value=published,
            unit="seconds",
            goal=BUILD_SECONDS_GOAL,
            better="lower",
        ),
        Case(
            name="check",
            value=checked,
            unit="seconds",
            reference="building",
            reference_value=report.build_seconds,
            goal=0.2,
            better="lower",
        ),
        Case(
            name="bytes_per_frame",
            value=report.recall.bytes_per_frame,
            unit="bytes",
            goal=150,
            better="lower",
            note=f"{report.recall.rows:,} moments",
        ),
    ]


def build_published(database: Database, home: str, footage: Footage) -> IndexReport:
    report = build_index(
        database,
        MODEL,
        options=IndexOptions.from_settings(settings_of(home)),
        embed_texts=MadeFootage(footage).embed_texts,
        progress=log,
        force=True,
    )
    assert report.published, report.reason
    return report


def build(home: str, footage: Footage) -> None:
    """Build and publish a generation, with nothing known of the exact search."""
    with open_database(DatabaseOptions.from_settings(settings_of(home))) as database:
        with database.connection() as connection:
            connection.execute("DELETE FROM recall_truths")
        build_published(database, home, footage)


def searches_by_filter(searches: Searches) -> list[Case]:
    cases = []
    for modality, queries_QD in searches.queries.items():
        seconds = searches.timed(queries_QD)
        cases += [
            percentile(f"{modality}_p50", seconds, 50, goal=8),
            percentile(f"{modality}_p99", seconds, 99, goal=25),
            Case(
                name=f"{modality}_queries_per_second",
                value=len(seconds) / float(seconds.sum()),
                unit="queries_per_second",
                reference="exact SQL",
                reference_value=1 / searches.timed(queries_QD[:5], exact=True).mean(),
                better="higher",
                note="one connection",
            ),
        ]
        for share in SHARES:
            scope = scope_of(searches.database, share)
            seconds = searches.timed(queries_QD, scope)
            name = f"{modality}_in_{share:g}_of_videos"
            cases += [
                percentile(f"{name}_p50", seconds, 50, goal=25, note=f"{scope.moments:,} moments"),
                percentile(f"{name}_p99", seconds, 99, goal=80),
            ]
    return cases


def hits_found(searches: Searches) -> list[Case]:
    """Return how many of the ten best hits a search finds; the check counts frames."""
    return [
        Case(
            name=f"{modality}_hits_recall_at_10",
            value=float(np.mean([searches.found(query_D, Scope())[0] for query_D in queries_QD])),
            unit="recall",
            better="higher",
            note=f"{len(queries_QD)} searches",
        )
        for modality, queries_QD in ((name, some[:20]) for name, some in searches.queries.items())
    ]


def searches_about_something_else(searches: Searches) -> list[Case]:
    """Search 30% of the videos, none of them among the 2% nearest to the query.

    Their scores hardly differ, so the best frames are often not in the moments with the best means.
    """
    cases = []
    for modality, queries_QD in searches.queries.items():
        seconds, found = [], []
        for query_D in queries_QD[:10]:
            scope = scope_away_from(searches.database, query_D)
            recall, taken = searches.found(query_D, scope)
            seconds.append(taken)
            found.append(recall)
        name = f"{modality}_away_from_the_query"
        cases += [
            percentile(f"{name}_p50", np.array(seconds), 50, note=f"{scope.moments:,} moments"),
            Case(
                name=f"{name}_recall_at_10",
                value=float(np.mean(found)),
                unit="recall",
                goal=0.98,
                better="higher",
            ),
        ]
    return cases


def scope_away_from(database: Database, query_D: FloatArray) -> Scope:
    with database.connection() as connection:
        target = generations.live(connection, MODEL)
        assert target is not None
        rows = connection.execute(
            sql.SQL(
                "SELECT video_id, sum(last_frame - first_frame + 1)::bigint, count(*) FROM {} "
                "GROUP BY 1 ORDER BY min(embedding <#> %s) DESC"
            ).format(tables.index(target.model_id, target.generation)),
            [HalfVector(query_D)],
        ).fetchall()
    return random_scope(rows[: round(0.98 * len(rows))], round(0.3 * len(rows)))


def filters_resolved(database: Database) -> list[Case]:
    """Return the time to find the videos of a filter, which comes before such a search."""
    cases = []
    for glob in ("**", "*1*.mp4"):
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            with database.snapshot() as connection:
                scope = resolve_scope(connection, MODEL, SearchFilter(videos=(glob,)))
            seconds.append(time.perf_counter() - began)
        assert scope.video_ids
        note = f"{len(scope.video_ids):,} videos"
        cases.append(percentile(f"videos_of_{glob}_p50", np.array(seconds), 50, note=note))
    return cases


def scope_of(database: Database, share: float) -> Scope:
    """Return a random share of all videos."""
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT video_id, frames, moments FROM ingests WHERE model_id = %s ORDER BY 1", [MODEL]
        ).fetchall()
    return random_scope(rows, max(1, round(share * len(rows))))


def random_scope(rows: Sequence[tuple[int, int, int]], count: int) -> Scope:
    """Return so many of the videos, of which ids, frames and moments are given."""
    chosen = np.random.default_rng(1).permutation(len(rows))[:count]
    kept = [rows[i] for i in chosen]
    return Scope(
        video_ids=[row[0] for row in kept],
        frames=sum(row[1] for row in kept),
        moments=sum(row[2] for row in kept),
    )


def new_videos(searches: Searches, footage: Footage, count: int) -> list[Case]:
    """Load short videos into the live index, and ask for some of them at once."""
    log(f"{count:,} new videos of {NEW_VIDEO_FRAMES} frames")
    before = searches.for_a_while()
    store = VectorStore(searches.database)
    grown = replace(footage, frames=footage.frames + count * NEW_VIDEO_FRAMES)
    loads, found, first = [], [], []
    for batch in short_videos(grown.since(footage.videos)):
        began = time.perf_counter()
        store.load(MODEL, batch, source_sha256="0" * 64, sampling="fps:1")
        loads.append(time.perf_counter() - began)
        if len(loads) % (count // QUERIES) == 0:
            hits = searches.once(batch.embeddings_ND[0], Scope())
            found.append(time.perf_counter() - began)
            first.append(hits[0].video == batch.video)
    assert len(loads) == count
    after = searches.for_a_while()
    return [
        percentile("new_video_loaded_p50", np.array(loads), 50),
        percentile("new_video_searchable_p99", np.array(found), 99, goal=1000),
        Case(
            name="new_video_is_first",
            value=float(np.mean(first)),
            unit="share",
            goal=RECALL_GOAL,
            better="higher",
            note=f"of {len(first)} new videos, asked with their first frame at once",
        ),
        ratio(f"p50_after_{count}_new_videos", after, before, 50, goal=NEW_VIDEOS_GOAL),
        ratio(f"p99_after_{count}_new_videos", after, before, 99),
    ]


def short_videos(videos: Iterable[EmbeddingBatch]) -> Iterator[EmbeddingBatch]:
    for batch in videos:
        for start in range(0, len(batch), NEW_VIDEO_FRAMES):
            part = slice(start, start + NEW_VIDEO_FRAMES)
            yield EmbeddingBatch(
                video=f"new/{batch.video}-{start}",
                frame_index_N=batch.frame_index_N[part],
                time_seconds_N=batch.time_seconds_N[part],
                embeddings_ND=batch.embeddings_ND[part],
            )


def embedded_again(searches: Searches, footage: Footage) -> list[Case]:
    """Replace the vectors of every tenth video."""
    log(f"{CHANGED_SHARE:.0%} of the videos are embedded again")
    before = searches.for_a_while()
    store = VectorStore(searches.database)
    seconds = []
    for number, batch in enumerate(footage):
        if number % round(1 / CHANGED_SHARE):
            continue
        began = time.perf_counter()
        done = store.load(MODEL, batch, source_sha256="0" * 64, sampling="fps:1", force=True)
        seconds.append(time.perf_counter() - began)
        assert done.outcome == "written"
    return [
        percentile("video_replaced_p50", np.array(seconds), 50, note=f"{len(seconds):,} of 500"),
        ratio("p50_after_a_tenth_is_replaced", searches.for_a_while(), before, 50),
    ]


def deleted(searches: Searches, footage: Footage) -> list[Case]:
    """Delete every tenth video, then VACUUM the table of frames."""
    log(f"{CHANGED_SHARE:.0%} of the videos are deleted")
    before = searches.for_a_while()
    videos = VideoStore(searches.database)
    seconds = []
    for number in range(1, footage.videos, round(1 / CHANGED_SHARE)):
        began = time.perf_counter()
        assert videos.delete(f"made/{number:06d}.mp4")
        seconds.append(time.perf_counter() - began)
    after = searches.for_a_while()
    began = time.perf_counter()
    with searches.database.autocommit() as connection:
        connection.execute(sql.SQL("VACUUM {}").format(tables.frames(MODEL)))
    vacuumed = time.perf_counter() - began
    return [
        percentile("video_deleted_p50", np.array(seconds), 50, note=f"{len(seconds):,} videos"),
        ratio("p50_after_a_tenth_is_deleted", after, before, 50),
        Case(name="vacuum_of_frames", value=vacuumed, unit="seconds", better="lower"),
        ratio("p50_after_vacuum", searches.for_a_while(), before, 50),
    ]


def rebuilt(searches: Searches, home: str, footage: Footage) -> list[Case]:
    """Search while another process builds, checks and publishes a generation."""
    log("rebuild while searches go on")
    before = searches.for_a_while()
    frames = str(footage.frames)
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, __file__, "--build", home, "--frames", frames])
    during = searches.until(lambda: child.poll() is not None)
    taken = time.monotonic() - began
    assert child.returncode == 0, "the build failed"
    alone = np.concatenate([before, searches.for_a_while()])
    log(f"{len(during):,} searches during the {taken:.0f} s of the build, {len(alone):,} without")
    return [
        ratio(f"p{percent}_while_building", during, alone, percent, goal=BUILDING_GOAL)
        for percent in (50, 95, 99)
    ]


def percentile(
    name: str, seconds: Seconds, percent: int, *, goal: float | None = None, note: str | None = None
) -> Case:
    value = 1000 * float(np.percentile(seconds, percent))
    return Case(name=name, value=value, unit="ms", goal=goal, better="lower", note=note)


def ratio(
    name: str, seconds: Seconds, before: Seconds, percent: int, *, goal: float | None = None
) -> Case:
    return Case(
        name=name,
        value=1000 * float(np.percentile(seconds, percent)),
        unit="ms",
        reference="the same searches before",
        reference_value=1000 * float(np.percentile(before, percent)),
        goal=goal,
        better="lower",
        note=f"{len(seconds):,} searches, {len(before):,} before",
    )


if __name__ == "__main__":
    main()
