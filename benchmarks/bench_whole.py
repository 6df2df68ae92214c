"""How long from files to searchable, for some short videos, and which stage takes it?

    python benchmarks/bench_whole.py [--videos 10 100] [--model FOLDER]

Each number of videos goes two ways, every process and every database new:

pipeline      `siglip-pipeline ingest FOLDER --wait`: decode, embed, index, check recall, compare
plain script  `plain_script.py`: PyAV, transformers and psycopg in a loop, no recovery and no check
pixeltable    not run: it is not a dependency

The counts of videos and vectors are asserted. A stage is the time of its Dagster run; the rest is
the start of the process, the imports and the database.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.records import Stage

SECONDS = 4
"""Of one video; at a frame a second it has as many frames."""


def timed(command: list[str], environment: dict[str, str]) -> tuple[str, float, float]:
    """What a command prints, its seconds, and CPU seconds with those of its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, seconds, cpu


def stage_seconds(server: EmbeddedPostgres) -> dict[str, float]:
    """The seconds of each stage's runs."""
    seconds: dict[str, float] = defaultdict(float)
    with server.lease(), psycopg.connect(server.url("dagster")) as connection:
        for body, start, end in connection.execute(
            "SELECT run_body, start_time, end_time FROM runs WHERE end_time IS NOT NULL"
        ):
            selected = json.dumps(json.loads(body)["asset_selection"])
            stage = next((stage for stage in Stage if f'"{stage}"' in selected), "other")
            seconds[str(stage)] += end - start
    return {stage: round(taken, 2) for stage, taken in seconds.items()}


def measure(videos: int, model: str, folder: Path) -> dict[str, Any]:
    folder.chmod(0o755)  # reached by the user who runs Postgres for root
    films = folder / "films"
    scenes = demo_scenes()
    for number in range(videos):
        scene = scenes[number % len(scenes)]
        # Another quality where a scene comes again: equal content would be decoded once.
        crf = 20 + number // len(scenes)
        render_video(films / f"{number:04}.mp4", [scene], seconds_per_scene=SECONDS, crf=crf)
    environment = {
        **os.environ,
        "SIGLIP_HOME": str(folder / "home"),
        "SIGLIP_CACHE": str(folder / "cache"),
        "SIGLIP_UPLOADS": str(folder / "uploads"),
        "SIGLIP_MODEL_NAME": model,
        "SIGLIP_DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "siglip_pipeline.cli.main"]
    ingest = [*command, "ingest", str(films), "--wait", "--json"]
    document, seconds, cpu = timed(ingest, environment)
    assert len(json.loads(document)["indexed"]) == videos, document
    server = EmbeddedPostgres(folder / "home")
    with server.lease():
        status = json.loads(timed([*command, "status", "--json"], environment)[0])
    vectors = status["vectors"]
    assert vectors == status["frames"] >= videos * SECONDS
    stages = stage_seconds(server)
    stages["rest"] = round(seconds - sum(stages.values()), 2)
    with server.lease() as url:
        script = [sys.executable, str(Path(__file__).with_name("plain_script.py")), model, url]
        paths = sorted(map(str, films.iterdir()))
        stored, plain_seconds, plain_cpu = timed([*script, *paths], environment)
    assert int(stored) >= videos * SECONDS, stored
    return {
        "videos": videos,
        "vectors": vectors,
        "pipeline": {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "stages": stages},
        "plain_script": {
            "vectors": int(stored),
            "seconds": round(plain_seconds, 1),
            "cpu_seconds": round(plain_cpu, 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--model", default=str(MODEL_FOLDER), help="a folder or a hub id")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "dagster", "av")},
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg(),
        "runs": [],
    }
    for videos in arguments.videos:
        with tempfile.TemporaryDirectory(prefix="siglip-whole-") as folder:
            report["runs"].append(measure(videos, arguments.model, Path(folder)))
    report["load_after"] = os.getloadavg()
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
