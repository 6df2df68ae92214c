"""`siglip-pipeline up` for real: its processes, its signals, what pages in the same browser can do
to it, and a video on its way.

Starting one takes longer than most tests: one without a key serves all of them, and the last ends
it. Another, with a key and for other machines, is in hostile/test_secret_run.py.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import psutil
import psycopg
import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.records import Upload
from siglip_pipeline.runs.dagster_api import DagsterApi
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.services.state import end_leftovers, running, write_state
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.stages.status import StatusOptions, collect_status
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline.video.sandbox import sandbox_report
from siglip_pipeline_tests.conftest import folder_for_postgres
from siglip_pipeline_tests.files.test_private_files import open_to_others
from siglip_pipeline_tests.processes import command_of, descendants
from siglip_pipeline_tests.web.browser import CHROMIUM, DRIVER, chromium

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

COMMAND = [sys.executable, "-m", "siglip_pipeline.cli.main"]
OF_OTHERS = {
    **{f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")},
    **{"PGSERVICE": "none", "PGREQUIREAUTH": "scram-sha-256", "PGHOSTADDR": "127.0.0.1"},
    **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
"""What people's shells hold for other programs: no service on this machine is asked through it."""
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="Chromium and its driver are not installed"
)

PAUSE = "mutation { setAutoMaterializePaused(paused: true) }"
IS_PAUSED = "{ instance { autoMaterializePaused } }"

ATTACK = """
const ui = "UI", query = "QUERY", address = ui + "/graphql?query=" + encodeURIComponent(query);
const tried = [];
const attempt = (name, promise) => tried.push(
    promise.then(() => `${name}: went through`, () => `${name}: failed`));
for (const method of ["GET", "POST"]) {
  attempt(`no-cors ${method}`, fetch(address, {mode: "no-cors", method, credentials: "include"}));
  attempt(`cors ${method}`, fetch(address, {method, credentials: "include"}));
}
attempt("text", fetch(ui + "/graphql", {mode: "no-cors", method: "POST", credentials: "include",
    headers: {"Content-Type": "text/plain; application/json"}, body: JSON.stringify({query})}));
attempt("json", fetch(ui + "/graphql", {method: "POST",
    headers: {"Content-Type": "application/json"}, body: JSON.stringify({query})}));
attempt("picture", new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = resolve; image.onerror = reject; image.src = address;
}));
attempt("script", new Promise((resolve, reject) => {
  const script = document.createElement("script");
  script.onload = resolve; script.onerror = reject; script.src = ui + "/favicon.svg";
  document.body.append(script);
}));
attempt("websocket", new Promise((resolve, reject) => {
  const socket = new WebSocket(ui.replace("http", "ws") + "/graphql", "graphql-ws");
  socket.onopen = resolve; socket.onerror = reject;
}));
for (const [method, target] of [["get", "one"], ["post", "two"]]) {
  const frame = document.createElement("iframe"), form = document.createElement("form");
  frame.name = target; form.target = target; form.method = method; form.action = address;
  const field = document.createElement("input");
  field.name = "query"; field.value = query; form.append(field);
  document.body.append(frame, form);
  attempt(`form ${method}`, new Promise((resolve, reject) => {
    frame.onload = reject; setTimeout(reject, 3000);
  }));
  form.submit();
}
const frame = document.createElement("iframe");
frame.id = "framed"; frame.src = ui + "/assets";
document.body.append(frame);
Promise.all(tried).then(done => { window.done = done; });
"""

WATCH_WEBSOCKETS = """
window.heard = 0;
const Plain = WebSocket;
window.WebSocket = class extends Plain {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", () => { window.heard += 1; });
  }
};
"""


@dataclass
class Up:
    """A running `up` and how to speak to it."""

    settings: Settings
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait_until(
        self, condition: Callable[[], bool], *, seconds: float, pause: float = 0.2
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(pause)

    @property
    def dagster_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.dagster_port}"

    def ask(self, query: str) -> Any:
        """What Dagster answers."""
        answer = httpx.post(f"{self.dagster_url}/graphql", json={"query": query}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def service(self, word: str) -> psutil.Process:
        """The one that has this word on its command line."""
        children = psutil.Process(self.process.pid).children()
        (found,) = [p for p in children if word in command_of(p).split()]
        return found

    def status(self) -> Any:
        """The document of `status --json`, without a process for each look."""
        umask = os.umask(0o077)  # as the command: it keeps a cache in the home
        try:
            options = DatabaseOptions.from_settings(self.settings)
            with open_database(options, vectors=False) as database:
                report = collect_status(database, StatusOptions.from_settings(self.settings))
        finally:
            os.umask(umask)
        return to_json(report.document())

    def has_started_run(self) -> bool:
        query = "{ runsOrError(filter: {statuses: [STARTED]}) { ... on Runs { results { id } } } }"
        return bool(self.ask(query)["runsOrError"]["results"])

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> float:
        """Ctrl-C; how many seconds it took until everything was gone."""
        family = self.family()
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=30) == 0, self.log.read_text()
        took = time.monotonic() - began
        _, alive = psutil.wait_procs(family, timeout=2)
        assert alive == []
        return took


