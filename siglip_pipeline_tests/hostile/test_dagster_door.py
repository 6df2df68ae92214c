"""What strangers, and pages of other sites, can do with the Dagster UI.

Dagster's own server in a process of its own, without any code to run: its door is looked at here.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from siglip_pipeline.errors import LaunchError
from siglip_pipeline.services.binding import check_exposure
from siglip_pipeline.services.ports import answers, free_port, key_headers
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline_tests.web.conftest import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KEY = "a-key-of-more-than-16-characters"
PAUSE = "mutation { setAutoMaterializePaused(paused: %s) }"
LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
CROSS_SITE = {"Sec-Fetch-Site": "cross-site"}


class Ui:
    """A Dagster UI that listens, and what can be seen of it from within."""

    def __init__(self, settings: Settings, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{settings.dagster_port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self.key = key_headers(settings.api_key)

    def ask(self, query: str, **headers: str) -> Any:
        answer = self.client.post("/graphql", json={"query": query}, headers=self.key | headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def is_paused(self) -> bool:
        return bool(self.ask("{ instance { autoMaterializePaused } }")["instance"].popitem()[1])


@contextmanager
def dagster_ui(folder: Path, **values: Any) -> Iterator[Ui]:
    (folder / "workspace.yaml").write_text("load_from: []\n")
    settings = Settings.load(home=folder, dagster_port=free_port(), **values)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "siglip_pipeline.cli.main", "dagster-ui"],
            env=child_environment(settings) | {"DAGSTER_HOME": str(folder)},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    ui = Ui(settings, process)
    try:
        address, key = f"{ui.url}/server_info", settings.api_key
        wait_until(lambda: process.poll() is not None or answers(address, api_key=key))
        assert process.poll() is None, (folder / "log").read_text()
        yield ui
    finally:
        ui.client.close()
        process.terminate()
        assert process.wait(10) == 0


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with dagster_ui(tmp_path_factory.mktemp("open")) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    folder = tmp_path_factory.mktemp("locked")
    with dagster_ui(folder, api_key=KEY, dagster_host="0.0.0.0") as running:
        yield running


FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "0.0.0.0:3000"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    CROSS_SITE,
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_another_page_changes_and_reads_nothing(ui: Ui, headers: dict[str, str]) -> None:
    before = ui.is_paused()
    query = PAUSE % json.dumps(not before)
    answers = [
        ui.client.get("/graphql", params={"query": query}, headers=headers),
        ui.client.post("/graphql", json={"query": query}, headers=headers),
        # Without a preflight: a form, or a fetch in the mode no-cors.
        ui.client.post("/graphql", params={"query": query}, content="x", headers=headers),
        ui.client.post("/report_asset_materialization/a", json={}, headers=headers),
        ui.client.get("/server_info", headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [403] * 5
    assert ui.is_paused() == before


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_another_page_opens_no_websocket(ui: Ui, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as refused:
        _websocket(ui.url, headers)
    assert refused.value.response.status_code == 403


def _websocket(address: str, headers: dict[str, str]) -> ClientConnection:
    """Open a websocket, whatever host name the headers give to the one at this address."""
    where = urlsplit(address)
    host = headers.get("Host", where.netloc)
    others = {name: value for name, value in headers.items() if name != "Host"}
    return connect(
        f"ws://{host}/graphql",
        sock=socket.create_connection((where.hostname, where.port)),
        additional_headers=others,
        subprotocols=[Subprotocol("graphql-ws")],
    )


def _subscribes(address: str, headers: dict[str, str]) -> bool:
    with _websocket(address, headers) as opened:
        opened.send(json.dumps({"type": "connection_init"}))
        return bool(json.loads(opened.recv(timeout=20))["type"] == "connection_ack")


@pytest.mark.parametrize(
    "query",
    [
        PAUSE % "true",
        "query a { version } " + (PAUSE % "true").replace("mutation", "mutation b"),
        "#query\n" + PAUSE % "true",
        "subscription { locationStateChangeEvents { event { message } } }",
        # Whether that can be read depends on the depth of the stack.
        PAUSE % "true" + "{ a " * 900 + "}" * 900,
    ],
)
def test_an_address_changes_nothing(ui: Ui, query: str) -> None:
    before = ui.is_paused()
    for method in ("GET", "HEAD"):
        for more in ({}, {"operationName": "b"}):
            answer = ui.client.request(method, "/graphql", params={"query": query, **more})
            assert answer.status_code == 405
            assert answer.headers["allow"] == "POST"
    # The last one counts.
    assert ui.client.get("/graphql", params={"query": ["{ version }", query]}).status_code == 405
    assert ui.is_paused() == before


def test_programs_people_and_its_own_pages_are_let_in(ui: Ui) -> None:
    before = ui.is_paused()
    for headers in ({}, {"Origin": ui.url}, {"Origin": ui.url, "Sec-Fetch-Site": "same-origin"}):
        ui.ask(PAUSE % json.dumps(not before), **headers)
        assert ui.is_paused() is not before
        ui.ask(PAUSE % json.dumps(before), **headers)
        assert _subscribes(ui.url, headers)
    assert ui.client.get("/graphql", params={"query": "{ version }"}).json()["data"]["version"]
    graphiql = ui.client.get("/graphql", headers={"Accept": "text/html"})
    assert "graphiql" in graphiql.text.lower()


def test_a_link_is_followed_to_pages_alone_and_no_page_is_framed(ui: Ui) -> None:
    page = ui.client.get("/assets", headers=CROSS_SITE | LINK)
    assert page.status_code == 200
    assert page.headers["x-frame-options"] == "SAMEORIGIN"
    policies = page.headers.get_list("content-security-policy")
    assert "frame-ancestors 'self'" in policies
    assert any("script-src" in policy for policy in policies)
    for path in ("/graphql", "/graphql?query={version}"):
        assert ui.client.get(path, headers=CROSS_SITE | LINK).status_code == 403
    assert ui.client.post("/assets", headers=CROSS_SITE | LINK).status_code == 403


def test_with_a_key_strangers_learn_nothing(locked: Ui) -> None:
    before = locked.is_paused()
    query = PAUSE % json.dumps(not before)
    for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Cookie": "siglip_session=0"}):
        for method, path in (
            ("GET", "/server_info"),
            ("GET", "/nothing"),
            ("GET", "/logs/a/b.out"),
            ("GET", "/favicon.png"),
            ("POST", "/graphql"),
            ("POST", "/report_asset_materialization/a"),
        ):
            answer = locked.client.request(method, path, json={"query": query}, headers=headers)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["type"] == "Unauthorized"
        with pytest.raises(InvalidStatus) as refused:
            _websocket(locked.url, headers)
        assert refused.value.response.status_code == 401
    assert locked.is_paused() == before


def test_with_a_key_programs_and_browsers_come_in(locked: Ui) -> None:
    bearer = {"Authorization": f"Bearer {KEY}"}
    named = {**bearer, "Host": "dagster.example", "Origin": "https://dagster.example"}
    assert locked.client.get("/server_info", headers=named).status_code == 200
    foreign = {**bearer, "Host": "dagster.example", "Origin": "https://evil.example"}
    assert locked.client.get("/server_info", headers=foreign).status_code == 403
    html = {"Accept": "text/html"}
    sent_away = locked.client.get("/assets?a=b", headers=html)
    assert sent_away.status_code == 303
    form = locked.client.get(sent_away.headers["location"], headers=html)
    assert 'value="/assets?a=b"' in form.text
    assert "frame-ancestors 'none'" in form.headers["content-security-policy"]
    wrong = locked.client.post("/login", data={"key": "x"})
    assert wrong.status_code == 401
    right = locked.client.post("/login", data={"key": KEY, "next": "/assets?a=b"})
    assert (right.status_code, right.headers["location"]) == (303, "/assets?a=b")
    session = {"Cookie": right.headers["set-cookie"].partition(";")[0]}
    assert locked.client.get("/assets", headers=html | session).status_code == 200
    assert _subscribes(locked.url, session)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """One with a key and narrow limits, for tests that do not come near each other's."""
    seconds = ("http_header_seconds", "http_body_seconds", "http_idle_seconds")
    with dagster_ui(
        tmp_path_factory.mktemp("limited"),
        api_key=KEY,
        http_requests_per_second=0.001,
        http_request_burst=3,
        http_max_connections=2,
        **dict.fromkeys(seconds, 2),
    ) as running:
        yield running


