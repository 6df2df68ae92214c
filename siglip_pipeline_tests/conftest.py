"""Fixtures for all tests. Postgres is real: one embedded server per session, started on demand.

A test gets a database of its own, copied from a migrated template in some ten milliseconds.
"""

import fcntl
import functools
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test asks the network

import hypothesis
import psycopg
import pytest
from psycopg import sql

from siglip_pipeline.cpu import available_cores
from siglip_pipeline.demo.films import DemoVideo, render_demo_videos
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.embedded_postgres import binaries
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.files import private_files
from siglip_pipeline.services.signals import heed_interrupts
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database, migrate
from siglip_pipeline.video import child_pool
from siglip_pipeline.video.children import Child
from siglip_pipeline_tests.decoders import end_kept_children, kept_child

TEMPLATE = "template_migrated"
UMASK = private_files.current_umask()

# By default an example may take 0.2 s of the clock: beside other work that says nothing.
hypothesis.settings.register_profile(
    "beside other work",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("beside other work")


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start must end on SIGINT, even in `make test &`."""
    heed_interrupts()
    gc.disable()  # importing makes no garbage
    sys.addaudithook(refuse_other_machines)
    # Hundreds of child processes import the package: compile it once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # Several processes share the cores: threads of torch would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # What all homes of a user share: tests share it with one another alone.
    os.environ["SIGLIP_CACHE"] = cache = tempfile.mkdtemp(prefix="siglip-cache-")
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


def refuse_other_machines(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse connections that leave this machine: no test asks the network.

    Raises:
        RuntimeError: names the address.
    """
    if event == "socket.connect" and isinstance(address := arguments[1], tuple):
        host = str(address[0])
        if not (host.startswith("127.") or host in ("localhost", "::1", "0.0.0.0", "::")):
            raise RuntimeError(f"a test reaches for {address}; only this machine may be asked")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests often wait for a process, a server or a clock."""
    return available_cores() + 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: none is left to run alone at the end, on one core."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What was imported stays: each look for garbage would go through all of it."""
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long tests that make up their cases go on."""
    group = parser.getgroup("siglip_pipeline")
    group.addoption(
        "--fuzz",
        type=int,
        default=0,
        metavar="N",
        help="cases of each test that makes up hostile input; default: few",
    )
    group.addoption("--fuzz-seed", type=int, default=1, help="for other cases than the last time")
    group.addoption(
        "--conformance-all",
        action="store_true",
        help="compare all combinations of video with ffmpeg; default: a third of them",
    )
    group.addoption("--conformance-seed", type=int, default=1, help="which third")


def _postgres_version(folder: Path) -> str:
    """What ``postgres --version`` says, e.g. ``postgres (PostgreSQL) 18.4``."""
    done = subprocess.run(
        [str(folder / "postgres"), "--version"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def pytest_report_header() -> str:
    """Which Postgres the tests speak to; read from files, nothing is started for it."""
    account = binaries.server_account()
    install = binaries.find_binaries(account).parent
    control = (install / "share" / "postgresql" / "extension" / "vector.control").read_text()
    vector = control.partition("default_version = '")[2].partition("'")[0]
    return (
        f"postgres: {_postgres_version(install / 'bin')}, pgvector {vector}, psycopg "
        f"{version('psycopg')}"
    )


@pytest.fixture(autouse=True)
def _same_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands that run in this process close files to others; the next test starts as usual.

    As the session did: commands that fixtures of modules run come before this.
    """
    os.umask(UMASK)
    monkeypatch.setattr(private_files, "_usual_umask", None)
    yield
    os.umask(UMASK)


@pytest.fixture(scope="session", autouse=True)
def _decoders() -> Iterator[None]:
    """Batches that are decoded in this process take over the children of earlier ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child_pool, "Child", kept_child)
        yield
    end_kept_children()


@pytest.fixture
def own_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children as in production, for tests that look at them: each batch has its own."""
    end_kept_children()
    monkeypatch.setattr(child_pool, "Child", Child)


class QuickPostgres(EmbeddedPostgres):
    """A server for many small databases that flushes nothing: its data ends with the session."""

    def configuration(self) -> dict[str, str]:
        flushes = ("fsync", "synchronous_commit", "full_page_writes")
        quick = dict.fromkeys(flushes, "off")
        # All of them are searched for the pages of a database that is copied or dropped.
        quick["shared_buffers"] = "64MB"
        return super().configuration() | quick


@contextmanager
def folder_for_postgres(parent: Path | None = None) -> Iterator[Path]:
    """A folder that the user that root runs Postgres as can enter; those of pytest are closed.

    In one that it cannot enter, a home's cluster lies below ``/var/lib``, and stays there.
    """
    with tempfile.TemporaryDirectory(prefix="siglip-tests-", dir=parent) as made:
        Path(made).chmod(0o755)
        yield Path(made)


def _memory() -> Path | None:
    """A file system in memory, where one has room.

    A database is 300 files. After many were deleted, ext4 takes up to ten times as long to make
    another, as it passes over inodes that were deleted in the last minutes.
    """
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
    return memory if has_room and os.access(memory, os.W_OK) else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The session's server, with a migrated template database."""
    with folder_for_postgres(_memory()) as folder:
        server = QuickPostgres(folder)
        with server.lease():
            admin = _admin(server.url("postgres"))
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
            with Database(server.url(TEMPLATE)) as template:
                migrate(template)
            yield server
            admin.close()


@contextmanager
def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder of all processes of a run, for one at a time: to be copied, not changed."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shared / name


Films = TypeVar("Films")


def shared_films(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    uploads: Path,
    render: Callable[[Path], Films],
) -> Films:
    """The films in a new folder of uploads, copied from those that a run renders once."""
    with shared_folder(tmp_path_factory, name) as folder:
        render(folder)
        shutil.copytree(folder, uploads)
    return render(uploads)  # nothing: they are there


@pytest.fixture(scope="session")
def demo_videos(tmp_path_factory: pytest.TempPathFactory) -> list[DemoVideo]:
    """The demo's films, which the processes of a run render once."""
    with shared_folder(tmp_path_factory, "demo_videos") as folder:
        return render_demo_videos(folder)


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of a database of the test's own, without our schema."""
    with fresh_database(postgres, "template1") as url:
        yield url


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of a migrated database of the test's own."""
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A pool on a migrated database of the test's own."""
    with Database(database_url) as opened:
        yield opened


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres) -> Iterator[Database]:
    """A pool on a migrated database that the tests of one module share."""
    with fresh_database(postgres) as url, Database(url) as opened:
        yield opened


