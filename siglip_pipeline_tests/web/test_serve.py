"""`siglip-pipeline serve` as a process of its own, and what it answers while nothing is indexed."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.store import made
from siglip_pipeline_tests.web.conftest import Collection
from siglip_pipeline_tests.web.conftest import serving as serving_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COMMAND = [sys.executable, "-m", "siglip_pipeline.cli.main", "serve", "--json"]

# Asks a service in this process, and prints what it has loaded after each kind of query.
PROBE = """
import json, sys
from pathlib import Path
from starlette.testclient import TestClient
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline.web.app import create_app

def loaded():
    model = sys.modules.get("siglip_pipeline.siglip.model")
    towers = sorted(held.tower for held in model._loaded.values()) if model else []
    return {"torch": "torch" in sys.modules, "av": "av" in sys.modules, "towers": towers}

settings, seen = Settings.load(), {}
with Database(settings.database_url) as database:
    app = create_app(settings, database)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        seen["start"] = loaded()
        for path in ("/", "/status", "/api/videos/1", "/api/similar?like=one.mp4@3"):
            assert client.get(path).status_code == 200, path
        seen["moment"] = loaded()
        assert client.get("/api/search?q=a+star").status_code == 200
        seen["text"] = loaded()
        body = Path(sys.argv[1]).read_bytes()
        headers = {"Content-Type": "image/png"}
        assert client.post("/api/search", content=body, headers=headers).status_code == 200
        seen["picture"] = loaded()
print(json.dumps(seen))
"""


def test_each_tower_is_loaded_when_a_query_needs_it(collection: Collection, picture: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(picture)],
        env=child_environment(collection.settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    nothing = {"torch": False, "av": False, "towers": []}
    assert seen["start"] == nothing
    assert seen["moment"] == nothing
    assert seen["text"] == {"torch": True, "av": False, "towers": ["text"]}
    assert seen["picture"]["towers"] == ["both"]


@contextmanager
def serving(settings: Settings, *options: str) -> Iterator[tuple[Any, str]]:
    process = subprocess.Popen(
        [*COMMAND, *options],
        env=child_environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        # The document is printed over several lines; its last one closes it.
        document = ""
        while not document.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            document += line
        yield process, json.loads(document)["url"]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def get_json(url: str | urllib.request.Request) -> tuple[int, Any]:
    """The status of an answer, and its document."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_until_it_is_stopped(collection: Collection, number: signal.Signals) -> None:
    port = free_port()
    with serving(collection.settings, "--port", str(port)) as (process, url):
        assert url == f"http://127.0.0.1:{port}"
        assert get_json(f"{url}/api/videos")[1]["total"] == 4
        process.send_signal(number)
        assert process.wait(timeout=60) == 0


def test_nobody_is_believed_who_names_another_client(collection: Collection) -> None:
    limit = {"http_requests_per_second": 0.01, "http_request_burst": 2}
    with serving_here(collection.settings, **limit) as served:
        statuses = []
        for number in range(3):
            address = {"X-Forwarded-For": f"203.0.113.{number}"}
            request = urllib.request.Request(f"{served.url}/api/videos", headers=address)
            statuses.append(get_json(request)[0])
    assert statuses == [200, 200, 429]


@pytest.mark.parametrize("index_was_asked_for", [False, True])
def test_nothing_is_indexed_yet(
    database_url: str, tmp_path: Path, index_was_asked_for: bool
) -> None:
    settings = Settings.load(home=tmp_path, uploads=str(tmp_path), database_url=database_url)
    if index_was_asked_for:
        with Database(database_url) as database:
            build_index(
                database, ModelStore(database).register(made.spec()), options=made.index_options()
            )
    with serving_here(settings) as served:
        assert get_json(f"{served.url}/readyz") == (
            503,
            {"error": {"type": "NotReady", "message": "nothing is indexed yet"}},
        )
        status, document = get_json(f"{served.url}/api/similar?like=a.mp4@3")
        assert (status, document["error"]["type"]) == (409, "NothingIndexedError")
        assert str(tmp_path) not in document["error"]["message"]
        assert get_json(f"{served.url}/api/videos") == (
            200,
            {"videos": [], "total": 0, "next": None},
        )


def test_a_collection_that_became_empty_is_ready_and_has_no_hits(
    database_url: str, tmp_path: Path
) -> None:
    settings = Settings.load(home=tmp_path, uploads=str(tmp_path), database_url=database_url)
    with Database(database_url) as database:
        model_id = made.collection(database, videos=1)
        build_index(database, model_id, options=made.index_options())
        with serving_here(settings) as served:
            for _ in range(2):
                assert get_json(f"{served.url}/readyz")[0] == 200
                VideoStore(database).delete("v00.mp4")
                build_index(database, model_id, options=made.index_options())
            assert get_json(f"{served.url}/api/videos")[1]["total"] == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--host", "0.0.0.0"], "SIGLIP_API_KEY"),
        (["--port", "TAKEN"], "--port"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_way_out(
    collection: Collection, options: list[str], named: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, *[port if option == "TAKEN" else option for option in options]],
            env=child_environment(collection.settings),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert named in json.loads(done.stdout)["error"]["message"]
