"""Embed stored frames again, as ``materialize --stale`` does after a change of the model.

Frames lie in a folder, and in a bucket of an S3 server on this machine (moto); vectors go to
Postgres. Reference: the engine alone on such frames, without reading a store or writing vectors.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import EmbeddingBatch
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.stages.frame_embedding import embed_videos
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.video.frame_store import FrameStore

FRAMES_PER_VIDEO = 500

Fill = Callable[[FrameStore, int, int], list[str]]
"""Stores so many frames, spread over so many videos; returns the videos."""


def cases(
    model: SiglipModel, fill: Fill, frames: int, work: Path, skipped: list[str]
) -> Iterator[dict[str, Any]]:
    """Cases of a folder and of a bucket; each asserts that every frame has its vector."""
    videos = max(2, frames // FRAMES_PER_VIDEO)
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(_database())
        stores = {"a folder": FrameStore(work / "reembedded")}
        if find_spec("moto") is None or find_spec("s3fs") is None:
            skipped.append("re-embedding from S3: moto or s3fs is not installed")
        else:
            stores["S3"] = stack.enter_context(_bucket())
        for place, store in stores.items():
            # A model that has no vectors yet, as after a change of the model.
            spec = replace(model.spec, key=f"{model.spec.key}-{place.replace(' ', '-')}")
            model_id = ModelStore(database).register(spec)
            names = fill(store, frames, videos)
            alone = _rate_alone(model, store, names[0], frames)
            began = time.perf_counter()
            engine = _reembed(model, model_id, store, database, names)
            seconds = time.perf_counter() - began
            _assert_stored(database, model_id, frames)
            yield {
                "name": f"re-embedding {frames:,} stored frames from {place}, vectors stored",
                "value": frames / seconds,
                "unit": "frames_per_second",
                "reference": "engine on frames in memory",
                "reference_value": alone,
                "ratio": frames / seconds / alone,
                "goal": None,
                "better": "higher",
                "decoder": engine.report.decoder,
                "forward": engine.report.forward,
                "notes": engine.report.notes,
            }


def _reembed(
    model: SiglipModel, model_id: int, store: FrameStore, database: Database, names: Sequence[str]
) -> EmbeddingEngine:
    engine = EmbeddingEngine(model)
    for outcome in embed_videos(
        names,
        frame_store=store,
        database=database,
        model_id=model_id,
        model_key=model.spec.key,
        engine=lambda: engine,
    ):
        if isinstance(outcome, VideoError):
            raise outcome
    return engine


def _rate_alone(model: SiglipModel, store: FrameStore, name: str, frames: int) -> float:
    """Return the frames per second of the engine on one video's frames, again and again."""
    batches = list(store.read(name))
    held = sum(len(batch) for batch in batches)
    repeats = max(1, min(frames, 20_000) // held)
    engine = EmbeddingEngine(model)
    results = list(engine.embed((f"{i}.mp4", batches) for i in range(repeats)))
    assert all(isinstance(result, EmbeddingBatch) for result in results), results
    assert engine.report.frames == repeats * held
    return engine.report.frames_per_second


def _assert_stored(database: Database, model_id: int, frames: int) -> None:
    with database.connection() as connection:
        query = psycopg.sql.SQL("SELECT count(*) FROM {}").format(tables.frames(model_id))
        row = connection.execute(query).fetchone()
    assert row == (frames,), f"{row} vectors are stored of {frames} frames"


@contextlib.contextmanager
def _database() -> Iterator[Database]:
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        Path(folder).chmod(0o755)  # the user who runs Postgres for root must reach it
        settings = Settings.load(home=folder, database_url=None)
        with open_database(DatabaseOptions.from_settings(settings)) as database:
            yield database


# In a process of its own: a server in a thread would take Python's lock from the engine.
_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _bucket() -> Iterator[FrameStore]:
    import s3fs

    command = [sys.executable, "-c", _SERVER]
    # Leaving the block closes its stdin, which ends it; so does the end of this process.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url, "the S3 server did not start"
        options = {"endpoint_url": url, "key": "testing", "secret": "testing"}
        s3fs.S3FileSystem(**options).mkdir("frames")
        yield FrameStore("s3://frames/store", storage_options=options)
