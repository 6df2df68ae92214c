"""How long from files to searchable, for some short videos, and which stage takes it?

    python benchmarks/bench_whole.py [--videos 10 100] [--model FOLDER]

Each number of videos goes two ways, every process and every database new:

pipeline      `siglip-pipeline ingest FOLDER --wait`: decode, embed, index, check recall, compare
plain script  `plain_script.py`: PyAV, transformers and psycopg in a loop, no recovery and no check
pixeltable    not run: it is not a dependency

`status` and `search`, without a service but with the database running, are medians of five. The
counts of videos and vectors are asserted. A stage is the time of its Dagster run; the rest is
the start of the process, the imports and the database.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.records import Stage

SECONDS = 4
"""Of one video; at a frame a second it has as many frames."""


class Timed(NamedTuple):
    """What a command printed, and what it cost, with the processes that it waited for."""

    printed: str
    seconds: float
    cpu_seconds: float
    peak_mb: int
    """Resident memory of the largest of these processes; mapped weights count."""

    def figures(self) -> dict[str, float]:
        return {
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "peak_mb": self.peak_mb,
        }


def timed(command: list[str], environment: dict[str, str]) -> Timed:
    """Run a command to its end."""
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (printed, said):
            stream.seek(0)
        assert process.returncode == 0, said.read()
        cpu_seconds = usage.ru_utime + usage.ru_stime
        return Timed(printed.read(), seconds, cpu_seconds, usage.ru_maxrss // 1024)


def median(runs: Iterable[Timed]) -> Timed:
    """The run of median CPU time."""
    ordered = sorted(runs, key=lambda run: run.cpu_seconds)
    return ordered[len(ordered) // 2]


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
    ingested = timed(ingest, environment)
    assert len(json.loads(ingested.printed)["indexed"]) == videos, ingested.printed
    server = EmbeddedPostgres(folder / "home")
    with server.lease():
        status = json.loads(timed([*command, "status", "--json"], environment).printed)
        search = [*command, "search", scenes[0].caption, "--json"]
        small = {
            "status": median(timed([*command, "status", "--json"], environment) for _ in range(5)),
            "search": median(timed(search, environment) for _ in range(5)),
        }
    vectors = status["vectors"]
    assert vectors == status["frames"] >= videos * SECONDS
    stages = stage_seconds(server)
    stages["rest"] = round(ingested.seconds - sum(stages.values()), 2)
    with server.lease() as url:
        script = [sys.executable, str(Path(__file__).with_name("plain_script.py")), model, url]
        paths = sorted(map(str, films.iterdir()))
        plain = timed([*script, *paths], environment)
    assert int(plain.printed) >= videos * SECONDS, plain.printed
    return {
        "videos": videos,
        "vectors": vectors,
        "pipeline": ingested.figures() | {"stages": stages},
        **{name: run.figures() for name, run in small.items()},
        "plain_script": plain.figures() | {"vectors": int(plain.printed)},
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