def cli(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # For a database of one's own the variables of libpq apply.
    of_others = OF_OTHERS if settings.database_url is None else {}
    return subprocess.run(
        [*COMMAND, *arguments],
        env=child_environment(settings) | of_others,
        capture_output=True,
        text=True,
        check=False,
    )


def _error_of(url: str) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=60)
    return str(json.load(caught.value)["error"]["type"])


@contextmanager
def _up(settings: Settings, log: Path) -> Iterator[Up]:
    temporary = log.parent / ("long" * 25)  # too long for a socket in it
    temporary.mkdir(exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*COMMAND, "up"],
            env=child_environment(settings) | OF_OTHERS | {"TMPDIR": str(temporary)},
            stdout=output,
            stderr=output,
        )
    up = Up(settings, process, log)
    try:
        up.wait_until(lambda: running(settings.home) is not None, seconds=120)
        up.wait_until(lambda: "Running." in log.read_text(), seconds=180)
        yield up
    finally:
        if process.poll() is None:
            family = up.family()
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
            for child in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


@contextmanager
def settings_of_up(**values: Any) -> Iterator[Settings]:
    """Settings of an `up` with a cluster of its own; all of it goes on leaving."""
    with folder_for_postgres() as folder:
        (folder / "uploads").mkdir()
        yield Settings.load(
            **{
                "home": folder / "home",
                "uploads": str(folder / "uploads"),
                "model_name": str(MODEL_FOLDER),
                "uploads_settle_seconds": 0.2,
                "dagster_port": free_port(),
                "page_port": free_port(),
            }
            | values
        )


def listening(process: psutil.Process) -> set[str]:
    """Addresses at which a process and its children can be reached."""
    found: set[str] = set()
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that had little to do
            found |= {c.laddr.ip for c in one.net_connections("inet") if c.status == "LISTEN"}
    return found


@pytest.fixture
def settings() -> Iterator[Settings]:
    with settings_of_up() as made:
        yield made


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "up.log"


@pytest.fixture(scope="module")
def up(log: Path) -> Iterator[Up]:
    """One without a key, as people start it at first."""
    with settings_of_up() as settings, _up(settings, log) as started:
        yield started


