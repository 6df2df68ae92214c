"""A real `up` and a real worker with a secret in every setting: what they leave holds none.

The `up` listens for other machines, with a key; what they reach of it is looked at first.
"""

import base64
import contextlib
import html
import json
import pickle
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
import psycopg
import pytest
import uvicorn
from psycopg import sql
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from siglip_pipeline.cli import main
from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.errors import DatabaseUnavailableError, SiglipPipelineError
from siglip_pipeline.runs.dagster_api import DagsterApi
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.store.database import Database
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.conftest import drop_ended_databases, fresh_database
from siglip_pipeline_tests.processes import command_of, descendants
from siglip_pipeline_tests.s3 import s3_server
from siglip_pipeline_tests.services.test_up import cli, listening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MARK = "hunter2"
FOREIGN = {"AWS_SECRET_ACCESS_KEY": f"{MARK}-aws", "HF_TOKEN": f"hf_{MARK}"}
"""What libraries of storages and of the model hub read by themselves."""
KEY = f"{MARK}-of-enough-length"
COMMAND = [sys.executable, "-m", "siglip_pipeline.cli.main"]


@dataclass
class Neighbours:
    """Uploads behind a password, and a webhook that fails."""

    folder: Path
    port: int = field(default_factory=free_port)
    alerts: list[bytes] = field(default_factory=list)

    def app(self) -> Starlette:
        async def files(request: Request) -> Response:
            given = base64.b64encode(f"user:{MARK}".encode()).decode()
            if request.headers.get("authorization") != f"Basic {given}":
                return Response(status_code=401)
            if name := request.path_params["name"]:
                file = self.folder / name
                return FileResponse(file) if file.is_file() else Response(status_code=404)
            links = (f'<a href="{quote(f.name)}">{html.escape(f.name)}</a>' for f in self.found())
            return HTMLResponse("\n".join(links))

        async def hook(request: Request) -> Response:
            self.alerts.append(await request.body())
            return Response(status_code=500)

        return Starlette(
            routes=[
                Route("/in/{name:path}", files, methods=["GET", "HEAD"]),
                Route(f"/services/{MARK}", hook, methods=["POST"]),
            ]
        )

    def found(self) -> list[Path]:
        return sorted(file for file in self.folder.iterdir() if not file.name.startswith("."))


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbours]:
    made = Neighbours(tmp_path_factory.mktemp("in"))
    (made.folder / "broken.mp4").write_text("this is no film")
    config = uvicorn.Config(made.app(), port=made.port, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started, seconds=30)
        yield made
    finally:
        server.should_exit = True
        thread.join(timeout=30)


@contextmanager
def role(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A role with the mark for a password; its ``name:password``. Its databases go before it."""
    name = f"role_{secrets.token_hex(4)}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
        made = sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}")
        admin.execute(made.format(sql.Identifier(name), f"{MARK}-db"))
        try:
            yield f"{name}:{MARK}-db"
        finally:
            drop_ended_databases(admin)
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def settings(
    postgres: EmbeddedPostgres, neighbours: Neighbours, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Every setting that may hold a secret holds one, and works."""
    home = tmp_path_factory.mktemp("home")
    with (
        role(postgres) as user,
        fresh_database(postgres) as url,
        fresh_database(postgres, "template1") as dagster_url,
    ):
        own, dagsters = (re.sub(r"//[^@]*@", f"//{user}@", each) for each in (url, dagster_url))
        yield Settings.load(
            home=home,
            uploads=f"http://user:{MARK}@127.0.0.1:{neighbours.port}/in",
            frame_store=f"file://{home}/frames?{MARK}",
            database_url=own,
            DAGSTER_POSTGRES_URL=dagsters.replace("postgresql:", "postgresql+psycopg2:"),
            model_name=str(MODEL_FOLDER),
            host="0.0.0.0",
            api_key=KEY,
            alert_webhook=f"http://127.0.0.1:{neighbours.port}/services/{MARK}",
            celery_broker_url=f"redis://:{MARK}@127.0.0.1:9/0",
            celery_backend_url=f"redis://:{MARK}@127.0.0.1:9/1",
            dagster_port=free_port(),
            page_port=free_port(),
            log_level="DEBUG",
        )


def until(condition: Callable[[], object], *, seconds: float, pause: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this should have happened by now"
        time.sleep(pause)


@contextmanager
def running(settings: Settings, log: Path, *arguments: str) -> Iterator[psutil.Process]:
    environment = child_environment(settings) | FOREIGN
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*COMMAND, *arguments], env=environment, stdout=output, stderr=output
        )
    family = psutil.Process(process.pid)
    try:
        yield family
    finally:
        end(family)
        process.wait()


