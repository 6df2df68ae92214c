"""What does a backfill over every second video cost, and how often is the model loaded for it?

Dagster runs cover contiguous partitions, so every second of N videos becomes N / 2 runs. They are
asked for as the UI does it, of a real `siglip-pipeline up` with the demo's model, once with runs
that are forked from a process that has imported everything (the default) and once with a new
interpreter for each (`SIGLIP_PRELOAD_RUNS=false`). CPU is that of all processes of `up`, looked at
every tenth of a second.

    python benchmarks/bench_fragments.py [--quick] [--json] [--videos 200] [--only forked]
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil  # type: ignore[import-untyped,unused-ignore]
from store_report import Case, print_report

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.runs.dagster_api import FINISHED, DagsterApi
from siglip_pipeline.services.home import with_databases
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment, process_environment
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore

STARTS = {"forked": True, "new interpreter": False}
WAIT_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Cost:
    """What one backfill took."""

    seconds: float
    cpu_seconds: float
    runs: int
    loads: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="24 videos")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--only", choices=list(STARTS))
    options = parser.parse_args(arguments)
    videos = 24 if options.quick else options.videos
    starts = [options.only] if options.only else list(STARTS)
    costs = {start: measure(videos, preload=STARTS[start]) for start in starts}
    print_report("fragments", list(cases(videos, costs)), as_json=options.json)


def cases(videos: int, costs: dict[str, Cost]) -> Iterator[Case]:
    """Seconds and CPU seconds of the first way to start runs, against the other where tried."""
    cost, *others = costs.values()
    figures = {"": ("seconds", "seconds"), "_cpu": ("cpu_seconds", "cpu seconds")}
    for suffix, (field, unit) in figures.items():
        yield Case(
            name=f"backfill_of_{videos // 2}_fragments{suffix}",
            value=getattr(cost, field),
            unit=unit,
            better="lower",
            reference="new interpreter for each run" if others else None,
            reference_value=getattr(others[0], field) if others else None,
            note=f"{cost.runs} runs, {cost.loads} of them loaded the model",
        )


def measure(videos: int, *, preload: bool) -> Cost:
    """Index so many videos, make the vectors of every second one out of date, and ask for them."""
    with services(videos, preload=preload) as (settings, process):
        with open_database(DatabaseOptions.from_settings(settings)) as database:
            log(f"indexing {videos} videos")
            wait_until(lambda: VideoStore(database).counts().indexed == videos, process)
            model = ModelStore(database).active()
            assert model is not None
            keys = sorted(VideoStore(database).paths())[::2]
            VectorStore(database).mark_outdated(model.model_id, keys)
        wait_until(lambda: not runs(settings, unfinished=True), process)
        before = set(runs(settings))
        api = DagsterApi(f"http://127.0.0.1:{settings.dagster_port}")
        log(f"backfill of {len(keys)} fragments")
        with cpu_of(process.pid) as cpu:
            began = time.monotonic()
            backfill = api.launch_backfill(["frame_embeddings"], keys)
            wait_until(lambda: api.backfill_status(backfill) in FINISHED, process)
            seconds = time.monotonic() - began
        assert api.backfill_status(backfill) == "COMPLETED_SUCCESS"
        done = [
            run_id
            for run_id, asset in runs(settings).items()
            if run_id not in before and asset == "frame_embeddings"
        ]
        cost = Cost(seconds, sum(cpu.values()), len(done), loads(settings, done))
        log(f"preload={preload}: {cost}")
        return cost


@contextmanager
def services(
    videos: int, *, preload: bool, settle_seconds: float | None = 0.0
) -> Iterator[tuple[Settings, "subprocess.Popen[bytes]"]]:
    """A running `up` over so many short films, no two of the same content.

    Args:
        settle_seconds: ``SIGLIP_UPLOADS_SETTLE_SECONDS``; None for its default.
    """
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        Path(folder).chmod(0o755)
        uploads = Path(folder) / "uploads"
        uploads.mkdir()
        film = Path(folder) / "film.mp4"
        render_video(film, demo_scenes()[:1], seconds_per_scene=1)
        for number in range(videos):
            # What follows the last box of the file is no part of the film, but of its content.
            (uploads / f"{number:04d}.mp4").write_bytes(film.read_bytes() + b"%08d" % number)
        settings = Settings.load(
            home=Path(folder) / "home",
            uploads=str(uploads),
            model_name=str(MODEL_FOLDER),
            dagster_port=free_port(),
            page_port=free_port(),
            preload_runs=preload,
            **({} if settle_seconds is None else {"uploads_settle_seconds": settle_seconds}),
        )
        with with_databases(settings) as complete, (Path(folder) / "up.log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "siglip_pipeline.cli.main", "up"],
                env=child_environment(settings),
                stdout=output,
                stderr=output,
            )
            try:
                yield complete, process
            finally:
                process.terminate()
                process.wait(timeout=60)


def runs(settings: Settings, *, unfinished: bool = False) -> dict[str, str]:
    """Runs by id, with the asset that each is over."""
    query = None
    if unfinished:
        names = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")
        query = dg.RunsFilter(statuses=[dg.DagsterRunStatus(name) for name in names])
    with instance(settings) as dagster:
        return {
            run.run_id: ", ".join(key.to_user_string() for key in run.asset_selection or ())
            for run in dagster.get_runs(query)
        }


def loads(settings: Settings, run_ids: Sequence[str]) -> int:
    """How many of these runs loaded the model."""
    with instance(settings) as dagster:
        return sum(
            any("is loaded on" in (entry.user_message or "") for entry in dagster.all_logs(run_id))
            for run_id in run_ids
        )


@contextmanager
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    with (
        process_environment(settings, DAGSTER_HOME=str(settings.home / "dagster")),
        dg.DagsterInstance.get() as opened,
    ):
        yield opened


@contextmanager
def cpu_of(pid: int) -> Iterator[dict[int, float]]:
    """CPU seconds that each process below ``pid`` uses within the block, as they are last seen."""
    used: dict[int, float] = {}
    first: dict[int, float] = {}
    ended = threading.Event()

    def look(*, at_start: bool) -> None:
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                times = process.cpu_times()
                seconds = times.user + times.system
                first.setdefault(process.pid, seconds if at_start else 0.0)
                used[process.pid] = seconds - first[process.pid]

    def watch() -> None:
        while not ended.wait(0.1):
            look(at_start=False)

    look(at_start=True)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield used
    finally:
        ended.set()
        thread.join()


def wait_until(done: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not done():
        if process.poll() is not None:
            raise SystemExit("`up` has ended")
        if time.monotonic() > deadline:
            raise SystemExit(f"not done after {WAIT_SECONDS} s")
        time.sleep(1)


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
