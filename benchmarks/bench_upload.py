"""How long from a short video's arrival until it is searchable, and where does the time go?

A real `siglip-pipeline up` with default settings and the demo's model, with nothing else to do. A
film of four seconds is copied into the uploads; the database is asked every second whether it is
searchable, the parts are read from Dagster's own records of the three runs. It is searchable once
it is embedded: the index follows. Several uploads, one after the other; the parts are medians.

    python benchmarks/bench_upload.py [--json] [--uploads 5]
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import dagster as dg
from bench_fragments import instance, log, runs, services, wait_until
from store_report import Case, print_report

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.records import Stage
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.store.videos import VideoStore

GOAL_SECONDS = 60.0
TOTAL = "upload_to_searchable"
# Vectors are searchable as soon as they are stored; the index follows.
ASSETS = (Stage.FRAMES, Stage.VECTORS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--uploads", type=int, default=5)
    options = parser.parse_args(arguments)
    found = list(measure(options.uploads))
    total = [parts.pop(TOTAL) for parts in found]
    cases = [
        Case(
            name=TOTAL,
            value=statistics.median(total),
            unit="seconds",
            better="lower",
            goal=GOAL_SECONDS,
            note=f"{min(total):.0f} to {max(total):.0f} s in {len(total)} uploads",
        )
    ]
    cases += [
        Case(
            name=name,
            value=statistics.median(parts[name] for parts in found),
            unit="seconds",
            better="lower",
        )
        for name in found[0]
    ]
    print_report("upload", cases, as_json=options.json)


def measure(uploads: int) -> Iterator[dict[str, float]]:
    """Seconds of each part of the way, for one upload after the other."""
    with (
        services(1, preload=True, settle_seconds=None) as (settings, process),
        open_database(DatabaseOptions.from_settings(settings)) as database,
    ):
        records = VideoStore(database)
        wait_until(lambda: records.counts().indexed == 1, process)
        for number, scene in enumerate(demo_scenes()[1 : uploads + 1]):
            wait_until(lambda: not runs(settings, unfinished=True), process)
            time.sleep(7.3)  # somewhere between two looks of the sensors
            before = set(runs(settings))
            film = settings.home / "film.mp4"
            render_video(film, [scene], seconds_per_scene=4)
            name = f"new-{number}.mp4"
            (Path(settings.uploads) / name).write_bytes(film.read_bytes())
            arrived = time.time()
            wait_until(partial(_is_indexed, records, name), process)
            searchable = time.time() - arrived
            wait_until(lambda: not runs(settings, unfinished=True), process)
            parts = way(settings, arrived, before)
            log(", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items()))
            yield {TOTAL: searchable} | parts


def _is_indexed(records: VideoStore, video: str) -> bool:
    row = records.get(video)
    return row is not None and row.state == "indexed"


def way(settings: Settings, arrived: float, before: set[str]) -> dict[str, float]:
    """The parts, from the times at which Dagster created, started and ended each run."""
    with instance(settings) as dagster:
        made: dict[str, dg.RunRecord] = {}
        for record in dagster.get_run_records(limit=20):
            run = record.dagster_run
            if run.run_id in before:
                continue
            assert run.status == dg.DagsterRunStatus.SUCCESS, run
            if run.tags.get("dagster/sensor_name") == "new_uploads":
                made["video_frames"] = record  # the sensor's runs are of all that it targets
            for key in run.asset_selection or ():
                made.setdefault(key.to_user_string(), record)
    parts: dict[str, float] = {}
    last = arrived
    for asset in ASSETS:
        record = made[asset]
        assert record.start_time is not None
        assert record.end_time is not None
        created = record.create_timestamp.timestamp()
        parts[f"until {asset} is asked for"] = created - last
        parts[f"until {asset} begins"] = record.start_time - created
        parts[f"{asset}"] = record.end_time - record.start_time
        last = record.end_time
    return parts


if __name__ == "__main__":
    main()
