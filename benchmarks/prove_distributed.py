"""Do several hosts index a collection once and exactly, and do they outlive faults?

One control host (`siglip-pipeline up`: code server, webserver, daemon), two CPU and two embedding
workers, each a process with a working folder and a SIGLIP_HOME of its own; they share Postgres over
TCP, Redis and an S3 server. Distinct rendered films arrive in waves. With --faults an embedding
worker is killed in the middle of a step and started again, the broker is away for 20 s, and
Postgres is restarted.

    python benchmarks/prove_distributed.py [--videos 40] [--faults] [--json]
"""

import argparse
import json
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from store_report import machine, versions

from siglip_pipeline.demo.scenes import demo_scenes, render_video
from siglip_pipeline.errors import StoreError
from siglip_pipeline.launcher import free_port
from siglip_pipeline.queues import DEFAULT_QUEUE, EMBEDDING_QUEUE
from siglip_pipeline.settings import process_environment
from siglip_pipeline.store.database import open_database
from siglip_pipeline_tests.distributed.hosts import LOADED, READY, Cluster, Host, cluster
from siglip_pipeline_tests.distributed.services import RedisServer, wait_until

WAVE = 5
BROKER_AWAY_SECONDS = 20
LIMIT_SECONDS = 3600
DECODERS = ("decoder1", "decoder2")
EMBEDDERS = ("embedder1", "embedder2")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="siglip-hosts-") as name:
        folder = Path(name)
        with cluster(
            folder,
            RedisServer(folder / "broker"),
            celery_visibility_seconds=30,
            page_port=free_port(),
            dagster_port=free_port(),
        ) as hosts:
            document = prove(hosts, folder, options.videos, faults=options.faults)
    print(json.dumps(document, indent=1))
    return 0 if document["exact"] else 1


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def prove(hosts: Cluster, folder: Path, videos: int, *, faults: bool) -> dict[str, Any]:
    expected = render(folder, videos)
    for name in DECODERS:
        hosts.host(name).start_worker(DEFAULT_QUEUE, wait=False)
    for name in EMBEDDERS:
        hosts.host(name).start_worker(EMBEDDING_QUEUE, wait=False)
    control = hosts.host("control")
    control.start("siglip_pipeline.cli", "up")
    wait_until(lambda: "Running." in control.said, "up is running", 600)
    log("the control host and four workers run")
    began = time.monotonic()
    names = sorted(expected)
    todo: list[tuple[float, Callable[[], str]]] = []
    if faults:
        todo = [
            (0.2, lambda: kill_an_embedder(hosts)),
            (0.4, lambda: stop_the_broker(hosts)),
            (0.6, lambda: restart_postgres(hosts)),
        ]
    events = []
    for start in range(0, videos, WAVE):
        wave = names[start : start + WAVE]
        for name in wave:
            hosts.upload(folder / name)
        wait_until(partial(are_registered, hosts, wave), "the wave is seen", 600)
        log(f"{start + len(wave)} uploaded, {len(indexed(hosts))} indexed")
        while todo and (start + len(wave)) >= todo[0][0] * videos:
            events.append(todo.pop(0)[1]())
            log(events[-1])
    wait_until(lambda: len(indexed(hosts)) == videos, "all are indexed", LIMIT_SECONDS)
    seconds = time.monotonic() - began
    log("all are indexed; waiting for the last run to end")
    wait_until(lambda: not in_progress(hosts), "no run is in progress", 900)
    return report(hosts, expected, seconds, events)


def render(folder: Path, videos: int) -> dict[str, list[tuple[int, float]]]:
    """Distinct films of 2 to 5 seconds, 5 frames a second; the rows that each must give."""
    scenes = demo_scenes()
    expected = {}
    for number in range(videos):
        seconds = 2 + number % 4
        name = f"film{number:03}.mp4"
        scene = scenes[number % len(scenes)]
        render_video(folder / name, [scene], seconds_per_scene=seconds, fps=5, size=(160, 120))
        expected[name] = [(5 * second, float(second)) for second in range(seconds)]
    return expected


def patiently(query: Callable[[], Any]) -> Any:
    """The answer, once the database is there: it is restarted on purpose."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return query()
        except StoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def are_registered(hosts: Cluster, names: Sequence[str]) -> bool:
    return set(names) <= {row[0] for row in rows(hosts, "SELECT path FROM videos")}


def indexed(hosts: Cluster) -> set[str]:
    query = "SELECT DISTINCT path FROM ingests JOIN videos USING (video_id)"
    return {row[0] for row in rows(hosts, query)}


def rows(hosts: Cluster, query: str) -> list[tuple[Any, ...]]:
    def ask() -> list[tuple[Any, ...]]:
        with open_database(hosts.settings, migrate=False) as db, db.connection() as connection:
            return connection.execute(query.encode()).fetchall()

    found: list[tuple[Any, ...]] = patiently(ask)
    return found


def runs(hosts: Cluster) -> list[dg.DagsterRun]:
    home = hosts.host("control").environment["DAGSTER_HOME"]
    with (
        process_environment(hosts.settings, DAGSTER_HOME=home),
        dg.DagsterInstance.get() as instance,
    ):
        return list(instance.get_runs())


def in_progress(hosts: Cluster) -> bool:
    return any(not run.is_finished for run in runs(hosts))


def at_work(host: Host) -> bool:
    """Whether the worker has taken a step that it has not finished."""
    ended = host.said.count("] succeeded in") + host.said.count("] raised unexpected")
    return host.said.count("] received") > ended


def kill_an_embedder(hosts: Cluster) -> str:
    embedders = [hosts.host(name) for name in EMBEDDERS]
    wait_until(lambda: any(map(at_work, embedders)), "an embedding worker is at work", 600)
    victim = next(host for host in embedders if at_work(host))
    assert victim.process is not None
    victim.process.send_signal(signal.SIGKILL)
    victim.process.wait()
    victim.start_worker(EMBEDDING_QUEUE)
    return f"{victim.name} was killed in a step, and started again"


def stop_the_broker(hosts: Cluster) -> str:
    hosts.broker.stop()
    time.sleep(BROKER_AWAY_SECONDS)
    hosts.broker.start()
    return f"the broker was away for {BROKER_AWAY_SECONDS} s"


def restart_postgres(hosts: Cluster) -> str:
    began = time.monotonic()
    hosts.postgres.stop(force=True)
    hosts.postgres.start()
    return f"Postgres was restarted, in {time.monotonic() - began:.0f} s"


def report(
    hosts: Cluster,
    expected: dict[str, list[tuple[int, float]]],
    seconds: float,
    events: list[str],
) -> dict[str, Any]:
    stored = patiently(hosts.rows)
    (ingests,) = rows(hosts, "SELECT count(*) FROM ingests")[0]
    statuses = Counter(run.status.value for run in runs(hosts))
    workers = {}
    for name in (*DECODERS, *EMBEDDERS):
        said = hosts.host(name).said
        workers[name] = {
            "started": said.count(READY),
            "steps_taken": said.count("] received"),
            "model_loaded": said.count(LOADED),
        }
    return {
        "benchmark": "distributed",
        "machine": machine(),
        "versions": versions(),
        "videos": len(expected),
        "exact": stored == expected and ingests == len(expected),
        "rows": sum(map(len, stored.values())),
        "ingests": ingests,
        "seconds": round(seconds),
        "faults": events,
        "runs": dict(statuses),
        "workers": workers,
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    sys.exit(main())
