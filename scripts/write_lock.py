"""Write requirements.lock: every package of constraints.txt with the SHA-256 of its file.

Pip says, without installing anything, which file it would take of each and what its hash is. Run
on the platform that the lock is for. ``--check`` only compares the lock with constraints.txt and
pyproject.toml, without network.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
LOCK: Final = ROOT / "requirements.lock"

HEAD: Final = """# Written by scripts/write_lock.py for {platform}; do not edit.
# pip install --require-hashes -r requirements.lock && pip install --no-deps -e .
# torch: the hash is of the build without CUDA. For another build run the script where it is found.
"""


def normalised(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve() -> dict[str, Any]:
    """Return pip's report of what it would install.

    Raises:
        subprocess.CalledProcessError: pip cannot find something, and says what.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--dry-run", "--ignore-installed", "--no-deps", "--report", str(report)),
                *("--requirement", str(ROOT / "constraints.txt")),
            ],
            check=True,
        )
        found: dict[str, Any] = json.loads(report.read_text())
        return found


def render(report: dict[str, Any]) -> str:
    """Return the text of the lock file.

    Raises:
        SystemExit: the index gives no hash for a file.
    """
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        if "sha256" not in hashes:
            raise SystemExit(f"{name}: the index gives no SHA-256 of {item['download_info']}")
        pin = f"{normalised(name)}=={version.partition('+')[0]}"
        lines.append(f"{pin} --hash=sha256:{hashes['sha256']}\n")
    environment = report["environment"]
    platform = (
        f"CPython {environment['python_version']}, {environment['sys_platform']} "
        f"{environment['platform_machine']}"
    )
    return HEAD.format(platform=platform) + "".join(sorted(lines))


def pins(file: Path) -> dict[str, str]:
    """Return the version by name of every line ``name==version``."""
    found = re.findall(r"^([\w.-]+)==(\S+)", file.read_text(), re.MULTILINE)
    return {normalised(name): version for name, version in found}


def disagreements() -> list[str]:
    """Return the differences between lock, constraints and pyproject.toml."""
    from packaging.requirements import Requirement

    locked, constrained = pins(LOCK), pins(ROOT / "constraints.txt")
    found = [
        f"{name}: {locked.get(name, 'nothing')} is locked, "
        f"{constrained.get(name, 'nothing')} is in constraints.txt"
        for name in sorted({*locked, *constrained})
        if constrained.get(name) != locked.get(name)
    ]
    for line in LOCK.read_text().splitlines():
        if (
            line
            and not line.startswith("#")
            and not re.search(r"--hash=sha256:[0-9a-f]{64}$", line)
        ):
            found.append(f"{line}: no hash")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # As torch's build with CUDA, what only a card needs is not in the lock.
    extras = [v for name, v in project["optional-dependencies"].items() if name != "cuda"]
    for text in dict.fromkeys(chain(project["dependencies"], *extras)):
        requirement = Requirement(text)
        version = locked.get(normalised(requirement.name))
        if version is None or version not in requirement.specifier:
            found.append(f"{text}: {version or 'nothing'} is locked")
    return found


def main() -> int:
    """Write the lock (unless ``--check``), then check it."""
    if "--check" not in sys.argv[1:]:
        LOCK.write_text(render(resolve()))
    found = disagreements()
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
