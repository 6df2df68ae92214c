"""The hub, as a server on this machine plays it: what comes, and what a refusal is turned into."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from siglip_pipeline_tests.siglip.checkpoints import Kind

COMMIT = "c0ffee" + "0" * 34
NAME = "google/siglip2-tiny"

OPEN = """
import json, sys
from siglip_pipeline.errors import ModelError
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.checkpoint import open_checkpoint

options = ModelOptions(name=sys.argv[1], revision=sys.argv[2] or None)
try:
    found = open_checkpoint(options)
    files = sorted(file.name for file in found.folder.iterdir())
    print(json.dumps({"revision": found.revision, "family": found.family, "files": files}))
except ModelError as error:
    print(json.dumps({"type": type(error).__name__, "says": str(error)}))
"""


class Hub(ThreadingHTTPServer):
    """The four addresses of the hub that a download asks.

    ``refuse`` maps the beginning of an address to a status and the hub's error code.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {file.name: file.read_bytes() for file in folder.iterdir()}
        self.files |= {"pytorch_model.bin": b"a pickle", "modeling_evil.py": b"print('hello')"}
        self.refuse: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []
        self.hang_up = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        for begins, (status, code) in self.server.refuse.items():
            if path.startswith(begins):
                return self.send(status, b"{}", {"X-Error-Code": code} if code else {}, body=body)
        if path.startswith(f"/api/models/{NAME}/revision/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            about = {"id": NAME, "sha": COMMIT, "siblings": siblings}
            return self.send(200, json.dumps(about).encode(), {}, body=body)
        if path.startswith(f"/api/models/{NAME}/tree/{COMMIT}"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                for name, data in self.server.files.items()
            ]
            return self.send(200, json.dumps(tree).encode(), {}, body=body)
        data = self.server.files.get(path.removeprefix(f"/{NAME}/resolve/{COMMIT}/"))
        if data is None:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
        if body and self.server.hang_up:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT}
        self.send(200, data, headers, body=body)

    def send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(folders: Callable[[Kind], Path]) -> Iterator[Hub]:
    with Hub(folders("siglip2")) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Ask:
    """Open a checkpoint in a process of its own, online, with an empty cache and no token."""

    def ask(name: str = NAME, revision: str = "", **environment: str) -> dict[str, Any]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        clean |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", OPEN, name, revision, str(tmp_path / "home")],
            env=clean | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return ask


def test_a_model_is_downloaded_once_without_what_could_run_code(hub: Hub, ask: Ask) -> None:
    first = ask()
    assert (first["revision"], first["family"]) == (COMMIT, "siglip")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(first["files"])
    assert not [file for file in first["files"] if file.endswith((".bin", ".py"))]
    assert not [path for path in hub.asked if path.endswith((".bin", ".py"))]
    hub.asked.clear()
    assert ask(HF_HUB_OFFLINE="1") == first
    assert hub.asked == []
    # Gone from the hub, or the hub is down: what is in the cache still serves.
    hub.refuse["/"] = (404, "RepoNotFound")
    assert ask() == first


@pytest.mark.parametrize(
    ("refuse", "status", "code", "kind", "says"),
    [
        ("/api", 404, "RepoNotFound", "ModelNotFoundError", "does not exist on the hub, or is"),
        # Without a token the hub does not tell a private model from one that does not exist.
        ("/api", 401, "RepoNotFound", "ModelNotFoundError", "log in with `hf auth login`"),
        ("/api", 404, "RevisionNotFound", "ModelNotFoundError", "SIGLIP_MODEL_REVISION='v2': "),
        # A gated model can be looked at by everybody; only its files are refused.
        (f"/{NAME}/resolve", 401, "GatedRepo", "ModelNotFoundError", "accepting its terms"),
        (f"/{NAME}/resolve", 403, "GatedRepo", "ModelNotFoundError", "accepting its terms"),
        ("/api", 401, "", "ModelError", "status 401: log in again with `hf auth login`"),
        ("/api", 403, "", "ModelError", "status 403: log in again with `hf auth login`"),
        ("/api", 500, "", "ModelError", "the hub answered with status 500: try again later"),
    ],
)
def test_a_refusal_names_the_remedy(
    refuse: str, status: int, code: str, kind: str, says: str, hub: Hub, ask: Ask
) -> None:
    hub.refuse[refuse] = (status, code)
    found = ask(revision="v2")
    assert found["type"] == kind, found
    assert says in found["says"]
    assert NAME in found["says"]


def test_no_network_says_how_to_bring_the_model(ask: Ask) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody answers there
        found = ask(HF_ENDPOINT=f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert found["type"] == "ModelNotFoundError"
    assert "the hub cannot be reached" in found["says"]
    assert f"`hf download {NAME}`" in found["says"]


def test_a_connection_that_breaks_off_is_not_a_traceback(hub: Hub, ask: Ask) -> None:
    hub.hang_up = True
    found = ask()
    assert found["type"] == "ModelNotFoundError"
    assert "the hub cannot be reached" in found["says"]


def test_a_cache_that_cannot_be_written_is_named(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = ask(HF_HOME=str(tmp_path / "file" / "below"))
    assert found["type"] == "ModelError"
    assert "set HF_HOME to another folder" in found["says"]
