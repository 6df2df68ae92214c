"""What does comparing a new video with all others cost?

Made collections in which the known videos are there as a comparison leaves them: a row each, with
the mean vectors of 32 moments. New videos of 500 frames are loaded as ever and compared, first one,
then ten together; one of the ten is a copy of the first. The reference is comparing as many videos
anew, on a collection small enough for it.

    python benchmarks/bench_similarity.py [--quick] [--json] [--videos 1000 10000]
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pgvector import HalfVector
from store_report import Case, print_report
from vectors import Footage

from siglip_pipeline.records import EmbeddingBatch, FloatArray, ModelSpec
from siglip_pipeline.settings import Settings
from siglip_pipeline.similarity.compare import compare_videos, rules_of
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore

DIM, MOMENTS, FRAMES = 768, 32, 500
ANEW = 100
"""Videos that are compared anew, with all their frames."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 videos alone")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 10_000])
    options = parser.parse_args(arguments)
    cases = []
    for videos in [1000] if options.quick else options.videos:
        with made_database() as database:
            cases += added(database, videos)
    with made_database() as database:
        cases += anew(database)
    print_report("similarity", cases, as_json=options.json)


class made_database:  # used as a function
    """An empty database, gone afterwards."""

    def __enter__(self) -> Database:
        self._folder = tempfile.TemporaryDirectory(prefix="siglip-bench-")
        Path(self._folder.name).chmod(0o755)
        settings = Settings.load(home=self._folder.name, database_url=None)
        self._opened = open_database(DatabaseOptions.from_settings(settings))
        return self._opened.__enter__()

    def __exit__(self, *error: object) -> None:
        self._opened.__exit__(None, None, None)
        self._folder.cleanup()


def register(database: Database) -> int:
    spec = ModelSpec(
        name="made", revision=None, key="made", dim=DIM, logit_scale=4.6, logit_bias=-16
    )
    return ModelStore(database).register(spec)


def added(database: Database, videos: int) -> list[Case]:
    model_id = register(database)
    know(database, model_id, videos)
    films = list(Footage(11 * FRAMES, dim=DIM, seed=99))
    load(database, model_id, films[0], "new/0.mp4")
    one = compare_videos(database, model_id)
    assert one.changed == 1
    films[10] = replace(films[0], video="copy")
    for number, film in enumerate(films[1:], 1):
        load(database, model_id, film, f"new/{number}.mp4")
    ten = compare_videos(database, model_id)
    assert (ten.changed, ten.duplicates) == (10, 1)
    nothing = compare_videos(database, model_id)
    assert nothing.changed == 0
    prefix = f"{videos}_videos"
    return [
        Case(name=f"{prefix}_{name}", value=value, unit=unit, better="lower", note=note)
        for name, value, unit, note in (
            ("one_more", one.seconds, "seconds", f"{MOMENTS} moments a video, {FRAMES} frames"),
            ("ten_more", ten.seconds / 10, "seconds_per_video", "added together"),
            ("nothing_new", nothing.seconds, "seconds", "a run that finds all as it was"),
        )
    ]


def anew(database: Database) -> list[Case]:
    """All of a small collection, and one video more."""
    model_id = register(database)
    films = list(Footage((ANEW + 1) * FRAMES, dim=DIM))
    for number, film in enumerate(films[:-1]):
        load(database, model_id, film, f"made/{number}.mp4")
    everything = compare_videos(database, model_id)
    load(database, model_id, films[-1], "made/last.mp4")
    one = compare_videos(database, model_id)
    again = compare_videos(database, model_id, anew=True)
    assert (one.duplicates, one.segments) == (again.duplicates, again.segments)
    return [
        Case(
            name=f"{ANEW}_videos_one_more_of_real_frames",
            value=one.seconds,
            unit="seconds",
            reference="comparing all anew",
            reference_value=again.seconds,
            better="lower",
            note=f"the first comparison of {ANEW} took {everything.seconds:.1f} s",
        )
    ]


def load(database: Database, model_id: int, film: EmbeddingBatch, path: str) -> None:
    VectorStore(database).load(
        model_id, replace(film, video=path), source_sha256="0" * 64, sampling="fps:1"
    )


def know(database: Database, model_id: int, videos: int) -> None:
    """Videos that were compared before, without frames: nothing is like them."""
    rng = np.random.default_rng(5)
    rules = rules_of(ModelStore(database).get(model_id))
    weights = np.full(FRAMES, 1 / 20, np.float32).tobytes()
    spread = np.ones(FRAMES, np.float32).tobytes()
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO videos (path) SELECT 'known/' || n FROM generate_series(1, %s) n", [videos]
        )
        cursor.execute(
            "INSERT INTO ingests (model_id, video_id, source_sha256, sampling, frames, moments,"
            " moment_threshold) SELECT %s, video_id, md5(path), 'fps:1', %s, %s, 0.9 FROM videos",
            [model_id, FRAMES, MOMENTS],
        )
        rows = cursor.execute("SELECT video_id, ingest_id FROM ingests").fetchall()
        cursor.executemany(
            "INSERT INTO video_vectors (model_id, video_id, ingest_id, rules, pairs, frames,"
            " length_seconds, embedding, moments, weights, spread)"
            " VALUES (%s, %s, %s, %s, 0, %s, %s, %s, %b, %b, %b)",
            (
                [
                    *(model_id, video_id, ingest_id, rules, FRAMES, FRAMES),
                    *(HalfVector(unit(rng, 1)[0]), unit(rng, MOMENTS).astype(np.float16).tobytes()),
                    *(weights, spread),
                ]
                for video_id, ingest_id in rows
            ),
        )
    with database.autocommit() as connection:
        connection.execute("ANALYZE")


def unit(rng: np.random.Generator, count: int) -> FloatArray:
    vectors = rng.standard_normal((count, DIM), dtype=np.float32)
    result: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


if __name__ == "__main__":
    main()
