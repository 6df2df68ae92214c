"""A real `up` and a real worker with a secret in every setting: what they leave holds none."""

import base64
import contextlib
import html
import re
import secrets
import subprocess
import sys
import threading
import time
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

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.ports import free_port
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.store.embedded import EmbeddedPostgres
from siglip_pipeline_tests.conftest import fresh_database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MARK = "hunter2"
FOREIGN = {"AWS_SECRET_ACCESS_KEY": f"{MARK}-aws", "HF_TOKEN": f"hf_{MARK}"}
"""What libraries of storages and of the model hub read by themselves."""
COMMAND = [sys.executable, "-m", "siglip_pipeline.cli"]


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
    render_video(made.folder / "a.mp4", demo_scenes()[:2], seconds_per_scene=2)
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


@pytest.fixture(scope="module")
def settings(
    postgres: EmbeddedPostgres, neighbours: Neighbours, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Every setting that may hold a secret holds one, and works."""
    role = f"role_{secrets.token_hex(4)}"
    with (
        psycopg.connect(postgres.url("postgres"), autocommit=True) as admin,
        fresh_database(postgres) as url,
        fresh_database(postgres, "template1") as dagster_url,
    ):
        name = sql.Identifier(role)
        admin.execute(
            sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(name, f"{MARK}-db")
        )
        try:
            own, dagsters = (
                re.sub(r"//[^@]*@", f"//{role}:{MARK}-db@", address)
                for address in (url, dagster_url)
            )
            home = tmp_path_factory.mktemp("home")
            yield Settings.load(
                home=home,
                uploads=f"http://user:{MARK}@127.0.0.1:{neighbours.port}/in",
                frame_store=f"file://{home}/frames?{MARK}",
                database_url=own,
                DAGSTER_POSTGRES_URL=dagsters.replace("postgresql:", "postgresql+psycopg2:"),
                model_name=str(MODEL_FOLDER),
                api_key=f"{MARK}-of-enough-length",
                alert_webhook=f"http://127.0.0.1:{neighbours.port}/services/{MARK}",
                celery_broker_url=f"redis://:{MARK}@127.0.0.1:9/0",
                celery_backend_url=f"redis://:{MARK}@127.0.0.1:9/1",
                dagster_port=free_port(),
                page_port=free_port(),
                log_level="DEBUG",
            )
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {}").format(name))
            admin.execute(sql.SQL("DROP ROLE {}").format(name))


def until(condition: Callable[[], object], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this should have happened by now"
        time.sleep(0.05)


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
        children = family.children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        for left in [family, *children]:
            with contextlib.suppress(psutil.Error):
                left.kill()
        process.wait()


def tells(text: str) -> str | None:
    at = text.find(MARK)
    return None if at < 0 else f"…{text[max(0, at - 300) : at + 60]}…"


def rows(url: str) -> Iterator[tuple[str, str]]:
    """Everything that a database holds, row by row."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        ).fetchall()
        for (table,) in tables:
            query = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))
            for (row,) in connection.execute(query):
                yield table, row


def test_a_real_run_leaves_no_secret(
    settings: Settings, neighbours: Neighbours, tmp_path: Path
) -> None:
    log = tmp_path / "up.log"
    headers = {"X-API-Key": f"{MARK}-of-enough-length"}
    page = f"http://127.0.0.1:{settings.page_port}"
    decoders: dict[int, str] = {}
    answers: list[str] = []

    def is_done() -> bool:
        for child in family.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "siglip_pipeline.video.worker" in " ".join(child.cmdline()):
                    decoders[child.pid] = str(child.environ())
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = httpx.get(f"{page}/api/status", headers=headers)
            answers.append(answer.text)
            videos = answer.json().get("videos", {})
            return bool(videos.get("indexed") == 1 and videos.get("failed") == 1 and alerted())
        return False

    def alerted() -> bool:
        return bool(neighbours.alerts)

    with running(settings, log, "up") as family:
        try:
            until(is_done, seconds=240)
        except AssertionError:
            print(log.read_text()[-3000:], answers[-1:])
            raise
        for path in ("/", "/status", "/api/search?q=circle", "/api/videos/1/stream", "/readyz"):
            answers.append(httpx.get(page + path, headers=headers, timeout=60).text)
    assert decoders, "no decoding child was seen"
    assert settings.database_url is not None
    assert settings.dagster_postgres_url is not None
    told = [f"children: {found}" for text in decoders.values() if (found := tells(text))]
    told += [f"answers: {found}" for text in answers if (found := tells(text))]
    for url in (settings.database_url, settings.dagster_postgres_url):
        for table, row in rows(url.reveal().replace("+psycopg2", "")):
            if found := tells(row):
                told.append(f"{table}: {found}")
    for file in [log, *settings.home.rglob("*")]:
        if file.is_file() and (found := tells(file.read_text(errors="replace"))):
            told.append(f"{file}: {found}")
    assert not told, "\n".join(told[:10])


def test_a_worker_whose_broker_is_down_tells_none(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with running(settings, log, "worker"):
        until(lambda: "Trying again" in log.read_text(), seconds=90)
    text = log.read_text()
    assert "uploads http://user:…@127.0.0.1" in text
    assert tells(text) is None


def test_every_command_tells_none(settings: Settings, neighbours: Neighbours) -> None:
    environment = child_environment(settings) | FOREIGN
    for changes in (
        {},
        {"SIGLIP_UPLOADS": f"http://user:{MARK}-wrong@127.0.0.1:{neighbours.port}/in"},
        {"SIGLIP_UPLOADS": f"ftp://user:{MARK}@127.0.0.1:9/in"},
        {"SIGLIP_DATABASE_URL": f"postgresql://u:{MARK}@127.0.0.1:9/db"},
    ):
        for command in (["status", "--json"], ["ingest", __file__], ["materialize", "a.mp4"]):
            done = subprocess.run(
                [*COMMAND, *command],
                env={**environment, **changes},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.stdout + done.stderr
            assert tells(done.stdout + done.stderr) is None