def test_a_key_is_not_guessed_at_any_speed(limited: Ui) -> None:
    answers = [limited.client.get("/server_info").status_code for _ in range(4)]
    assert answers == [401, 401, 401, 429]
    # Who has the key is not held up.
    assert limited.ask("{ version }")


def test_a_websocket_outlives_the_time_that_a_request_has(limited: Ui) -> None:
    limited.client.close()
    for _ in range(3):  # more than there may be at once
        with _websocket(limited.url, limited.key) as opened:
            time.sleep(2.5)
            opened.send(json.dumps({"type": "connection_init"}))
            assert json.loads(opened.recv(timeout=20))["type"] == "connection_ack"


def test_other_addresses_than_loopback_need_a_key(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"Dagster UI.*SIGLIP_API_KEY.*SIGLIP_DAGSTER_HOST"):
        check_exposure(Settings.load(dagster_host="0.0.0.0"))
    check_exposure(Settings.load(dagster_host="0.0.0.0", api_key=KEY))
    done = subprocess.run(
        [sys.executable, "-m", "siglip_pipeline.cli.main", "dagster-ui"],
        env=os.environ | {"DAGSTER_HOME": str(tmp_path), "SIGLIP_DAGSTER_HOST": "0.0.0.0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "SIGLIP_API_KEY" in done.stderr


def test_it_listens_where_it_is_asked_to(ui: Ui, locked: Ui) -> None:
    for running, address in ((ui, "127.0.0.1"), (locked, "0.0.0.0")):
        process = psutil.Process(running.process.pid)
        listening = [c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"]
        assert listening == [address]
