"""The deployment files name what exists: settings, commands, and the instance they copy."""

import re
import subprocess
import sys
import time
import tomllib
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from typer.testing import CliRunner

from siglip_pipeline.cli.main import app
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment, variable_of

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CI_EXAMPLE = "../.github/workflows/materialize.yml"
FILES = [
    CI_EXAMPLE,
    "docker-compose.yml",
    "kubernetes/values.yaml",
    "kubernetes/workers.yaml",
    "env.example",
]
# Of Compose alone: which image to run.
NO_SETTINGS = {"SIGLIP_IMAGE", "SIGLIP_GPU_IMAGE"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", FILES)
def test_every_variable_is_a_setting(name: str) -> None:
    known = {variable_of(field) for field in Settings.model_fields} | NO_SETTINGS
    named = set(re.findall(r"\bSIGLIP_[A-Z0-9_]+", (DEPLOY / name).read_text()))
    assert named
    assert named <= known


@pytest.mark.parametrize("name", FILES[:3])
def test_every_command_is_one_of_ours(name: str) -> None:
    text = (DEPLOY / name).read_text()
    for command in set(re.findall(r"\[siglip-pipeline, ([a-z-]+)", text)):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command


def test_compose_starts_every_service() -> None:
    services = load(DEPLOY / "docker-compose.yml")["services"]
    assert set(services) == {
        *("postgres", "redis", "migrate", "code", "webserver", "daemon"),
        *("cpu-worker", "gpu-worker", "search"),
    }
    assert services["cpu-worker"]["command"][-1] == "dagster"
    assert services["gpu-worker"]["command"][-1] == "siglip"
    devices = services["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


@pytest.mark.slow
def test_composes_code_server_is_healthy_by_composes_own_check(tmp_path: Path) -> None:
    code = load(DEPLOY / "docker-compose.yml")["services"]["code"]
    here = {"python": sys.executable, "0.0.0.0": "127.0.0.1", "4000": str(free_port())}
    server, check = (
        [here.get(word, word) for word in words]
        for words in (code["command"], code["healthcheck"]["test"][1:])
    )
    broker = f"redis://127.0.0.1:{free_port()}/0"
    settings = Settings.load(home=tmp_path, executor="celery", celery_broker_url=broker)
    environment = child_environment(settings) | {"DAGSTER_HOME": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(server, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 100
        check = [sys.executable, "-m", *check]
        while subprocess.run(check, env=environment, capture_output=True, check=False).returncode:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
    finally:
        process.terminate()
        process.wait(60)


def test_files_that_compose_mounts_are_there() -> None:
    services = load(DEPLOY / "docker-compose.yml")["services"].values()
    mounted = {
        volume.split(":")[0]
        for service in services
        for volume in service["volumes"]
        if volume.startswith("./")
    }
    assert {"./dagster.yaml", "./workspace.yaml", "./postgres-init.sql"} <= mounted
    assert all((DEPLOY / name).is_file() for name in mounted)


def test_images_are_pinned_and_no_container_is_root() -> None:
    for service in load(DEPLOY / "docker-compose.yml")["services"].values():
        assert not service["image"].endswith(":latest")
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER \d+$", dockerfile, re.MULTILINE)
    assert "--constraint constraints.txt" in dockerfile


def test_what_the_image_keeps_lies_in_its_volume() -> None:
    """Compose mounts everything else read-only."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    (volume,) = re.findall(r"^VOLUME (\S+)$", dockerfile, re.MULTILINE)
    for variable in ("SIGLIP_HOME", "SIGLIP_CACHE", "HF_HOME"):
        folder = re.search(rf"\b{variable}=(\S+)", dockerfile)
        assert folder is not None, variable
        assert Path(folder[1]).is_relative_to(volume), variable


def test_the_image_installs_nothing_that_is_not_pinned() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    extras = re.search(r"'\.\[([a-z0-9,]+)\]'", dockerfile)
    assert extras is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in extras[1].split(","):
        wanted += project["optional-dependencies"][extra]
    pinned = {
        canonicalize_name(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert {canonicalize_name(Requirement(text).name) for text in wanted} <= pinned


def test_every_python_that_is_permitted_is_one_of_dagster_and_is_tested_at_night() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours, dagsters = (
        {minor for minor in range(30) if SpecifierSet(text).contains(f"3.{minor}")}
        for text in (project["requires-python"], metadata("dagster")["Requires-Python"])
    )
    assert ours == dagsters - set(range(11))
    first, last = min(ours), max(ours)
    assert f"(3, {first}) <= sys.version_info < (3, {last + 1})" in (ROOT / "Makefile").read_text()
    for page in ("README.md", "CONTRIBUTING.md"):
        assert f"Python 3.{first} to 3.{last}" in (ROOT / page).read_text()
    nightly = (ROOT / ".github" / "workflows" / "nightly.yml").read_text()
    named = {int(minor) for minor in re.findall(r"- \{name: .*python: \"3\.(\d+)\"", nightly)}
    assert named == ours - {first}


def test_the_example_for_ci_leaves_the_work_to_the_services() -> None:
    """By itself a runner, which knows no frame store, would keep the frames on its own disk."""
    job = load(DEPLOY / CI_EXAMPLE)["jobs"]["materialize"]
    work = {"SIGLIP_FRAME_STORE", "DAGSTER_POSTGRES_URL", "SIGLIP_MODEL_NAME", "SIGLIP_SAMPLING"}
    assert "vars.DAGSTER_URL != ''" in job["if"] or work <= set(job["env"])


def test_the_nightly_job_has_the_oldest_versions_that_are_permitted() -> None:
    nightly = (ROOT / ".github" / "workflows" / "nightly.yml").read_text()
    job = nightly.partition("- name: oldest")[2].partition("- name:")[0]
    installed = dict(re.findall(r"'([a-z-]+)==([0-9.]+)'", job))
    assert {"transformers", "huggingface-hub"} <= set(installed)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.name in installed:
            (least,) = (one.version for one in requirement.specifier if one.operator == ">=")
            assert Version(least) == Version(installed.pop(requirement.name)), requirement
    assert not installed


def test_the_cluster_launches_runs_with_what_the_image_holds() -> None:
    # The chart's instance names classes of dagster_k8s, which every process of it has to load.
    assert load(DEPLOY / "kubernetes" / "values.yaml")["runLauncher"]["type"] == "K8sRunLauncher"
    assert "k8s" in (DEPLOY / "Dockerfile").read_text()


def test_the_clusters_instance_differs_where_it_says_so() -> None:
    here, there = load(ROOT / "dagster.yaml"), load(DEPLOY / "dagster.yaml")
    assert (
        there.pop("concurrency")["pools"]["granularity"]
        == here.pop("concurrency")["pools"]["granularity"]
    )
    assert there.pop("compute_logs")["class"] == "NoOpComputeLogManager"
    assert there["run_monitoring"].pop("max_runtime_seconds") == 86400
    here.pop("compute_logs", None)
    assert there == here
