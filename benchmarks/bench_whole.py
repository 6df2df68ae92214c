"""How long from files to searchable, for some short videos, and which stage takes it?

    python benchmarks/bench_whole.py [--videos 10 100] [--model FOLDER | --base]
                                     [--pixeltable PYTHON]

Each number of videos goes two ways, every process and every database new:

pipeline      `siglip-pipeline ingest FOLDER --wait`: decode, embed, index, check recall, compare
plain script  `plain_script.py`: PyAV, transformers and psycopg in a loop, no recovery and no check
pixeltable    `pixeltable_script.py`, where another Python, which has it, is named

`--base` is the architecture of siglip2-base-patch16-256 with random weights, both towers whole, and
the demo's tokenizer.

`status` and `search`, without a service but with the database running, are medians of five. The
counts of videos and vectors are asserted. A stage is the time of its Dagster run; the rest is
the start of the process, the imports and the database.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg
from bench_embed import build

from siglip_pipeline.cpu import available_cores
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
    """Memory of all processes below it and its Postgres together (PSS), sampled; mapped weights
    count."""

    def figures(self) -> dict[str, float]:
        return {
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "peak_mb": self.peak_mb,
        }


def timed(command: list[str], environment: dict[str, str], data: Path) -> Timed:
    """Run a command, which uses the Postgres of a data folder, to its end."""
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=said)
        peaks = [0]
        watcher = threading.Thread(target=watch_memory, args=(process.pid, data, peaks))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (printed, said):
            stream.seek(0)
        assert process.returncode == 0, said.read()
        cpu_seconds = usage.ru_utime + usage.ru_stime
        return Timed(printed.read(), seconds, cpu_seconds, max(peaks))


def watch_memory(pid: int, data: Path, peaks: list[int]) -> None:
    """Add the MB of a process, all below it and the Postgres of a folder to ``peaks``.

    Until the process ends. A Postgres that another process started counts too.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        command = psutil.Process(pid)
        while command.is_running() and command.status() != psutil.STATUS_ZOMBIE:
            roots = [command]
            # The file is missing, or empty for a moment, until the server has started.
            with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
                roots.append(
                    psutil.Process(int((data / "postmaster.pid").read_text().split("\n")[0]))
                )
            total = 0
            for process in {*roots, *(one for root in roots for one in below(root))}:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_full_info().pss
            peaks.append(total >> 20)
            time.sleep(0.25)


def below(process: psutil.Process) -> list[psutil.Process]:
    """All processes below one, which may be gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


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


def base_model(folder: Path) -> str:
    """The base model with random weights, both towers whole."""
    build(folder, "siglip2-base-patch16-256", whole_text_tower=True)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        text = (MODEL_FOLDER / name).read_text()
        (folder / name).write_text(text.replace(": 72", ": 256"))  # the side of its pictures
    return str(folder)


def measure(videos: int, model: str, folder: Path, pixeltable: str | None) -> dict[str, Any]:
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
    server = EmbeddedPostgres(folder / "home")
    data = folder / "home" / "postgres"
    ingested = timed(ingest, environment, data)
    assert server.data == data
    assert len(json.loads(ingested.printed)["indexed"]) == videos, ingested.printed
    with server.lease():
        status = json.loads(timed([*command, "status", "--json"], environment, data).printed)
        search = [*command, "search", scenes[0].caption, "--json"]
        small = {
            "status": median(
                timed([*command, "status", "--json"], environment, data) for _ in range(5)
            ),
            "search": median(timed(search, environment, data) for _ in range(5)),
        }
    vectors = status["vectors"]
    assert vectors == status["frames"] >= videos * SECONDS
    stages = stage_seconds(server)
    stages["rest"] = round(ingested.seconds - sum(stages.values()), 2)
    with server.lease() as url:
        script = [sys.executable, str(Path(__file__).with_name("plain_script.py")), model, url]
        paths = sorted(map(str, films.iterdir()))
        plain = timed([*script, *paths], environment, data)
    assert int(plain.printed) >= videos * SECONDS, plain.printed
    others = {}
    if pixeltable is not None:
        script = [pixeltable, str(Path(__file__).with_name("pixeltable_script.py"))]
        home = {**environment, "PIXELTABLE_HOME": str(folder / "pixeltable")}
        pgdata = folder / "pixeltable" / "pgdata"
        done = timed([*script, *paths], home, pgdata)
        server_file = pgdata / "postmaster.pid"
        if server_file.exists():  # it lets its Postgres run on
            os.kill(int(server_file.read_text().split()[0]), signal.SIGINT)
        embedded = int(done.printed.split()[-1])
        assert embedded >= videos * SECONDS, done.printed
        others["pixeltable"] = done.figures() | {"vectors": embedded}
    return {
        "videos": videos,
        "vectors": vectors,
        "pipeline": ingested.figures() | {"stages": stages},
        **{name: run.figures() for name, run in small.items()},
        "plain_script": plain.figures() | {"vectors": int(plain.printed)},
        **others,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[10, 100])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", default=str(MODEL_FOLDER), help="a folder or a hub id")
    model.add_argument("--base", action="store_true", help="the base model, random weights")
    parser.add_argument("--pixeltable", metavar="PYTHON", help="a Python that has Pixeltable")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "dagster", "av")},
        "cores": available_cores(),
        "load_before": os.getloadavg(),
        "runs": [],
    }
    with tempfile.TemporaryDirectory(prefix="siglip-model-") as built:
        model_name = base_model(Path(built)) if arguments.base else arguments.model
        report["model"] = "base, random weights" if arguments.base else model_name
        for videos in arguments.videos:
            with tempfile.TemporaryDirectory(prefix="siglip-whole-") as folder:
                run = measure(videos, model_name, Path(folder), arguments.pixeltable)
                report["runs"].append(run)
    report["load_after"] = os.getloadavg()
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