def end(family: psutil.Process) -> None:
    """End a process, as one that is asked to; then all that it has left."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = family.children(recursive=True)
        family.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            family.wait(timeout=30)
        for left in [family, *children]:
            with contextlib.suppress(psutil.Error):
                left.kill()


def tells(text: str) -> str | None:
    at = text.find(MARK)
    return None if at < 0 else f"…{text[max(0, at - 300) : at + 60]}…"


def rows(url: str) -> dict[str, str]:
    """Everything that a database holds, row by row."""
    found: dict[str, str] = {}
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        ).fetchall()
        for (table,) in tables:
            query = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))
            for number, (row,) in enumerate(connection.execute(query)):
                found[f"{table} row {number}"] = row
    return found


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "up.log"


@pytest.fixture(scope="module")
def page(settings: Settings) -> Iterator[httpx.Client]:
    """A client with the key."""
    url = f"http://127.0.0.1:{settings.page_port}"
    with httpx.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=240) as client:
        yield client


@pytest.fixture(scope="module")
def up(settings: Settings, log: Path) -> Iterator[psutil.Process]:
    with running(settings, log, "up") as family:
        until(lambda: "Running." in log.read_text(), seconds=360)
        yield family


@pytest.fixture(scope="module")
def dagster_url(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.dagster_port}"


def service(up: psutil.Process, word: str) -> psutil.Process:
    (found,) = [child for child in up.children() if word in command_of(child).split()]
    return found


def test_dagster_stays_on_loopback_when_the_page_does_not(up: psutil.Process) -> None:
    assert listening(service(up, "serve")) == {"0.0.0.0"}
    assert listening(service(up, "dagster-ui")) == {"127.0.0.1"}


def test_the_status_page_links_to_dagster_where_it_can_be_reached(
    up: psutil.Process, page: httpx.Client, dagster_url: str
) -> None:
    assert dagster_url in page.get("/status").text
    elsewhere = page.get("/status", headers={"Host": "search.example"}).text
    assert dagster_url.rpartition(":")[2] not in elsewhere


@pytest.fixture(scope="module")
def places(
    up: psutil.Process, page: httpx.Client, settings: Settings, neighbours: Neighbours
) -> dict[str, str]:
    """What was seen while a film was made searchable, by the place where it was."""
    found: dict[str, str] = {}

    def look_at_decoders() -> bool:
        for child in descendants("siglip_pipeline.video", of=up.pid):
            with contextlib.suppress(psutil.Error):
                found[f"environment of decoder {child.pid}"] = str(child.environ())
        return bool(found)

    def is_done() -> bool:
        look_at_decoders()
        answer = page.get("/api/status")
        found["/api/status"] = answer.text
        counts = answer.json()["videos"]
        return (counts["indexed"], counts["failed"]) == (1, 1)

    render_video(neighbours.folder / "a.mp4", demo_scenes()[:2], seconds_per_scene=2)
    until(look_at_decoders, seconds=240, pause=0.2)
    until(is_done, seconds=240, pause=1)
    return found


def test_materialize_brings_the_key_to_the_dagster_that_runs(
    up: psutil.Process, settings: Settings, dagster_url: str, places: dict[str, str]
) -> None:
    """After the film: vectors wait for a backfill of other videos to end."""
    asked = httpx.post(f"{dagster_url}/graphql", json={"query": "{ version }"}, timeout=60)
    assert asked.status_code == 401
    arguments = ("materialize", "broken.mp4", "--no-wait", "--json", "--dagster-url", dagster_url)
    done = cli(settings, *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backfills"]
    keyless = cli(settings.model_copy(update={"api_key": None}), *arguments)
    assert keyless.returncode == 2
    assert "401" in keyless.stderr


def test_a_real_run_leaves_no_secret(
    up: psutil.Process,
    log: Path,
    page: httpx.Client,
    dagster_url: str,
    settings: Settings,
    neighbours: Neighbours,
    places: dict[str, str],
) -> None:
    """The last of those that share it: it ends."""
    FrameStore(settings.frame_store_url).delete("a.mp4")
    api = DagsterApi(dagster_url, api_key=settings.api_key)
    api.launch_run(
        "embed_frames",
        asset="frame_embeddings",
        tags={RANGE_START_TAG: "a.mp4", RANGE_END_TAG: "a.mp4"},
    )
    until(lambda: neighbours.alerts, seconds=120)
    for path in (
        "/",
        "/status",
        "/api/search?q=circle",
        "/api/videos/1/stream",
        "/api/videos/2/stream",
        "/readyz",
    ):
        places[path] = page.get(path).text
    end(up)
    for url in (settings.database_url, settings.dagster_postgres_url):
        assert url is not None
        places |= rows(url.reveal().replace("+psycopg2", ""))
    for file in [log, *settings.home.rglob("*")]:
        if file.is_file():
            places[str(file)] = file.read_text(errors="replace")
    for needed in ("decoder", "event_logs row", "runs row", "code-server.log", "videos row"):
        assert any(needed in place for place in places), f"nothing was looked for in {needed}"
    told = [f"{place}: {found}" for place, text in places.items() if (found := tells(text))]
    assert not told, "\n".join(told[:10])


def test_a_worker_whose_broker_is_down_tells_none(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with running(settings, log, "worker"):
        until(lambda: "Trying again" in log.read_text(), seconds=90)
    text = log.read_text()
    assert "uploads http://user:…@127.0.0.1" in text
    assert tells(text) is None


@pytest.mark.parametrize(
    ("changes", "commands"),
    [
        ({}, ["status --json", "db set-back", "ingest /etc/hostname"]),
        (
            {"SIGLIP_UPLOADS": f"ftp://user:{MARK}@127.0.0.1:9/in"},
            ["status", "ingest /etc/hostname", "materialize a.mp4"],
        ),
        ({"SIGLIP_UPLOADS": "IN"}, ["ingest /etc/hostname", "materialize a.mp4"]),
        ({"SIGLIP_DATABASE_URL": f"postgresql://u:{MARK}@127.0.0.1:9/db"}, ["status --json"]),
        (
            {"DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://u:x@{MARK}@127.0.0.1:9/db"},
            ["db set-back", "materialize a.mp4"],
        ),
        (
            {"DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://u:{MARK}/x@127.0.0.1:9/db"},
            ["db set-back"],
        ),
    ],
)
def test_commands_tell_none(
    settings: Settings,
    neighbours: Neighbours,
    changes: dict[str, str],
    commands: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process: to start one takes longer than most of them, and to load Dagster seconds."""
    monkeypatch.setattr("siglip_pipeline.defs.internals._STORAGE_WAIT_SECONDS", 0)
    wrong = f"http://user:{MARK}-wrong@127.0.0.1:{neighbours.port}/in"
    changes = {name: wrong if value == "IN" else value for name, value in changes.items()}
    for name, value in {**child_environment(settings), **FOREIGN, **changes}.items():
        monkeypatch.setenv(name, value)
    for command in commands:
        monkeypatch.setattr("sys.argv", ["siglip-pipeline", *command.split()])
        with pytest.raises(SystemExit):
            main.main()
        output = "".join(capfd.readouterr())
        assert output
        assert tells(output) is None


