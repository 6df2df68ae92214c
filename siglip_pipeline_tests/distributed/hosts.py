"""A cluster of hosts: what they share is Postgres over TCP, a broker and a bucket."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import fsspec
import psycopg
from psycopg import sql

from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.services.home import prepare_dagster_home
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, process_environment, variable_of
from siglip_pipeline.store.database import (
    LOCK_VIDEO,
    Database,
    DatabaseOptions,
    migrate,
    open_database,
)
from siglip_pipeline_tests.distributed.services import Broker, end, running, wait_until
from siglip_pipeline_tests.s3 import s3_environment, s3_options, s3_server

UPLOADS, FRAMES = "uploads", "frames"
READY = " ready."
LOADED = "loaded SiglipModel("
RUN_SECONDS = 420


@dataclass
class Host:
    """A machine: a working folder, a SIGLIP_HOME, a log; none of them anyone else's."""

    name: str
    folder: Path
    environment: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.process

    def start_worker(self, queue: str, *, wait: bool = True, seconds: float = 420) -> None:
        before = self.said.count(READY)
        process = self.start(
            "siglip_pipeline.cli.main", "worker", "--queue", queue, "--name", self.name
        )

        if not wait:
            return

        def ready() -> bool:
            assert process.poll() is None, self.said[-4000:]
            return self.said.count(READY) > before

        wait_until(ready, f"worker {self.name} is ready", seconds)

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)
            self.process = None


@dataclass
class Cluster:
    """The shared services, and hosts made on demand."""

    folder: Path
    settings: Settings
    broker: Broker
    postgres: EmbeddedPostgres
    s3: dict[str, Any]
    hosts: dict[str, Host] = field(default_factory=dict)

    def host(self, name: str) -> Host:
        """The host of this name; made when it is first asked for."""
        if name not in self.hosts:
            folder = self.folder / name
            (folder / "tmp").mkdir(parents=True)
            home = folder / "home"
            settings = self.settings.model_copy(update={"home": home})
            self.hosts[name] = Host(
                name,
                folder,
                {
                    **os.environ,
                    **settings.environment(),
                    **s3_environment(self.s3["endpoint_url"]),
                    "DAGSTER_HOME": str(prepare_dagster_home(settings)),
                    "TMPDIR": str(folder / "tmp"),
                    "OMP_NUM_THREADS": "1",
                },
            )
        return self.hosts[name]

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """Dagster's instance, as the control host sees it."""
        home = self.host("control").environment["DAGSTER_HOME"]
        with (
            process_environment(self.settings, DAGSTER_HOME=home),
            dg.DagsterInstance.get() as instance,
        ):
            yield instance

    def start_run(self, name: str, asset: str, *ends: str, part: str | None = None) -> Host:
        """A run of an asset in a process and a home of its own, as on Dagster's host."""
        host = self.host(name)
        if part is not None:
            host.environment[variable_of("part")] = part
        host.start("siglip_pipeline_tests.distributed.run_assets", asset, *ends)
        return host

    def bucket(self, name: str) -> Any:
        """The file system, and a path prefix, of one of the buckets."""
        return fsspec.filesystem("s3", **self.s3), name

    def upload(self, file: Path, name: str | None = None) -> None:
        fs, bucket = self.bucket(UPLOADS)
        fs.put_file(str(file), f"{bucket}/{name or file.name}")

    def rows(self) -> dict[str, list[tuple[int, float]]]:
        """(frame_index, time_seconds) of every stored vector, by video."""
        with (
            open_database(DatabaseOptions.from_settings(self.settings)) as database,
            database.connection() as connection,
        ):
            found: dict[str, list[tuple[int, float]]] = {}
            tables = connection.execute(
                "SELECT tablename FROM pg_tables WHERE tablename ~ '^frames_[0-9]+$'"
            ).fetchall()
            for (table,) in tables:
                for video, frame, seconds in connection.execute(
                    sql.SQL(
                        "SELECT path, frame_index, time_seconds FROM {}"
                        " JOIN videos USING (video_id) ORDER BY 1, 2"
                    ).format(sql.Identifier(table))
                ):
                    found.setdefault(video, []).append((frame, seconds))
        return found

    @contextmanager
    def held(self, video: str) -> Iterator["psycopg.Connection[tuple[int]]"]:
        """Hold a video's lock: the step that writes its vectors waits for it."""
        assert self.settings.database_url is not None
        with psycopg.connect(self.settings.database_url.reveal(), autocommit=True) as connection:
            (video_id,) = connection.execute(
                "SELECT video_id FROM videos WHERE path = %s", [video]
            ).fetchone() or (None,)
            connection.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_VIDEO, video_id])
            yield connection

    def stop(self) -> None:
        for host in self.hosts.values():
            if host.process is not None:
                host.process.terminate()
        for host in self.hosts.values():
            host.stop()


def await_waiting_step(connection: "psycopg.Connection[tuple[int]]") -> None:
    """Return when a step waits for a lock that the connection holds."""

    def waiting() -> bool:
        row = connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        ).fetchone()
        return row is not None and row[0] > 0

    wait_until(waiting, "a step waits for the lock", RUN_SECONDS)


@contextmanager
def cluster(folder: Path, broker: Broker, **overrides: Any) -> Iterator[Cluster]:
    """Postgres over TCP, the broker and an S3 server, without hosts yet; all stopped on leaving."""
    with ExitStack() as stack:
        stack.enter_context(running(broker))
        # Not below pytest's folders: the user that root runs Postgres as cannot enter those.
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="siglip-tests-")))
        home.chmod(0o755)
        postgres = EmbeddedPostgres(home, port=free_port())
        stack.enter_context(postgres.lease())
        with psycopg.connect(postgres.tcp_url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE dagster")
        with Database(postgres.tcp_url()) as database:
            migrate(database)
        s3 = stack.enter_context(_s3())
        settings = Settings.load(
            home=folder / "control",
            uploads=f"s3://{UPLOADS}",
            frame_store=f"s3://{FRAMES}",
            model_name=str(MODEL_FOLDER),
            device="cpu",
            database_url=postgres.tcp_url(),
            dagster_postgres_url=postgres.tcp_url("dagster").replace(
                "postgresql://", "postgresql+psycopg2://"
            ),
            executor="celery",
            celery_broker_url=broker.url,
            decode_workers=1,
            uploads_settle_seconds=0,
            **overrides,
        )
        made = Cluster(folder, settings, broker, postgres, s3)
        stack.callback(made.stop)
        yield made


@contextmanager
def _s3() -> Iterator[dict[str, Any]]:
    with s3_server() as address:
        options = s3_options(address)
        fs = fsspec.filesystem("s3", **options)
        for bucket in (UPLOADS, FRAMES):
            fs.mkdir(bucket)
        yield options
