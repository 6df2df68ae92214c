"""The distributions: what is in them, and that the installed wheel works outside the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from siglip_pipeline import __version__
from siglip_pipeline.services.ports import free_port

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel in it, and a folder to work in outside the checkout."""

    commands: Path
    folder: Path

    def run(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        own = {"SIGLIP_DAGSTER_PORT": str(free_port()), "SIGLIP_PAGE_PORT": str(free_port())}
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and "SIGLIP" not in k}
        return subprocess.run(
            [self.commands / command, *arguments],
            cwd=self.folder,
            env=kept | own,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Iterator[Installed]:
    """The wheel in a fresh environment, which sees the packages of this one beside it."""
    # Not tmp_path: pytest keeps that closed to the user that root runs Postgres as.
    with tempfile.TemporaryDirectory(prefix="siglip-tests-") as name:
        Path(name).chmod(0o755)
        environment, folder = Path(name) / "environment", Path(name) / "work"
        folder.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        python = environment / "bin" / "python"
        own = {"base": str(environment), "platbase": str(environment)}
        packages = Path(sysconfig.get_path("purelib", vars=own))
        # Python reads no .pth files of folders that a .pth file names: the editable install of
        # the checkout stays out.
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        options = ["--no-index", "--no-deps", "--ignore-installed"]
        subprocess.run([*pip, *options, wheel], check=True)
        yield Installed(environment / "bin", folder)


def test_the_wheel_is_the_package_and_nothing_else(wheel: Path) -> None:
    files = (path for path in (ROOT / "siglip_pipeline").rglob("*") if path.is_file())
    sources = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    names = set(zipfile.ZipFile(wheel).namelist())
    information = f"siglip_pipeline-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(information)} == {
        *sources,
        "siglip_pipeline/dagster.yaml",
    }
    assert {"siglip_pipeline/py.typed", f"{information}licenses/LICENSE"} <= names


def test_both_distributions_have_the_whole_licence(distributions: Path, wheel: Path) -> None:
    text = (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in text
    assert b"END OF TERMS AND CONDITIONS" in text
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        member = archive.extractfile(f"siglip_pipeline-{__version__}/LICENSE")
        assert member is not None
        assert member.read() == text
    licence = f"siglip_pipeline-{__version__}.dist-info/licenses/LICENSE"
    assert zipfile.ZipFile(wheel).read(licence) == text


@pytest.mark.slow
def test_an_installed_wheel_runs_outside_the_checkout(installed: Installed) -> None:
    where = installed.run("python", "-c", "import siglip_pipeline; print(siglip_pipeline.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed.commands.parent), where.stderr
    helped = installed.run("siglip-pipeline", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "demo" in helped.stdout
    status = installed.run("siglip-pipeline", "status", "--json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["videos"]["indexed"] == 0


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_demo_of_an_installed_wheel_finds_what_it_rendered(installed: Installed) -> None:
    done = installed.run("siglip-pipeline", "demo", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["correct"] == document["queries"] == 5
    assert len(document["quality"]["queries"]) == 200
    assert Path(installed.folder / ".siglip" / "demo" / "uploads" / "reel-1.mp4").is_file()
