"""What `up` exposes: to other machines, to other users of this one, and to pages in a browser.

One `up` without a key is looked at in Chromium, one with a key from a shell.
"""

import contextlib
import json
import os
import stat
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.services.up import Launcher, launch
from siglip_pipeline.settings import Settings
from siglip_pipeline_tests.processes import command_of
from siglip_pipeline_tests.services.test_up import _cli
from siglip_pipeline_tests.web.browser import CHROMIUM, DRIVER, chromium

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

KEY = "a-key-of-more-than-16-characters"
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


def _settings(folder: Path, **values: Any) -> Settings:
    (folder / "uploads").mkdir()
    return Settings.load(
        home=folder / "home",
        uploads=str(folder / "uploads"),
        model_name=str(MODEL_FOLDER),
        uploads_settle_seconds=0.2,
        dagster_port=free_port(),
        page_port=free_port(),
        **values,
    )


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with launch(_settings(tmp_path_factory.mktemp("up"))) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def browser(up: Launcher) -> Iterator[webdriver.Chrome]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module", params=["127.0.0.1", "localhost"])
def other_page(
    request: pytest.FixtureRequest, up: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A page of another port, or of another site altogether, that tries everything."""
    folder = tmp_path_factory.mktemp("other_page")
    script = ATTACK.replace("UI", up.endpoints.dagster_url).replace("QUERY", PAUSE)
    (folder / "attack.js").write_text(script)
    (folder / "index.html").write_text("<body><script src='attack.js'></script>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{request.param}:{server.server_port}/"
        server.shutdown()


def _ask(up: Launcher, query: str) -> Any:
    answer = httpx.post(f"{up.endpoints.dagster_url}/graphql", json={"query": query}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def _listening(process: psutil.Process) -> set[str]:
    found: set[str] = set()
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that had little to do
            found |= {c.laddr.ip for c in one.net_connections("inet") if c.status == "LISTEN"}
    return found


def _service(up: Launcher, word: str) -> psutil.Process:
    home = str(up.settings.home)
    children = [p for p in psutil.Process().children() if word in command_of(p).split()]
    (found,) = [p for p in children if p.environ()["SIGLIP_HOME"] == home]
    return found


def test_the_code_server_can_be_reached_by_this_user_alone(up: Launcher) -> None:
    path = up.endpoints.code_socket
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.parent.stat().st_uid == os.geteuid()
    assert _listening(_service(up, "siglip_pipeline.services.code_server")) == set()
    assert _listening(_service(up, "dagster._daemon")) == set()


@needs_browser
def test_another_page_in_the_same_browser_can_do_nothing(
    up: Launcher, browser: webdriver.Chrome, other_page: str
) -> None:
    _ask(up, PAUSE.replace("true", "false"))
    browser.get(other_page)
    tried = WebDriverWait(browser, 60).until(lambda b: b.execute_script("return window.done"))
    # An opaque answer counts as one, whatever it says: what counts is what was done.
    assert {line for line in tried if "went through" in line} <= {
        *("no-cors GET: went through", "no-cors POST: went through", "text: went through"),
    }, tried
    assert _ask(up, IS_PAUSED)["instance"] == {"autoMaterializePaused": False}
    browser.switch_to.frame("framed")
    assert "Dagster" not in browser.page_source
    browser.switch_to.default_content()
    # A tab may be sent to a page, and to no address that does something.
    browser.execute_script(f"location = '{up.endpoints.dagster_url}/graphql?query={PAUSE}'")
    WebDriverWait(browser, 20).until(lambda b: "graphql" in b.current_url)
    WebDriverWait(browser, 20).until(lambda b: "Forbidden" in b.page_source)
    browser.get(other_page)
    browser.execute_script(f"location = '{up.endpoints.dagster_url}/assets'")
    WebDriverWait(browser, 60).until(lambda b: "video_frames" in b.page_source)
    assert _ask(up, IS_PAUSED)["instance"] == {"autoMaterializePaused": False}


@needs_browser
def test_the_real_ui_works_in_a_browser(up: Launcher, browser: webdriver.Chrome) -> None:
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH_WEBSOCKETS})
    url = up.endpoints.dagster_url
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


def _click(browser: webdriver.Chrome, tag: str, text: str) -> bool:
    """Click what says this, if it is there and can be clicked."""
    for element in browser.find_elements(By.TAG_NAME, tag):
        if element.text == text and element.is_enabled():
            element.click()
            return True
    return False


def _runs(up: Launcher, *, of: str) -> list[Any]:
    query = "{ runsOrError { ... on Runs { results { runId jobName } } } }"
    return [run for run in _ask(up, query)["runsOrError"]["results"] if run["jobName"] == of]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    folder = tmp_path_factory.mktemp("shared")
    with launch(_settings(folder, host="0.0.0.0", api_key=KEY)) as launcher:
        yield launcher


def test_dagster_stays_on_loopback_when_the_page_does_not(shared: Launcher) -> None:
    assert _listening(_service(shared, "serve")) == {"0.0.0.0"}
    assert _listening(_service(shared, "dagster-ui")) == {"127.0.0.1"}
    assert shared.endpoints.dagster_url.startswith("http://127.0.0.1:")


def test_the_status_page_links_to_dagster_where_it_can_be_reached(shared: Launcher) -> None:
    page = f"{shared.endpoints.page_url}/status"
    here = httpx.get(page, headers={"X-API-Key": KEY}, timeout=60).text
    assert shared.endpoints.dagster_url in here
    elsewhere = httpx.get(
        page, headers={"X-API-Key": KEY, "Host": "search.example"}, timeout=60
    ).text
    assert str(shared.settings.dagster_port) not in elsewhere


def test_materialize_brings_the_key_to_the_dagster_that_runs(shared: Launcher) -> None:
    url = shared.endpoints.dagster_url
    assert (
        httpx.post(f"{url}/graphql", json={"query": "{ version }"}, timeout=60).status_code == 401
    )
    video = Path(shared.settings.uploads) / "a.mp4"
    render_video(video, demo_scenes()[:1], seconds_per_scene=1)
    arguments = ("materialize", "a.mp4", "--no-wait", "--json", "--dagster-url", url)
    done = _cli(shared.settings, *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backfills"]
    keyless = _cli(shared.settings.model_copy(update={"api_key": None}), *arguments)
    assert keyless.returncode == 2
    assert "401" in keyless.stderr
