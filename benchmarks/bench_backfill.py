"""What does Dagster cost per video, and does that grow with their number?

Distinct tiny films are indexed in runs of 32: as partitions under Dagster (registered, decoded,
embedded with the demo model, every event and check written to Postgres), and by the same calls of
the domain without Dagster, chunk by chunk in turns on a database of their own. Dagster's cost is
the difference: CPU seconds of this process, its children and its Postgres, which other load on the
machine hardly changes, and wall seconds, which it does.

Of each collection the first 32 and the last 128 videos are indexed so. Those between are copies of
the first ones' rows in both databases, made in SQL (backfill_seed.py): what is measured is what a
video costs when so many partitions are there. --whole indexes all of them instead.

A run's process (start of Python, definitions, instance) is measured apart: a daemon starts one per
run, this script does not. So is a look at the automation conditions, which the daemon takes every
few seconds.

    python benchmarks/bench_backfill.py [--quick] [--json] [--whole] [--videos 100 1000 10000]
"""

import argparse
import logging
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import dagster as dg
import psutil  # type: ignore[import-untyped,unused-ignore]
import psycopg
from backfill_seed import seed_dagster, seed_store
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.automation_tick_evaluation_context import (
    AutomationTickEvaluationContext,
)
from fresh_home import fresh_home
from store_report import Case, print_report

from siglip_pipeline.definitions import defs
from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.records import Stage
from siglip_pipeline.runs.in_process import materialize_videos
from siglip_pipeline.services.signals import heed_interrupts
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.identity import model_spec
from siglip_pipeline.siglip.model import get_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.stages.frame_embedding import embed_videos
from siglip_pipeline.stages.frame_sampling import sample_videos
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.stages.run_names import FRAMES_PER_RUN
from siglip_pipeline.store.database import Database, DatabaseOptions, embedded_server, migrate
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore

GOAL_GROWTH = 1.1
MEASURED = 128
ASSETS = (Stage.FRAMES, Stage.VECTORS)
LOOKS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 and 1000 videos")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--whole", action="store_true", help="index all videos; takes long")
    parser.add_argument("--videos", type=int, nargs="+", default=[100, 1_000, 10_000])
    options = parser.parse_args(arguments)
    sizes = [100, 1_000] if options.quick else sorted(options.videos)
    cases: list[Case] = []
    try:
        for size in sizes:
            cases += measure(size, cases, whole=options.whole)
        cases.append(run_process())
    finally:  # stopped half way, it shows what it has
        print_report("backfill", cases, as_json=options.json)


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def measure(size: int, before: Sequence[Case], *, whole: bool) -> list[Case]:
    """Cost per video at one size, against the first size that was measured."""
    with Collection.made(size, whole=whole) as collection:
        under_dagster, without = collection.index_measured()
        look_seconds = collection.automation_look_seconds()
        stored = collection.dagster_bytes() - collection.empty_bytes
    videos = len(collection.measured)
    cases = []
    for unit, own, plain in (
        ("cpu_seconds_per_video", under_dagster.cpu, without.cpu),
        ("wall_seconds_per_video", under_dagster.wall, without.wall),
    ):
        name = f"dagster_{unit.split('_')[0]}_at"
        first = next((case for case in before if case.name.startswith(name)), None)
        cost = (own - plain) / videos
        cases.append(
            Case(
                name=f"{name}_{size}",
                value=cost,
                unit=unit,
                better="lower",
                reference=first.name if first else None,
                reference_value=first.value if first else None,
                goal=GOAL_GROWTH if first else None,
                note=f"the last {videos} videos: with Dagster {own / videos:.3f}, without "
                f"{plain / videos:.3f}",
            )
        )
    cases.append(
        Case(
            name=f"automation_look_at_{size}",
            value=look_seconds,
            unit="cpu_seconds",
            better="lower",
            note="one look of the daemon at all conditions, after one more video",
        )
    )
    cases.append(
        Case(
            name=f"dagster_database_at_{size}",
            value=stored / size,
            unit="bytes_per_video",
            better="lower",
            note=f"{stored / 2**20:.0f} MiB more than an empty one",
        )
    )
    for case in cases:
        log(f"{case.name}: {case.value:.4f} {case.unit} ({case.note})")
    return cases


