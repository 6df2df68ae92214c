"""How much slower are searches while an index is built, checked and published?

On made footage, one client searches in a loop: first alone, then while another process builds a new
generation from the beginning of its exact search on, then alone again.

    python benchmarks/bench_build_load.py [--quick] [--json] [--frames 300000]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_index import MadeFootage
from numpy.typing import NDArray
from store_report import Case, print_report
from vectors import Footage

from siglip_pipeline.hits import SearchRequest
from siglip_pipeline.settings import Settings
from siglip_pipeline.store import generations
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.kinds import Scope
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.search.search_run import find_hits

ALONE_SECONDS = 10
RATIO_GOAL = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50,000 frames")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", type=int, default=300_000)
    parser.add_argument("--build", help=argparse.SUPPRESS)  # the home, in the child process
    options = parser.parse_args()
    footage = Footage(50_000 if options.quick else options.frames)
    made = MadeFootage(footage)
    if options.build:
        build(options.build, made)
        return
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as home:
        Path(home).chmod(0o755)
        settings = settings_of(home)
        with open_database(DatabaseOptions.from_settings(settings)) as database:
            made.load(database, ModelStore(database).register(made.spec), settings)
            build(home, made)
            cases = measure(database, home, footage)
    print_report("build_load", cases, as_json=options.json)


def settings_of(home: str) -> Settings:
    return Settings.load(home=home, database_url=None, index_kind="moments")


def build(home: str, made: MadeFootage) -> None:
    """Build and publish a generation, with nothing known of the exact search."""
    settings = settings_of(home)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        with database.connection() as connection:
            connection.execute("DELETE FROM recall_truths")
        report = build_index(
            database,
            1,
            options=IndexOptions.from_settings(settings),
            embed_texts=made.embed_texts,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
            force=True,
        )
        assert report.published, report.reason


def measure(database: Database, home: str, footage: Footage) -> list[Case]:
    vectors_QD = np.concatenate([footage.picture_queries(100), footage.text_queries(100)])
    began = time.monotonic()
    before = search(database, vectors_QD, lambda: time.monotonic() - began > ALONE_SECONDS)
    frames = str(footage.frames)
    child = subprocess.Popen([sys.executable, __file__, "--build", home, "--frames", frames])
    during = search(database, vectors_QD, lambda: child.poll() is not None)
    assert child.returncode == 0, "the build failed"
    began = time.monotonic()
    after = search(database, vectors_QD, lambda: time.monotonic() - began > ALONE_SECONDS)
    alone = np.concatenate([before, after])
    return [
        Case(
            name=f"search_p{percent}_while_building",
            value=1000 * float(np.percentile(during, percent)),
            unit="ms",
            reference="the same searches without a build",
            reference_value=1000 * float(np.percentile(alone, percent)),
            goal=RATIO_GOAL,
            better="lower",
            note=f"{len(during)} searches in {during.sum():.0f} s, alone {len(alone)}",
        )
        for percent in (50, 95, 99)
    ]


def search(
    database: Database, vectors_QD: NDArray[np.float32], ended: Callable[[], bool]
) -> NDArray[np.float64]:
    """Return the seconds of searches for ten hits, one after the other."""
    model = ModelStore(database).get(1)
    seconds: list[float] = []
    while not ended():
        query_QD = vectors_QD[len(seconds) % len(vectors_QD)][None]
        began = time.perf_counter()
        hits = None
        while hits is None:  # a generation that was replaced meanwhile
            with database.connection() as connection:
                target = generations.live(connection, 1)
                assert target is not None
                hits = find_hits(
                    connection, model, target, Scope(), SearchRequest(query_QD=query_QD, k=10)
                )
        assert len(hits) == 10
        seconds.append(time.perf_counter() - began)
    return np.array(seconds)


if __name__ == "__main__":
    main()
