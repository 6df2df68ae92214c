"""How long does the sensor `new_uploads` take with 100,000 files in the uploads folder?

The sensor runs as the daemon runs it, against Postgres for the records and for Dagster's storage;
what a tick asks for is written as the daemon writes it, and counted in; starting the runs is not. A
tick is ended by Dagster after 60 s: the goals are 20 s for one with new files, 2 s for one without.

    python benchmarks/bench_sensor.py [--quick] [--json] [--files 100000]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from store_report import Case, print_report

from siglip_pipeline.services.home import prepare_dagster_home, with_databases
from siglip_pipeline.settings import Settings, process_environment
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.uploads.upload_store import UploadStore

TICKS = 3
GOAL_NEW_SECONDS = 20.0
GOAL_IDLE_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 files")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args(arguments)
    files = 20_000 if options.quick else options.files
    print_report("sensor", run(files), as_json=options.json)


def run(files: int) -> list[Case]:
    """Time listings, ticks with new files, and ticks without."""
    with services(files) as (settings, instance):
        listing = timed(lambda: sum(1 for _ in uploads(settings).list()))
        new = [timed(lambda: tick(instance)) for _ in range(TICKS)]
        log(f"ticks with new files: {', '.join(f'{seconds:.1f} s' for seconds in new)}")
        # The rest at once, by the same calls, so that the next tick has nothing to do.
        with open_database(DatabaseOptions.from_settings(settings)) as database:
            everything = list(uploads(settings).list())
            AnnouncedUploads(database).register(everything)
        known = set(instance.get_dynamic_partitions("videos"))
        assert known, "no tick registered anything: nothing was timed"
        rest = [upload.path for upload in everything if upload.path not in known]
        for start in range(0, len(rest), 1000):
            instance.add_dynamic_partitions("videos", rest[start : start + 1000])
        cpu = time.process_time()
        idle = [timed(lambda: tick(instance)) for _ in range(TICKS)]
        cpu = (time.process_time() - cpu) / TICKS
        assert len(instance.get_dynamic_partitions("videos")) == len(everything) == files
        log(f"ticks without: {', '.join(f'{seconds:.2f} s' for seconds in idle)}")
    worst, median = max(new), statistics.median(idle)
    note = f"listing the folder alone: {listing:.2f} s"
    return [
        Case(
            name=f"tick_with_new_files_{files}",
            value=worst,
            unit="seconds",
            goal=GOAL_NEW_SECONDS,
            better="lower",
            note=note,
        ),
        Case(
            name=f"tick_without_new_files_{files}",
            value=median,
            unit="seconds",
            goal=GOAL_IDLE_SECONDS,
            better="lower",
            note=note,
        ),
        Case(
            name=f"cpu_of_a_tick_without_new_files_{files}",
            value=cpu,
            unit="cpu_seconds",
            better="lower",
            note="of the sensor's process alone; other work on the machine changes it little",
        ),
    ]


@contextmanager
def services(files: int) -> Iterator[tuple[Settings, dg.DagsterInstance]]:
    """A folder of empty files, an embedded database, and a Dagster instance on it."""
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        Path(folder).chmod(0o755)
        videos = Path(folder) / "uploads"
        log(f"making {files} files")
        for number in range(files):
            if number % 1000 == 0:
                (videos / f"{number // 1000:04d}").mkdir(parents=True)
            (videos / f"{number // 1000:04d}" / f"{number:07d}.mp4").write_bytes(b"x")
        settings = Settings.load(
            home=Path(folder) / "home", uploads=str(videos), uploads_settle_seconds=0
        )
        with (
            with_databases(settings) as complete,
            open_database(DatabaseOptions.from_settings(complete)),
        ):
            home = prepare_dagster_home(complete)
            with (
                process_environment(complete, DAGSTER_HOME=str(home)),
                dg.DagsterInstance.get() as instance,
            ):
                yield complete, instance


def tick(instance: dg.DagsterInstance) -> None:
    """Evaluate the sensor, which registers what is new."""
    from siglip_pipeline.definitions import defs
    from siglip_pipeline.defs.sensors import new_uploads

    context = dg.build_sensor_context(
        instance=instance, definitions=defs, resources=dict(defs.resources or {})
    )
    new_uploads(context)


def uploads(settings: Settings) -> UploadStore:
    return UploadStore(settings.uploads, settle_seconds=0)


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