@dataclass
class Spent:
    """CPU and wall seconds."""

    cpu: float = 0.0
    wall: float = 0.0


class Collection:
    """So many videos in two homes, one with Dagster and one without, all but the last done."""

    def __init__(self, settings: Settings, database: Database, size: int) -> None:
        self.settings = settings
        self.measured: list[str] = []
        self._names = [f"{number:06}.mp4" for number in range(size)]
        self._plain = database
        self._plain_frames = FrameStore(str(settings.home.parent / "plain" / "frames"))
        self._film = _film(settings.home.parent)
        with dg.DagsterInstance.get():
            self.empty_bytes = self.dagster_bytes()

    @classmethod
    @contextmanager
    def made(cls, size: int, *, whole: bool) -> Iterator[Self]:
        """A collection whose last videos are still to be indexed."""
        with ExitStack() as stack:
            settings = stack.enter_context(fresh_home(decode_workers=1))
            server = embedded_server(
                DatabaseOptions.from_settings(Settings.load(home=settings.home.parent / "plain"))
            )
            database = stack.enter_context(Database(stack.enter_context(server.lease())))
            migrate(database)
            collection = cls(settings, database, size)
            collection._fill(whole=whole)
            yield collection

    def _fill(self, *, whole: bool) -> None:
        first = self._names[:FRAMES_PER_RUN]
        rest = self._names[FRAMES_PER_RUN:]
        self.measured = rest if whole else rest[-MEASURED:]
        self._index(first)
        seeded = len(rest) - len(self.measured)
        if seeded:
            videos = len(first) + seeded
            dagster_url = revealed(self.settings.dagster_postgres_url).replace("+psycopg2", "")
            seed_dagster(dagster_url, first=len(first), videos=videos)
            seed_store(revealed(self.settings.database_url), first=len(first), videos=videos)
            seed_store(self._plain.url.reveal(), first=len(first), videos=videos)
            log(f"{seeded} videos are copies")

    def index_measured(self) -> tuple[Spent, Spent]:
        """Seconds with and without Dagster over the measured videos."""
        under_dagster, without = Spent(), Spent()
        for start in range(0, len(self.measured), FRAMES_PER_RUN):
            own, plain = self._index(self.measured[start : start + FRAMES_PER_RUN])
            under_dagster = _sum(under_dagster, own)
            without = _sum(without, plain)
        return under_dagster, without

    def _index(self, chunk: Sequence[str]) -> tuple[Spent, Spent]:
        for name in chunk:
            self._upload(name)
        with spent(revealed(self.settings.database_url)) as own:
            assert materialize_videos(self.settings, chunk, assets=ASSETS)
        with spent(self._plain.url.reveal()) as plain:
            index_plainly(self.settings, chunk, self._plain_frames, self._plain)
        return own, plain

    def _upload(self, name: str) -> None:
        """A film of its own size and content: the same pictures, and a box that players skip."""
        padding = name.encode() + bytes(int(name[:6]))
        box = struct.pack(">I4s", 8 + len(padding), b"free") + padding
        Path(self.settings.uploads, name).write_bytes(self._film + box)

    def dagster_bytes(self) -> int:
        """Size of Dagster's database."""
        url = revealed(self.settings.dagster_postgres_url).replace("+psycopg2", "")
        with psycopg.connect(url) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        return 0 if row is None else int(row[0])

    def automation_look_seconds(self) -> float:
        """CPU seconds of one look at the automation conditions after one more video."""
        graph = defs.resolve_asset_graph()
        with dg.DagsterInstance.get() as instance:
            cursor = look(instance, graph, AssetDaemonCursor.empty())
            seconds = []
            for video in self.measured[:LOOKS]:
                assert materialize_videos(self.settings, [video], assets=ASSETS[:1], force=True)
                with spent(revealed(self.settings.database_url)) as one:
                    cursor = look(instance, graph, cursor)
                seconds.append(one.cpu)
        return median(seconds)


