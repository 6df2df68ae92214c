"""What a shell holds for other programs does not reach this one."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from siglip_pipeline.cli.common import load_settings
from siglip_pipeline.cli.main import main
from siglip_pipeline.errors import LaunchError
from siglip_pipeline.runs.dagster_api import DagsterApi
from siglip_pipeline.services.ports import answers, free_port

PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None: ...


class SpeaksNoHttp(BaseHTTPRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"220 mail.example ready\r\n")


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a service with the handler that is the parameter."""
    with HTTPServer(("127.0.0.1", 0), request.param) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    proxy = f"http://127.0.0.1:{free_port()}"
    for name in PROXY_NAMES[:3]:
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.upper(), proxy)


@pytest.mark.parametrize("url", [Answers], indirect=True)
@pytest.mark.usefixtures("dead_proxy")
def test_a_service_of_this_machine_is_asked_without_a_proxy(url: str) -> None:
    assert answers(f"{url}/healthz")


@pytest.mark.parametrize("url", [SpeaksNoHttp], indirect=True)
def test_what_speaks_no_http_is_no_service(url: str) -> None:
    assert not answers(url)
    with pytest.raises(LaunchError, match=f"no Dagster answers at {url}"):
        DagsterApi(url).run_state("0")


@pytest.mark.usefixtures("dead_proxy")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "localhost,127.0.0.1,::1"),
        (".example, 127.0.0.1", ".example,127.0.0.1,localhost,::1"),
        ("*", "*"),
    ],
)
def test_commands_add_this_machine_to_those_without_a_proxy(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        monkeypatch.setenv("NO_PROXY", before)
    monkeypatch.setattr("sys.argv", ["siglip-pipeline", "--version"])
    with monkeypatch.context() as kept:
        kept.setattr(os, "environ", os.environ.copy())
        with pytest.raises(SystemExit):
            main()
        assert os.environ["NO_PROXY"] == after
        assert os.environ.get("no_proxy", after) == after


@pytest.mark.parametrize("external", [False, True])
def test_variables_of_libpq_are_for_a_database_of_ones_own(
    external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"PGSERVICE": "mine", "PGREQUIREAUTH": "md5", "PGADMIN_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    url = "postgresql://db.example/siglip" if external else None
    load_settings(home=tmp_path, database_url=url)
    kept = {name for name in given if name in os.environ}
    assert kept == ({*given} if external else {"PGADMIN_PORT"})


@pytest.mark.parametrize("isolated", [[], ["-I"]])
def test_names_are_utf8_whatever_the_locale(isolated: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, *isolated, "-m", "siglip_pipeline.cli.main"),
            *("ingest", "no such place/é.mp4"),
        ],
        env={
            **{"PATH": os.environ["PATH"], "SIGLIP_HOME": str(tmp_path)},
            **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        },
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=120,
    )
    said = done.stderr.decode()
    assert "no such place/é.mp4: no such file or folder" in " ".join(said.split())