@pytest.fixture(scope="module")
def browser(up: Up) -> Iterator[webdriver.Chrome]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module", params=["127.0.0.1", "localhost"])
def other_page(
    request: pytest.FixtureRequest, up: Up, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A page of another port, or of another site altogether, that tries everything."""
    folder = tmp_path_factory.mktemp("other_page")
    script = ATTACK.replace("UI", up.dagster_url).replace("QUERY", PAUSE)
    (folder / "attack.js").write_text(script)
    (folder / "index.html").write_text("<body><script src='attack.js'></script>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{request.param}:{server.server_port}/"
        server.shutdown()


def test_nothing_is_ready_before_the_first_video(up: Up) -> None:
    """The first of those that share it: another indexes one."""
    assert _error_of(f"http://127.0.0.1:{up.settings.page_port}/readyz") == "NotReady"


def test_it_says_what_its_decoders_are_held_by(up: Up) -> None:
    """At the usual level of the log, as docs/security.md promises."""
    assert f"held by {sandbox_report()}" in up.log.read_text()


def test_the_code_server_can_be_reached_by_this_user_alone(up: Up) -> None:
    workspace = up.settings.home / "dagster" / "workspace.yaml"
    (socket_line,) = [line for line in workspace.read_text().splitlines() if "socket:" in line]
    path = Path(socket_line.partition("socket:")[2].strip())
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.parent.stat().st_uid == os.geteuid()
    assert listening(up.service("siglip_pipeline.services.code_server")) == set()
    assert listening(up.service("dagster._daemon")) == set()


def test_another_shell_gets_what_dagster_needs(up: Up) -> None:
    """As the README says, for `dagster dev`."""
    said = cli(up.settings, "db", "env")
    look = "import os, psycopg; psycopg.connect(os.environ['SIGLIP_DATABASE_URL'])"
    done = subprocess.run(
        [
            "bash",
            "-euc",
            f'eval "$1"; {sys.executable} -c "{look}"; echo $DAGSTER_HOME',
            "-",
            said.stdout,
        ],
        env=os.environ | OF_OTHERS,
        capture_output=True,
        text=True,
        check=False,
    )
    (up.settings.home / "postgres.keep").unlink()  # or it would run on for that shell
    assert done.stdout.strip() == str(up.settings.home / "dagster"), said.stderr + done.stderr


def test_services_that_have_nothing_to_do_keep_their_connections(up: Up) -> None:
    server = EmbeddedPostgres(up.settings.home)

    def opened() -> int:
        with psycopg.connect(server.url("postgres")) as connection:
            row = connection.execute(
                "SELECT sum(sessions) FROM pg_stat_database WHERE datname <> 'postgres'"
            ).fetchone()
        assert row is not None
        return int(row[0])

    # What the start left to do ends first. Without a pool it is some twenty a second.
    up.wait_until(lambda: _fewer_than(10, opened, seconds=5), seconds=60)


def _fewer_than(most: int, count: Callable[[], int], *, seconds: float) -> bool:
    before = count()
    time.sleep(seconds)
    return count() - before < most


@needs_browser
def test_another_page_in_the_same_browser_can_do_nothing(
    up: Up, browser: webdriver.Chrome, other_page: str
) -> None:
    up.ask(PAUSE.replace("true", "false"))
    browser.get(other_page)
    tried = WebDriverWait(browser, 60).until(lambda b: b.execute_script("return window.done"))
    # An opaque answer counts as one, whatever it says: what counts is what was done.
    assert {line for line in tried if "went through" in line} <= {
        *("no-cors GET: went through", "no-cors POST: went through", "text: went through"),
    }, tried
    assert up.ask(IS_PAUSED)["instance"] == {"autoMaterializePaused": False}
    browser.switch_to.frame("framed")
    assert "Dagster" not in browser.page_source
    browser.switch_to.default_content()
    # A tab may be sent to a page, and to no address that does something.
    browser.execute_script(f"location = '{up.dagster_url}/graphql?query={PAUSE}'")
    WebDriverWait(browser, 20).until(lambda b: "graphql" in b.current_url)
    WebDriverWait(browser, 20).until(lambda b: "Forbidden" in b.page_source)
    browser.get(other_page)
    browser.execute_script(f"location = '{up.dagster_url}/assets'")
    WebDriverWait(browser, 60).until(lambda b: "video_frames" in b.page_source)
    assert up.ask(IS_PAUSED)["instance"] == {"autoMaterializePaused": False}


@needs_browser
def test_the_real_ui_works_in_a_browser(up: Up, browser: webdriver.Chrome) -> None:
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH_WEBSOCKETS})
    url = up.dagster_url
    browser.get(f"{url}/assets/video_frames")
    wait = WebDriverWait(browser, 60, ignored_exceptions=[WebDriverException])
    wait.until(lambda b: "sampled frames of each video" in b.page_source)
    browser.get(f"{url}/locations/siglip_pipeline/jobs/remove_old_logs")
    wait.until(lambda b: _click(b, "a", "Launchpad"))
    wait.until(lambda b: _click(b, "button", "Launch Run"))
    # Others may have been started by a schedule, or by a click that was tried again.
    run = wait.until(lambda _: next(iter(_runs(up, of="remove_old_logs")), None))
    # What the run's page shows arrives over a websocket: an acknowledgement, then events.
    browser.get(f"{url}/runs/{run['runId']}")
    wait.until(lambda b: b.execute_script("return window.heard") > 1)
    wait.until(lambda b: "RUN_SUCCESS" in b.page_source)
    browser.get("about:blank")  # the page of a run goes on asking


def _click(browser: webdriver.Chrome, tag: str, text: str) -> bool:
    """Click what says this, if it is there and can be clicked."""
    for element in browser.find_elements(By.TAG_NAME, tag):
        if element.text == text and element.is_enabled():
            element.click()
            return True
    return False


def _runs(up: Up, *, of: str) -> list[Any]:
    query = "{ runsOrError { ... on Runs { results { runId jobName } } } }"
    return [run for run in up.ask(query)["runsOrError"]["results"] if run["jobName"] == of]


@pytest.mark.parametrize("option", ["--port", "--page-port"])
def test_a_taken_port_is_named_with_the_way_out(settings: Settings, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli(settings, "up", option, str(port))
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert option in done.stderr


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("sampling", "all", "SIGLIP_SAMPLING='all' is not a sampling; allowed: fps:N"),
        ("executor", "celery", "SIGLIP_CELERY_BROKER_URL is not set"),
    ],
)
def test_a_setting_with_which_nothing_can_be_loaded_is_named(
    settings: Settings, setting: str, value: str, said: str
) -> None:
    done = cli(settings.model_copy(update={setting: value}), "up")
    assert done.returncode == 2
    assert f"error: {said}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_fails_is_found_with_its_reason(up: Up) -> None:
    """As the demo finds one. The value counts although there is nothing to embed."""
    api = DagsterApi(up.dagster_url)
    began = time.time()
    assert api.failed_run(since=0) is None
    config = {"resources": {"siglip": {"config": {"device": "gpu"}}}}
    run = api.launch_run("rebuild_index", config=config)
    up.wait_until(lambda: api.run_state(run).has_ended, seconds=120)
    failed = api.failed_run(since=began)
    assert failed is not None
    assert failed.startswith("a run of similarity_index failed: SIGLIP_DEVICE='gpu': is not a")
    assert failed.endswith(f"({up.dagster_url}/runs/{run})")
    assert api.failed_run(since=time.time()) is None


def test_videos_that_a_failed_run_left_undone_are_told_and_taken_up(up: Up, tmp_path: Path) -> None:
    """The video has no reason of its own where the run failed as a whole."""
    name = "left.mp4"
    with open_database(DatabaseOptions.from_settings(up.settings)) as database:
        AnnouncedUploads(database).register([Upload(path=name, size_bytes=1)])
    api = DagsterApi(up.dagster_url)
    api.add_partitions([name])
    run = api.launch_run(
        "sample_frames",
        asset="video_frames",
        tags={RANGE_START_TAG: name, RANGE_END_TAG: name},
        config={"resources": {"uploads": {"config": {"url": "zzz://nowhere"}}}},
    )
    up.wait_until(lambda: api.run_state(run).has_ended, seconds=120)
    [warning] = json.loads(cli(up.settings, "status", "--json").stdout)["warnings"]
    assert warning.startswith("a run of video_frames failed: ")
    assert "zzz" in warning
    assert f"({up.dagster_url}/runs/{run}); 1 of the videos to come must wait for it: " in warning
    assert warning in cli(up.settings, "status").stdout
    page = f"http://127.0.0.1:{up.settings.page_port}"
    assert httpx.get(f"{page}/api/status", timeout=60).json()["warnings"] == [warning]

    film = render_video(tmp_path / name, [demo_scenes()[0]], seconds_per_scene=2).path
    done = cli(up.settings, "ingest", str(film), "--wait", "--json")
    assert json.loads(done.stdout)["indexed"] == [name], done.stderr
    assert json.loads(cli(up.settings, "status", "--json").stdout)["warnings"] == []


def test_sensors_that_a_person_has_switched_off_are_known(up: Up) -> None:
    api = DagsterApi(up.dagster_url)
    assert api.stopped_sensors() == []
    selector = (
        '{repositoryName: "__repository__", repositoryLocationName: "siglip_pipeline",'
        ' sensorName: "watch_messages"}'
    )
    found = (
        f"sensorOrError(sensorSelector: {selector}) {{ ... on Sensor {{ sensorState {{ id }} }} }}"
    )
    sensor = up.ask(f"{{ {found} }}")["sensorOrError"]["sensorState"]["id"]
    up.ask(f'mutation {{ stopSensor(id: "{sensor}") {{ __typename }} }}')
    assert api.stopped_sensors() == ["watch_messages"]
    up.ask(f"mutation {{ startSensor(sensorSelector: {selector}) {{ __typename }} }}")
    assert api.stopped_sensors() == []


def _note_down(home: Path, *, sockets: Path) -> None:
    urls = {"dagster_url": "http://127.0.0.1:1", "page_url": "http://127.0.0.1:2"}
    write_state(home, **urls, children=[], sockets=sockets)


@pytest.mark.parametrize(("name", "goes"), [("siglip-up-abc", True), ("another", False)])
def test_a_killed_up_leaves_no_folder_for_sockets(tmp_path: Path, name: str, goes: bool) -> None:
    sockets = tmp_path / name
    sockets.mkdir()
    (sockets / "code-server").touch()
    _note_down(tmp_path, sockets=sockets)
    end_leftovers(tmp_path)
    assert sockets.exists() is not goes


def test_a_clock_that_is_set_does_not_hide_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _note_down(tmp_path, sockets=tmp_path)
    found = running(tmp_path)
    assert found is not None
    assert found.pid == os.getpid()
    # What the kernel reports as the time of its start moves with the wall clock.
    an_hour_later = psutil.boot_time() + 3600
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: an_hour_later)
    assert running(tmp_path) == found


def test_other_machines_are_let_in_only_with_a_key(settings: Settings) -> None:
    done = cli(settings, "up", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "SIGLIP_API_KEY" in done.stderr


def test_an_upload_becomes_searchable_and_everything_stops_and_goes_on(
    up: Up, log: Path, tmp_path: Path
) -> None:
    """The last of those that share it: it ends."""
    scenes = demo_scenes()[:4]
    settings = up.settings
    url = f"http://127.0.0.1:{settings.dagster_port}/server_info"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert json.load(answer)["dagster_version"]
    up_now = running(settings.home)
    assert up_now is not None
    assert up_now.page_url == f"http://127.0.0.1:{settings.page_port}"
    assert up_now.page_url in log.read_text()
    assert (settings.home / "postgres").is_dir()  # below /var/lib, it would outlive the test
    assert str(settings.dagster_port) in log.read_text()
    # One process group, but for Postgres: the terminal's Ctrl-C must not reach it first.
    groups = {os.getpgid(p.pid) for p in up.family() if p.name() != "postgres"}
    assert groups == {os.getpgid(up.process.pid)}

    second = cli(settings, "up", "--port", str(free_port()))
    assert second.returncode == 2
    assert f"process {up.process.pid}" in second.stderr

    # The runs are children of the process that has everything imported; those under way look
    # like it.
    forked = descendants("multiprocessing.forkserver", of=up.process.pid)
    fork_server = min(forked, key=lambda process: process.create_time())
    before = fork_server.cpu_times().children_user
    others = up.status()["videos"]["indexed"]
    render_video(Path(settings.uploads) / "a.mp4", scenes, seconds_per_scene=2)
    up.wait_until(lambda: up.status()["videos"]["indexed"] == others + 1, seconds=300, pause=2)
    assert fork_server.cpu_times().children_user > before
    found = cli(settings, "search", scenes[2].caption, "--k", "1", "--json")
    hit = json.loads(found.stdout)["hits"][0]
    assert 4 <= hit["time_seconds"] < 6
    found_by_page = f"{up_now.page_url}/api/search?{urlencode({'q': scenes[2].caption, 'k': 1})}"
    with urllib.request.urlopen(found_by_page, timeout=120) as answer:
        assert json.load(answer)["hits"][0]["frame_index"] == hit["frame_index"]
    with urllib.request.urlopen(f"{up_now.page_url}/status", timeout=60) as answer:
        assert f"http://127.0.0.1:{settings.dagster_port}/assets" in answer.read().decode()
    assert not open_to_others(settings.home)
    # Interrupted in the middle of a run, and nothing is lost: the next `up` goes on.
    shutil.copyfile(Path(settings.uploads) / "a.mp4", Path(settings.uploads) / "b.mp4")
    up.wait_until(up.has_started_run, seconds=120)
    assert up.interrupt() < 10
    assert running(settings.home) is None
    on_ipv6 = settings.model_copy(update={"host": "::1", "dagster_host": "::1"})
    with _up(on_ipv6, tmp_path / "again.log") as again:
        up_now = running(settings.home)
        assert up_now is not None
        assert up_now.page_url == f"http://[::1]:{settings.page_port}"
        for url in (f"{up_now.page_url}/healthz", f"{up_now.dagster_url}/server_info"):
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert answer.status == 200
        again.wait_until(
            lambda: again.status()["videos"]["indexed"] == others + 2, seconds=300, pause=2
        )
        shown = json.loads(cli(settings, "status", "--json").stdout)
        assert shown["videos"] == again.status()["videos"]
        assert again.interrupt() < 10
