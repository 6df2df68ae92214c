"""`siglip-pipeline up` for real: its processes, its signals, and a video on its way."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import pytest

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.services.state import end_leftovers, running, write_state
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.stages.status import StatusOptions, collect_status
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline_tests.conftest import folder_for_postgres
from siglip_pipeline_tests.files.test_private_files import open_to_others
from siglip_pipeline_tests.processes import descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

COMMAND = [sys.executable, "-m", "siglip_pipeline.cli.main"]


@dataclass
class Up:
    """A running `up` and how to speak to it."""

    settings: Settings
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait_until(self, condition: Callable[[], bool], *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

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
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.settings.dagster_port}/graphql",
            data=json.dumps({"query": query}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(json.load(answer)["data"]["runsOrError"]["results"])

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


def _cli(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        env=child_environment(settings),
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
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*COMMAND, "up"], env=child_environment(settings), stdout=output, stderr=output
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


@pytest.fixture
def settings() -> Iterator[Settings]:
    with settings_of_up() as made:
        yield made


def test_an_upload_becomes_searchable_and_everything_stops_and_goes_on(
    settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "up.log"
    scenes = demo_scenes()[:4]
    with _up(settings, log) as up:
        url = f"http://127.0.0.1:{settings.dagster_port}/server_info"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert json.load(answer)["dagster_version"]
        up_now = running(settings.home)
        assert up_now is not None
        assert up_now.page_url == f"http://127.0.0.1:{settings.page_port}"
        assert up_now.page_url in log.read_text()
        assert _error_of(f"{up_now.page_url}/readyz") == "NotReady"
        assert (settings.home / "postgres").is_dir()  # below /var/lib, it would outlive the test
        render_video(Path(settings.uploads) / "a.mp4", scenes, seconds_per_scene=2)
        assert str(settings.dagster_port) in log.read_text()
        # One process group, but for Postgres: the terminal's Ctrl-C must not reach it first.
        groups = {os.getpgid(p.pid) for p in up.family() if p.name() != "postgres"}
        assert groups == {os.getpgid(up.process.pid)}

        second = _cli(settings, "up", "--port", str(free_port()))
        assert second.returncode == 2
        assert f"process {up.process.pid}" in second.stderr

        up.wait_until(lambda: up.status()["videos"]["indexed"] == 1, seconds=300)
        # The runs were children of the process that has everything imported; those under way
        # look like it.
        forked = descendants("multiprocessing.forkserver", of=up.process.pid)
        fork_server = min(forked, key=lambda process: process.create_time())
        assert fork_server.cpu_times().children_user > 0
        found = _cli(settings, "search", scenes[2].caption, "--k", "1", "--json")
        hit = json.loads(found.stdout)["hits"][0]
        assert 4 <= hit["time_seconds"] < 6
        found_by_page = (
            f"{up_now.page_url}/api/search?{urlencode({'q': scenes[2].caption, 'k': 1})}"
        )
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
    with _up(on_ipv6, tmp_path / "again.log") as up:
        up_now = running(settings.home)
        assert up_now is not None
        assert up_now.page_url == f"http://[::1]:{settings.page_port}"
        for url in (f"{up_now.page_url}/healthz", f"{up_now.dagster_url}/server_info"):
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert answer.status == 200
        up.wait_until(lambda: up.status()["videos"]["indexed"] == 2, seconds=300)
        shown = json.loads(_cli(settings, "status", "--json").stdout)
        assert shown["videos"] == up.status()["videos"]
        assert up.interrupt() < 10


@pytest.mark.parametrize("option", ["--port", "--page-port"])
def test_a_taken_port_is_named_with_the_way_out(settings: Settings, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _cli(settings, "up", option, str(port))
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert option in done.stderr


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
    done = _cli(settings, "up", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "SIGLIP_API_KEY" in done.stderr
