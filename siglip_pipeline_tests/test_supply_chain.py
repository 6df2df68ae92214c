"""What is installed is pinned, hashed and permitted; and the checks of that can fail."""

import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import check_licences  # noqa: E402
import write_lock  # noqa: E402


@pytest.mark.parametrize(
    ("expression", "permitted"),
    [
        ("MIT", True),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception AND BSD-3-Clause", True),
        ("(MIT AND BSD-2-Clause) OR AGPL-3.0-only", True),
        ("AGPL-3.0-only", False),
        ("LicenseRef-Proprietary", False),
        ("", False),
    ],
)
def test_permitted(expression: str, permitted: bool) -> None:
    assert check_licences.is_permitted(expression) is permitted


def test_a_package_of_another_licence_or_none_is_a_problem(tmp_path: Path) -> None:
    for name, lines in {
        "good": "License-Expression: MIT",
        "copyleft": "License-Expression: AGPL-3.0-only",
        "silent": "Summary: nothing",
        "chatty": "License: do what you like",
        "nvidia-cublas": "License-Expression: LicenseRef-NVIDIA-Proprietary",
        "nvidia-cufft": "License: LicenseRef-NVIDIA-Proprietary",
        "cuda-toolkit": "Summary: nothing",
        "other": "License-Expression: LicenseRef-NVIDIA-Proprietary",
    }.items():
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{lines}\n"
        )
    found = check_licences.problems(distributions(path=[str(tmp_path)]))
    assert sorted(line.split(":")[0] for line in found) == [
        *("chatty", "copyleft", "other", "silent"),
    ]


def test_the_lock_agrees_with_constraints_and_project() -> None:
    assert write_lock.disagreements() == []


def test_a_lock_that_does_not_agree_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = write_lock.LOCK.read_text().splitlines(keepends=True)
    changed = [line for line in lines if not line.startswith("av==")]
    changed = [line.replace("numpy==", "numpy==9.") for line in changed]
    changed = [
        line.partition(" --hash")[0] + "\n" if line.startswith("rich==") else line
        for line in changed
    ]
    lock = tmp_path / "requirements.lock"
    lock.write_text("".join(changed))
    monkeypatch.setattr(write_lock, "LOCK", lock)
    found = "\n".join(write_lock.disagreements())
    for part in ("av>=18.1,<19: nothing is locked", "numpy: 9.", "rich==15.0.0: no hash"):
        assert part in found