@contextmanager
def shared_collection(
    postgres: EmbeddedPostgres,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    fill: Callable[[Path, str], None],
) -> Iterator[tuple[Path, str]]:
    """A home and the URL of its database, which the processes of a run fill once, and then copy.

    Args:
        fill: indexes in a new home and a migrated database; called in one process of a run.
    """
    home = tmp_path_factory.mktemp(name)

    def run(program: str, *arguments: str | Path) -> None:
        folder = binaries.find_binaries(binaries.server_account())
        subprocess.run([str(folder / program), *map(str, arguments)], check=True)

    with ExitStack() as stack:
        with shared_folder(tmp_path_factory, name) as shared:
            if shared.exists():
                url = stack.enter_context(fresh_database(postgres, "template1"))
                run("pg_restore", "--exit-on-error", "-d", url, shared / "database")
                shutil.copytree(shared / "home", home, dirs_exist_ok=True)
            else:
                url = stack.enter_context(fresh_database(postgres))
                fill(home, url)
                draft = Path(tempfile.mkdtemp(dir=shared.parent))
                run("pg_dump", "-Fc", "--statistics", "-f", draft / "database", url)
                shutil.copytree(home, draft / "home")
                draft.rename(shared)
        yield home, url


def collection_settings(home: Path, database_url: str, **values: object) -> Settings:
    """Settings of a collection in a folder of its own: its uploads, and the demo's model."""
    uploads = home / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    return Settings.load(
        **{
            "home": home,
            "uploads": str(uploads),
            "model_name": str(MODEL_FOLDER),
            "database_url": database_url,
            "http_requests_per_second": 0,
        }
        | values
    )


@functools.cache
def _admin(url: str) -> psycopg.Connection:
    """The session's connection that makes and drops databases: one for each takes as long again."""
    return psycopg.connect(url, autocommit=True)


_ended: list[sql.Identifier] = []
"""Databases of the session's server whose tests are over."""


@contextmanager
def fresh_database(postgres: EmbeddedPostgres, template: str = TEMPLATE) -> Iterator[str]:
    """URL of a new database, dropped when the next but one is made.

    By then nobody is connected to it any more: otherwise Postgres looks again after 0.1 s.
    """
    database = f"test_{uuid.uuid4().hex}"
    name = sql.Identifier(database)
    admin = _admin(postgres.url("postgres"))
    drop_ended_databases(admin, but=1)
    # By files: where nothing is flushed, that takes half the time of a copy through the log.
    copied = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    admin.execute(copied.format(name, sql.Identifier(template)))
    try:
        yield postgres.url(database)
    finally:
        _ended.append(name)


def drop_ended_databases(admin: psycopg.Connection, *, but: int = 0) -> None:
    """Drop the databases whose tests are over, but the last ones."""
    while len(_ended) > but:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(_ended[0]))
        _ended.pop(0)
