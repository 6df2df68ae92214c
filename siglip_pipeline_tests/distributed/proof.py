"""A collection that several hosts index while faults strike them, and the checks of the result.

One control host (`siglip-pipeline up`: code server, webserver, daemon) and workers, each a process
with a working folder and a SIGLIP_HOME of its own. Distinct rendered films arrive in waves.
"""

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import dagster as dg

from siglip_pipeline.defs.queues import DEFAULT_QUEUE, EMBEDDING_QUEUE
from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.errors import StoreError
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import variable_of
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline_tests.distributed.hosts import LOADED, READY, Cluster, Host, cluster
from siglip_pipeline_tests.distributed.services import Broker, wait_until

WAVE = 5
BROKER_AWAY_SECONDS = 20
LIMIT_SECONDS = 3600

Rows = dict[str, list[tuple[int, float]]]


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass
class Fault:
    """Something that happens once this share of the films has been uploaded."""

    share: float
    strike: Callable[["Proof"], str]


class Proof:
    """Uploads films, lets faults strike, and waits until all is indexed and no run is left."""

    def __init__(
        self, hosts: Cluster, *, videos: int, decoders: int, embedders: int, part: str | None
    ) -> None:
        self.cluster = hosts
        self.decoders = [hosts.host(f"decoder{number + 1}") for number in range(decoders)]
        self.embedders = [hosts.host(f"embedder{number + 1}") for number in range(embedders)]
        self.part = part
        self.expected = _render(hosts.folder, videos, part)
        self.events: list[str] = []
        self.seconds = 0.0

    @classmethod
    @contextmanager
    def started(
        cls,
        folder: Path,
        broker: Broker,
        *,
        videos: int,
        decoders: int = 2,
        embedders: int = 2,
        part: str | None = None,
        visibility_seconds: int = 30,
    ) -> Iterator[Self]:
        """A proof whose services and hosts run; all are stopped on leaving.

        Args:
            folder: of everything but Postgres; it stays.
            broker: not started yet.
            videos: how many films.
            decoders: CPU workers.
            embedders: workers with the model.
            part: of the collection, that the films lie in and the control host serves; the
                workers serve all.
            visibility_seconds: ``SIGLIP_CELERY_VISIBILITY_SECONDS``.
        """
        with cluster(
            folder,
            broker,
            celery_visibility_seconds=visibility_seconds,
            page_port=free_port(),
            dagster_port=free_port(),
        ) as hosts:
            proof = cls(hosts, videos=videos, decoders=decoders, embedders=embedders, part=part)
            proof._start()
            yield proof

    def _start(self) -> None:
        for host in self.decoders:
            host.start_worker(DEFAULT_QUEUE, wait=False)
        for host in self.embedders:
            host.start_worker(EMBEDDING_QUEUE, wait=False)
        control = self.cluster.host("control")
        if self.part is not None:
            control.environment[variable_of("part")] = self.part
        control.start("siglip_pipeline.cli.main", "up")
        wait_until(lambda: "Running." in control.said, "up is running", 600)
        log("the control host and the workers run")

    def run(self, faults: Sequence[Fault] = ()) -> None:
        """Upload everything, wave by wave; return when the last run has ended."""
        began = time.monotonic()
        names = sorted(self.expected)
        pending = sorted(faults, key=lambda fault: fault.share)
        for start in range(0, len(names), WAVE):
            wave = names[start : start + WAVE]
            for name in wave:
                self.cluster.upload(self.cluster.folder / Path(name).name, name)
            wait_until(partial(self._registered, wave), "the wave is seen", 600)
            uploaded = start + len(wave)
            log(f"{uploaded} uploaded, {len(self.indexed())} indexed")
            while pending and uploaded >= pending[0].share * len(names):
                self.events.append(pending.pop(0).strike(self))
                log(self.events[-1])
        wait_until(lambda: len(self.indexed()) == len(names), "all are indexed", LIMIT_SECONDS)
        self.seconds = time.monotonic() - began
        log("all are indexed; waiting for the last run to end")
        wait_until(lambda: all(r.is_finished for r in self.runs()), "no run is in progress", 900)

    def _registered(self, names: Sequence[str]) -> bool:
        return set(names) <= {row[0] for row in self.rows("SELECT path FROM videos")}

    def indexed(self) -> set[str]:
        query = "SELECT DISTINCT path FROM ingests JOIN videos USING (video_id)"
        return {row[0] for row in self.rows(query)}

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query gives, once the database is there: it is restarted on purpose."""
        deadline = time.monotonic() + 120
        while True:
            try:
                with (
                    open_database(
                        DatabaseOptions.from_settings(self.cluster.settings), schema="any"
                    ) as database,
                    database.connection() as connection,
                ):
                    return connection.execute(query.encode()).fetchall()
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def runs(self) -> list[dg.DagsterRun]:
        with self.cluster.instance() as instance:
            return list(instance.get_runs())

    def report(self) -> dict[str, Any]:
        """What is stored, what became of the runs, and what each worker did."""
        stored = self.cluster.rows()
        (ingests,) = self.rows("SELECT count(*) FROM ingests")[0]
        workers = {}
        for host in (*self.decoders, *self.embedders):
            workers[host.name] = {
                "started": host.said.count(READY),
                "steps_taken": host.said.count("] received"),
                "model_loaded": host.said.count(LOADED),
            }
        return {
            "videos": len(self.expected),
            "exact": stored == self.expected and ingests == len(self.expected),
            "rows": sum(map(len, stored.values())),
            "ingests": ingests,
            "seconds": round(self.seconds),
            "faults": self.events,
            "runs": dict(Counter(run.status.value for run in self.runs())),
            "failed_runs": self._failed_runs(),
            "model_loaded_once_per_life": all(
                host["model_loaded"] <= host["started"] for host in workers.values()
            ),
            "workers": workers,
        }

    def _failed_runs(self) -> list[dict[str, Any]]:
        """Runs that failed: why, and the run that took their place by itself, if one did."""
        with self.cluster.instance() as instance:
            runs = list(instance.get_runs())
            return [
                {
                    "run": run.run_id[:8],
                    "assets": sorted(key.to_user_string() for key in run.asset_selection or ()),
                    "reasons": [
                        _reason(entry) for entry in instance.all_logs(run.run_id, of_type=_FAILURES)
                    ],
                    "replaced_by": [
                        f"{other.run_id[:8]} {other.status.value}"
                        for other in runs
                        if other.parent_run_id == run.run_id
                    ],
                }
                for run in runs
                if run.status == dg.DagsterRunStatus.FAILURE
            ]


_FAILURES = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.PIPELINE_FAILURE}


def kill_an_embedder(proof: Proof) -> str:
    wait_until(lambda: any(map(at_work, proof.embedders)), "an embedding worker is at work", 600)
    victim = next(host for host in proof.embedders if at_work(host))
    assert victim.process is not None
    victim.process.send_signal(signal.SIGKILL)
    victim.process.wait()
    victim.start_worker(EMBEDDING_QUEUE)
    return f"{victim.name} was killed in a step, and started again"


def stop_the_broker(proof: Proof) -> str:
    proof.cluster.broker.stop()
    time.sleep(BROKER_AWAY_SECONDS)
    proof.cluster.broker.start()
    return f"the broker was away for {BROKER_AWAY_SECONDS} s"


def restart_postgres(proof: Proof, *, away_seconds: float = 0) -> str:
    began = time.monotonic()
    proof.cluster.postgres.stop(force=True)
    time.sleep(away_seconds)
    proof.cluster.postgres.start()
    return f"Postgres was away for {time.monotonic() - began:.0f} s"


def at_work(host: Host) -> bool:
    """Whether the worker has taken a step that it has not finished."""
    ended = host.said.count("] succeeded in") + host.said.count("] raised unexpected")
    return host.said.count("] received") > ended


def _render(folder: Path, videos: int, part: str | None) -> Rows:
    """Distinct films of 2 to 5 seconds, 5 frames a second; the rows that each must give."""
    scenes = demo_scenes()
    expected = {}
    for number in range(videos):
        seconds = 2 + number % 4
        name = f"film{number:03}.mp4"
        scene = scenes[number % len(scenes)]
        render_video(folder / name, [scene], seconds_per_scene=seconds, fps=5, size=(160, 120))
        expected[f"{part}/{name}" if part else name] = [
            (5 * second, float(second)) for second in range(seconds)
        ]
    return expected


def _reason(entry: dg.EventLogEntry) -> str:
    event = entry.get_dagster_event()
    error = getattr(event.event_specific_data, "error", None)
    while error is not None and error.cause is not None:
        error = error.cause
    text = error.message if error is not None else event.message or ""
    return f"{event.event_type_value}: {text.strip()[:300]}"
