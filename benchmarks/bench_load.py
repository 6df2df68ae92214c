"""Does loading vectors run at the wire's speed?

Own figure: :class:`VectorStore`, a transaction a video, into an empty collection. Reference: the
server itself copying a ready binary file of the same rows into an equal table, in the same run,
taking turns. Both end committed.

    python benchmarks/bench_load.py [--quick] [--json] [--rows 100000 …] [--dims 768 1152]
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from psycopg import sql
from store_report import Case, print_report

from siglip_pipeline.records import EmbeddingBatch, FloatArray, ModelSpec
from siglip_pipeline.settings import Settings
from siglip_pipeline.store import tables
from siglip_pipeline.store.copy import copy_rows, encode
from siglip_pipeline.store.database import Database, DatabaseOptions, embedded_server, open_database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore

GOAL = 0.75
FRAMES_PER_VIDEO = 2_000
ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50,000 rows of 768")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[768, 1152])
    options = parser.parse_args(arguments)
    sizes = [50_000] if options.quick else options.rows
    dims = [768] if options.quick else options.dims
    cases: list[Case] = []
    for dim in dims:
        for rows in sizes:
            cases += run(rows, dim)
    cases.append(two_writers())
    print_report("load", cases, as_json=options.json)


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def fresh_database() -> Iterator[tuple[Database, Path]]:
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        Path(folder).chmod(0o755)
        settings = Settings.load(home=folder, database_url=None)
        with open_database(DatabaseOptions.from_settings(settings)) as database:
            yield database, embedded_server(DatabaseOptions.from_settings(settings)).data


def unit_vectors(rows: int, dim: int) -> FloatArray:
    """Noise: what is in a vector does not matter to a COPY."""
    rng = np.random.default_rng(1)
    pool = rng.standard_normal((min(rows, 20_000), dim), dtype=np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    return np.resize(pool, (rows, dim))


def run(rows: int, dim: int) -> list[Case]:
    """One transaction a video, and one COPY of all rows, both against the server's own COPY."""
    log(f"{rows:,} rows of {dim}")
    vectors_ND = unit_vectors(rows, dim)
    with fresh_database() as (database, data):
        spec = ModelSpec(
            name="load", revision=None, key="load", dim=dim, logit_scale=0, logit_bias=0
        )
        model_id = ModelStore(database).register(spec)
        file = write_file(data, vectors_ND)
        actions: dict[str, Callable[[], None]] = {
            "file": partial(server_side, database, model_id, file),
            "copy": partial(one_copy, database, model_id, vectors_ND),
            "videos": partial(by_video, database, model_id, vectors_ND),
        }
        spent: dict[str, list[float]] = {key: [] for key in actions}
        order = list(actions)
        for _ in range(ROUNDS if rows <= 200_000 else 1):
            for key in order:
                empty(database, model_id)
                began = time.perf_counter()
                actions[key]()
                spent[key].append(time.perf_counter() - began)
            order.append(order.pop(0))  # so that none always comes after the same one
        file.unlink()
    name = f"{rows // 1000}k_{dim}"
    rates = {key: rows / statistics.median(seconds) for key, seconds in spent.items()}
    return [
        Case(
            name=f"{name}_{what}",
            value=rates[key],
            unit="rows_per_second",
            reference="server-side COPY of a ready file",
            reference_value=rates["file"],
            goal=GOAL if key == "copy" else None,
            better="higher",
            note=note,
        )
        for what, key, note in (
            ("one_copy", "copy", "encoding and COPY of all rows in one transaction"),
            (
                "video_by_video",
                "videos",
                f"checks, moments, bookkeeping and a commit for every {FRAMES_PER_VIDEO} frames",
            ),
        )
    ]


def columns(rows: int) -> dict[str, tuple[str, Any]]:
    return {
        "video_id": ("int4", 1),
        "frame_index": ("int4", np.arange(rows, dtype=np.int64)),
        "time_seconds": ("float8", np.arange(rows, dtype=np.float64)),
    }


def write_file(data: Path, vectors_ND: FloatArray) -> Path:
    file = data / "bench.copy"  # the server can read its own folder, whoever it runs as
    with file.open("wb") as out:
        for block in encode(columns(len(vectors_ND)), vectors_ND):
            out.write(block)
    file.chmod(0o644)
    return file


def empty(database: Database, model_id: int) -> None:
    with database.connection() as connection:
        for table in (tables.frames(model_id), tables.moments(model_id), sql.Identifier("ingests")):
            connection.execute(sql.SQL("TRUNCATE {}").format(table))


def server_side(database: Database, model_id: int, file: Path) -> None:
    with database.connection() as connection:
        connection.execute(
            sql.SQL("COPY {} FROM {} (FORMAT BINARY)").format(
                tables.frames(model_id), sql.Literal(str(file))
            )
        )


def one_copy(database: Database, model_id: int, vectors_ND: FloatArray) -> None:
    with database.connection() as connection:
        copy_rows(
            connection,
            tables.frames(model_id),
            columns(len(vectors_ND)),
            vector=("embedding", vectors_ND),
        )


def by_video(database: Database, model_id: int, vectors_ND: FloatArray) -> None:
    store = VectorStore(database)
    for number, start in enumerate(range(0, len(vectors_ND), FRAMES_PER_VIDEO)):
        store.load(
            model_id,
            batch(f"{number}.mp4", vectors_ND[start : start + FRAMES_PER_VIDEO]),
            source_sha256="x",
            sampling="fps:1",
        )


def batch(video: str, vectors_ND: FloatArray) -> EmbeddingBatch:
    n = len(vectors_ND)
    return EmbeddingBatch(
        video=video,
        frame_index_N=np.arange(n, dtype=np.int64),
        time_seconds_N=np.arange(n, dtype=np.float64),
        embeddings_ND=vectors_ND,
    )


def two_writers() -> Case:
    """Two writers load the same videos at once; the share of rows that are as they should be."""
    log("two writers at once")
    vectors_ND = unit_vectors(8_000, 768)
    with fresh_database() as (database, _):
        spec = ModelSpec(name="w", revision=None, key="w", dim=768, logit_scale=0, logit_bias=0)
        model_id = ModelStore(database).register(spec)
        writers = [
            threading.Thread(target=by_parts, args=(database, model_id, vectors_ND, version))
            for version in range(2)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        with database.connection() as connection:
            row = connection.execute(
                sql.SQL("SELECT count(*), count(DISTINCT (video_id, frame_index)) FROM {}").format(
                    tables.frames(model_id)
                )
            ).fetchone()
    assert row is not None
    exact = row == (len(vectors_ND), len(vectors_ND))
    return Case(
        name="two_writers_exact",
        value=float(exact),
        unit="share",
        goal=1.0,
        better="higher",
        note=f"{row[0]} rows, {row[1]} distinct, {len(vectors_ND)} expected",
    )


def by_parts(database: Database, model_id: int, vectors_ND: FloatArray, version: int) -> None:
    store = VectorStore(database)
    for number, start in enumerate(range(0, len(vectors_ND), 400)):
        store.load(
            model_id,
            batch(f"{number}.mp4", vectors_ND[start : start + 400]),
            source_sha256=str(version),
            sampling="fps:1",
        )


if __name__ == "__main__":
    main()