def test_errors_of_servers_that_refuse_tell_none(
    s3_url: str,
) -> None:
    told: list[str] = []
    with tempfile.TemporaryDirectory(prefix="siglip-tests-") as folder:
        Path(folder).chmod(0o755)  # Postgres runs as another user where this one is root
        server = EmbeddedPostgres(Path(folder), port=free_port())
        with server.lease():
            url = SecretUrl(re.sub(r":[^:@]*@", f":{MARK}@", server.tcp_url()))
            with pytest.raises(DatabaseUnavailableError, match="password authentication") as caught:
                Database(url)
            told += traceback.format_exception(caught.value)
    options = {"endpoint_url": s3_url, "key": "key", "secret": MARK}
    uploads = UploadStore("s3://none", storage_options=options)
    frames = FrameStore(f"s3://none/x?{MARK}", storage_options=options)
    told += [repr(uploads), repr(frames), repr(pickle.loads(pickle.dumps(uploads)))]
    calls: list[Callable[[], object]] = [
        *(lambda: list(uploads.list()), lambda: uploads.get("a.mp4"), lambda: uploads.open("a")),
        *(lambda: frames.metadata("a.mp4"), lambda: frames.copy("a.mp4", "b.mp4")),
    ]
    for call in calls:
        with pytest.raises(SiglipPipelineError) as refused:
            call()
        told += traceback.format_exception(refused.value)
    assert tells("\n".join(told)) is None


@pytest.fixture
def s3_url() -> Iterator[str]:
    with s3_server() as url:
        yield url
