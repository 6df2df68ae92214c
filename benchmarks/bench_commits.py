"""Is `/api/search` slower than at an earlier commit? Latency, and CPU time of the service.

Both services run at once, each from a checkout and over a collection of its own, of the same made
footage (``vectors.py``). They are asked in turns, query by query, over one kept connection each:
as a plain client asks, and as browsers ask, which take gzip. CPU time is that of the service's
process, without Postgres; on a busy machine it says more than latency.

    python benchmarks/bench_commits.py COMMIT [--json] [--queries N] [--rounds N] [--frames N]
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped,unused-ignore]
from bench_search import over_http, timed
from http_service import running
from store_report import Case, print_report

from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment

ROOT = Path(__file__).resolve().parent.parent
DIM = 768
GOAL = 1.0
ASKED = {"plain": "", "gzip": "Accept-Encoding: gzip\r\n"}

SERVE = """
import sys
sys.path[:0] = [f"{sys.argv[1]}/benchmarks", sys.argv[1]]
import bench_search
from bench_search import Footage, Settings, open_database
from siglip_pipeline.store.database import DatabaseOptions
frames, queries, port = map(int, sys.argv[2:])
footage = Footage(frames, dim=%d)
settings = Settings.load(index_min_recall=0.0, index_recall_queries=20, index_kind="moments")
with open_database(DatabaseOptions.from_settings(settings)) as database:
    bench_search.collection(footage, database, settings)
    bench_search.serve(footage, queries, database.url.reveal(), str(port))
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15, help="how often each query is asked")
    parser.add_argument("--frames", type=int, default=10_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="siglip-commits-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        before = checkout(options.commit, folder / "before")
        ports, processes = [], []
        for place, home in ((ROOT, "home"), (before, "home-before")):
            port = free_port()
            serving = service(place, folder / home, options.frames, options.queries, port)
            processes.append(stack.enter_context(serving))
            ports.append(port)
        cases = [
            case
            for kind, header in ASKED.items()
            for case in measure(kind, header, ports, processes, options)
        ]
    print_report("commits", cases, as_json=options.json)


def checkout(commit: str, folder: Path) -> Path:
    """The files of a commit, in a folder of their own."""
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@contextmanager
def service(
    place: Path, home: Path, frames: int, queries: int, port: int
) -> Iterator[psutil.Process]:
    """The service of a checkout, over a collection that it makes itself."""
    home.mkdir(mode=0o755)
    settings = Settings.load(home=home, database_url=None)
    command = [sys.executable, "-c", SERVE % DIM, str(place), str(frames), str(queries), str(port)]
    environment = child_environment(settings)
    with running(command, f"http://127.0.0.1:{port}/healthz", environment=environment) as process:
        yield process


def measure(
    kind: str,
    header: str,
    ports: Sequence[int],
    processes: Sequence[psutil.Process],
    options: argparse.Namespace,
) -> list[Case]:
    with ExitStack() as stack:
        asks = [stack.enter_context(over_http(port, header)) for port in ports]
        timed(asks, range(options.queries))
        asked = list(range(options.queries)) * options.rounds
        began = [cpu_seconds(process) for process in processes]
        own, before = timed(asks, asked)
        spent = [cpu_seconds(p) - start for p, start in zip(processes, began, strict=True)]
    figures = {
        f"{kind}_search_p50": (float(np.median(own)), float(np.median(before))),
        f"{kind}_search_p95": (float(np.percentile(own, 95)), float(np.percentile(before, 95))),
        f"{kind}_cpu_a_request": tuple(1000 * seconds / len(asked) for seconds in spent),
    }
    return [
        Case(
            name=name,
            value=value,
            unit="milliseconds",
            reference=f"commit {options.commit}",
            reference_value=reference,
            goal=GOAL,
            better="lower",
            note=f"{options.frames} frames, {len(asked)} requests to each",
        )
        for name, (value, reference) in figures.items()
    ]


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
