"""What every case of the fault suite needs: a collection, its real pipeline, and a comparison.

A case disturbs a run, lets a second one finish, and compares what is stored with what an
undisturbed run stored: the same (video, frame, vector), no more and no less.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import psutil
import psycopg
from psycopg import sql

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.errors import FrameStoreError
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.live_index import live_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.video.frame_store import SUFFIX, FrameStore

FILMS = {"a.mp4": 3, "b.mkv": 4, "sub/c.mp4": 2, "d.webm.mp4": 3}
"""Names and lengths in scenes of a second."""

ALL = ("materialize", "--all-missing", "--json")
UNREADABLE: list[tuple[int, float, int]] = [(-1, -1.0, -1)]


def render_films(folder: Path) -> Path:
    """The uploads of all cases: four films, no two scenes alike."""
    scenes = iter(demo_scenes())
    for name, count in FILMS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        render_video(path, [next(scenes) for _ in range(count)], seconds_per_scene=1)
    return folder


def settings_for(folder: Path, uploads: Path | str, **overrides: Any) -> Settings:
    """Settings of a pipeline with a home of its own.

    One frame at a time through the model: the numbers do not depend on which frames a batch
    brought together, so that vectors can be compared bit by bit.
    """
    return Settings.load(
        **{
            "home": folder / "home",
            "uploads": str(uploads),
            "model_name": str(MODEL_FOLDER),
            "device": "cpu",
            "dtype": "float32",
            "batch_size": 1,
            "sampling": "fps:4",
            "decode_workers": 2,
            "uploads_settle_seconds": 0.0,
            **overrides,
        }
    )


@dataclass
class Zygote:
    """Starts commands without waiting for imports; see `zygote.py`."""

    process: "subprocess.Popen[str]"
    running: int | None = None

    def ask(self, request: dict[str, Any]) -> int:
        if self.running is not None:  # a case that failed in its middle has left it behind
            end_family(self.running)
            self.status()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        self.running = int(self._answer()["pid"])
        return self.running

    def status(self) -> int:
        """Exit status of the command, when it has ended; of a signal, as a negative number."""
        ended = int(self._answer()["status"])
        self.running = None
        return ended

    def _answer(self) -> dict[str, int]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the starter of commands is gone"
        answer: dict[str, int] = json.loads(line)
        return answer


@contextmanager
def started_zygote(log: IO[bytes], *, prefix: Sequence[str] = ()) -> Iterator[Zygote]:
    """A starter of commands; ``prefix`` runs it elsewhere, such as in a mount namespace."""
    environment = {**os.environ, "SIGLIP_MODEL_NAME": str(MODEL_FOLDER), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "siglip_pipeline_tests.faults.zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
    )
    try:
        yield Zygote(process)
    finally:
        end_family(process.pid)
        process.wait()


def end_family(pid: int, *, number: int = signal.SIGKILL) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for child in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """All that a pipeline has stored, in a form that can be compared."""

    vectors: dict[tuple[str, int], tuple[float, str]]
    """By (video, frame_index): time in seconds and the vector, as Postgres prints it."""
    moments: list[tuple[str, int, int, int]]
    frames: dict[str, list[tuple[int, float, int]]]
    """By video: frame_index, time in seconds and a hash of the JPEG."""
    states: dict[str, str]
    failures: dict[str, str]
    indexed: int
    """Frames that the live index answers for."""
    miscounted: dict[str, tuple[int, int]] = field(default_factory=dict)

    def only(self, *videos: str) -> "Stored":
        """The part that belongs to some videos."""
        vectors = {key: value for key, value in self.vectors.items() if key[0] in videos}
        return replace(
            self,
            vectors=vectors,
            moments=[moment for moment in self.moments if moment[0] in videos],
            frames={video: rows for video, rows in self.frames.items() if video in videos},
            states={video: state for video, state in self.states.items() if video in videos},
            indexed=len(vectors),
        )


@dataclass
class Pipeline:
    """A home, its databases, and the commands that run in it."""

    settings: Settings
    folder: Path
    zygote: Zygote
    environment: dict[str, str] = field(default_factory=dict)
    hook: str = ""

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self, *arguments: str) -> int:
        """Start a command; its process id."""
        environment = {**self.settings.environment(), **self.environment}
        return self.zygote.ask(
            {
                "arguments": list(arguments or ALL),
                "environment": environment,
                "log": str(self.log),
                "hook": self.hook,
            }
        )

    def run(self, *arguments: str) -> int:
        """Run a command to its end; its exit status."""
        self.start(*arguments)
        return self.zygote.status()

    def finish(self) -> None:
        """Run again, undisturbed; it must succeed."""
        assert self.run() == 0, self.said[-6000:]

    def kill_after(self, seconds: float) -> bool:
        """Start a run and end its process by SIGKILL; False when it was done before."""
        pid = self.start()
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self.zygote.status() == -signal.SIGKILL

    def stored(self) -> Stored:
        """What is stored now."""
        with open_database(DatabaseOptions.from_settings(self.settings)) as database:
            return read_stored(database, FrameStore(self.settings.frame_store_url))

    def done(self) -> dict[tuple[str, str], object]:
        """What was decoded and embedded, by what differs when it is done once more.

        That is the file of a video's frames, and the transactions that wrote its vectors.
        """
        found: dict[tuple[str, str], object] = {}
        root = Path(self.settings.frame_store_url.reveal())
        with open_database(DatabaseOptions.from_settings(self.settings)) as database:
            states = VideoStore(database).states()
            model = next(iter(ModelStore(database).list()), None)
            if model is not None:
                written = sql.SQL(
                    "SELECT path, array_agg(DISTINCT frames.xmin::text) FROM {} frames"
                    " JOIN videos USING (video_id) GROUP BY path"
                ).format(sql.Identifier(f"frames_{model.model_id}"))
                with database.connection() as connection:
                    rows = connection.execute(written).fetchall()
                found |= {("vectors", video): transactions for video, transactions in rows}
        for video, state in states.items():
            if state in ("frames", "embedded", "indexed"):
                file = (root / f"{video}{SUFFIX}").stat()
                found["frames", video] = (file.st_ino, file.st_mtime_ns)
        return found


def read_stored(database: Database, frame_store: FrameStore) -> Stored:
    """Read everything back."""
    records = VideoStore(database)
    model = ModelStore(database).active() or next(iter(ModelStore(database).list()), None)
    vectors: dict[tuple[str, int], tuple[float, str]] = {}
    moments: list[tuple[str, int, int, int]] = []
    if model is not None:
        with database.connection() as connection:
            vectors = _vectors(connection, model.model_id)
            moments = _moments(connection, model.model_id)
    index = live_index(database, model.model_id) if model else None
    return Stored(
        vectors=vectors,
        moments=moments,
        frames={video: _frames(frame_store, video) for video in sorted(records.paths())},
        states={video: str(state) for video, state in records.states().items()},
        failures={failure.video: failure.reason for failure in records.failures()},
        indexed=index.frames if index else 0,
        miscounted=VectorStore(database).miscounted(model.model_id) if model else {},
    )


def _vectors(
    connection: "psycopg.Connection[tuple[Any, ...]]", model_id: int
) -> dict[tuple[str, int], tuple[float, str]]:
    rows = connection.execute(
        sql.SQL(
            "SELECT path, frame_index, time_seconds, embedding::text FROM {}"
            " JOIN videos USING (video_id)"
        ).format(sql.Identifier(f"frames_{model_id}"))
    ).fetchall()
    found = {(path, frame): (seconds, vector) for path, frame, seconds, vector in rows}
    assert len(found) == len(rows), "a frame is stored twice"
    return found


def _moments(
    connection: "psycopg.Connection[tuple[Any, ...]]", model_id: int
) -> list[tuple[str, int, int, int]]:
    return connection.execute(
        sql.SQL(
            "SELECT path, moment, first_frame, last_frame FROM {} JOIN videos USING (video_id)"
            " ORDER BY 1, 2"
        ).format(sql.Identifier(f"moments_{model_id}"))
    ).fetchall()


def _frames(frame_store: FrameStore, video: str) -> list[tuple[int, float, int]]:
    if not frame_store.exists(video):
        return []
    try:
        return [
            (int(index), float(seconds), hash(jpeg))
            for batch in frame_store.read(video)
            for index, seconds, jpeg in zip(
                batch.frame_index_N, batch.time_seconds_N, batch.jpegs, strict=True
            )
        ]
    except FrameStoreError:
        return UNREADABLE


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Poll until the condition holds; fail with what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)