def look(
    instance: dg.DagsterInstance, graph: BaseAssetGraph[Any], cursor: AssetDaemonCursor
) -> AssetDaemonCursor:
    """What the daemon does at each tick of the sensor `automation`, up to the runs it asks for."""
    tick = AutomationTickEvaluationContext(
        evaluation_id=cursor.evaluation_id + 1,
        instance=instance,
        asset_graph=graph,
        cursor=cursor,
        materialize_run_tags={},
        observe_run_tags={},
        auto_observe_asset_keys=set(),
        asset_selection=dg.AssetSelection.all(),
        logger=logging.getLogger(__name__),
        emit_backfills=True,
    )
    _, cursor, _ = tick.evaluate()
    return cursor


def _film(folder: Path) -> bytes:
    film = folder / "film.mp4"
    render_video(film, demo_scenes()[:1], seconds_per_scene=2, size=(64, 48), fps=5)
    return film.read_bytes()


def revealed(url: SecretUrl | None) -> str:
    """The URL of a database that was given."""
    assert url is not None
    return url.reveal()


@contextmanager
def spent(database_url: str) -> Iterator[Spent]:
    """What the block costs this process, its children and the database's server."""
    with psycopg.connect(database_url) as connection:
        server = psutil.Process(psutil.Process(connection.info.backend_pid).ppid())
    result = Spent()
    cpu, wall = _cpu_seconds(server), time.perf_counter()
    try:
        yield result
    finally:
        result.cpu = _cpu_seconds(server) - cpu
        result.wall = time.perf_counter() - wall


def _cpu_seconds(server: psutil.Process) -> float:
    """Of this process and the server, with their children, those that ended included."""
    total = 0.0
    for root in (psutil.Process(), server):
        for process in (root, *root.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _sum(a: Spent, b: Spent) -> Spent:
    return Spent(a.cpu + b.cpu, a.wall + b.wall)


def index_plainly(
    settings: Settings, videos: Sequence[str], frame_store: FrameStore, database: Database
) -> None:
    """What the two assets do, without Dagster."""
    uploads = UploadStore(settings.uploads, settle_seconds=0)
    for _ in sample_videos(
        videos,
        uploads=uploads,
        frame_store=frame_store,
        database=database,
        options=FramesOptions.from_settings(settings),
    ):
        pass
    spec = model_spec(ModelOptions.from_settings(settings))
    for _ in embed_videos(
        videos,
        frame_store=frame_store,
        database=database,
        model_id=ModelStore(database).register(spec),
        model_key=spec.key,
        engine=lambda: EmbeddingEngine(
            get_model(ModelOptions.from_settings(settings), tower="image"),
            batch_size=settings.batch_size,
        ),
    ):
        pass


def run_process() -> Case:
    """Start of a process that loads the definitions and the instance, as every run does."""
    code = (
        "import dagster as dg, siglip_pipeline.definitions as d;"
        "d.defs.resolve_implicit_global_asset_job_def(); dg.DagsterInstance.get().get_runs(limit=1)"
    )
    seconds = []
    with fresh_home(decode_workers=1) as settings:
        for _ in range(LOOKS):
            with spent(revealed(settings.database_url)) as start:
                subprocess.run(
                    [sys.executable, "-c", code], env=child_environment(settings), check=True
                )
            seconds.append(start.cpu)
    return Case(
        name=f"process_of_a_run_over_{FRAMES_PER_RUN}",
        value=median(seconds) / FRAMES_PER_RUN,
        unit="cpu_seconds_per_video",
        better="lower",
        note=f"{median(seconds):.2f} s a run, of which there are two for {FRAMES_PER_RUN} videos",
    )


if __name__ == "__main__":
    heed_interrupts()
    logging.basicConfig(level=logging.ERROR)
    main()
