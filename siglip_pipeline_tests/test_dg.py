"""Dagster's own commands work in a checkout: `dg`, and `dagster dev` for services of one's own."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from dagster_dg_core.context import DgContext

from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore

CHECKOUT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path, database_url: str) -> dict[str, str]:
    """With a Dagster of its own, which tells nobody of its use."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    (tmp_path / "uploads").mkdir()
    return os.environ | {
        "DAGSTER_HOME": str(tmp_path),
        "SIGLIP_HOME": str(tmp_path / "home"),
        "SIGLIP_UPLOADS": str(tmp_path / "uploads"),
        "SIGLIP_DATABASE_URL": database_url,
    }


def _dg(environment: dict[str, str], *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(BIN / "dg"), *command],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_checkout_is_a_project_of_dg(environment: dict[str, str]) -> None:
    """`dg check defs` is a part of `make check`."""
    listed = _dg(environment, "list", "defs", "--json")
    assert listed.returncode == 0, listed.stderr
    assert {asset["asset_key"] for asset in json.loads(listed.stdout)["assets"]} >= {
        *("uploads", "video_frames", "frame_embeddings", "similarity_index"),
    }


def test_an_asset_is_launched(environment: dict[str, str]) -> None:
    with_model = environment | {"SIGLIP_MODEL_NAME": str(MODEL_FOLDER)}
    launched = _dg(with_model, "launch", "--assets", "similarity_index")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    with Database(environment["SIGLIP_DATABASE_URL"]) as database:
        assert len(ModelStore(database).list()) == 1  # the run registered it


def test_schedules_keep_their_state_under_dg_dev() -> None:
    """The daemon removes the state of a code location of another name."""
    [location] = yaml.safe_load((CHECKOUT / "workspace.yaml").read_text())["load_from"]
    name = DgContext.for_project_environment(CHECKOUT, {}).code_location_name
    assert name == location["python_module"]["location_name"]


def test_dagster_dev_loads_the_workspace(environment: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "dev.log"
    with log.open("w") as output:
        served = subprocess.Popen(
            [
                *(str(BIN / "dagster"), "dev", "--workspace", "workspace.yaml"),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            cwd=CHECKOUT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while (found := _locations(port)) is None:
            assert served.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
    finally:
        os.killpg(served.pid, signal.SIGINT)
        try:
            served.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(served.pid, signal.SIGKILL)
            served.wait()
    assert found == {"siglip_pipeline": "LOADED"}
    assert "BackfillPolicies" not in log.read_text()


def _locations(port: int) -> dict[str, str] | None:
    """The load status of each code location; None while the webserver does not answer."""
    query = """{ locationStatusesOrError { ... on WorkspaceLocationStatusEntries {
        entries { name loadStatus } } } }"""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            entries = json.load(answer)["data"]["locationStatusesOrError"]["entries"]
    except (OSError, urllib.error.URLError):
        return None
    return {entry["name"]: entry["loadStatus"] for entry in entries}
