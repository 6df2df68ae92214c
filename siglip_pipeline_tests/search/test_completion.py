"""What the shell completes, asked as bash asks it."""

import os
import subprocess
import sys

import pytest

from siglip_pipeline.settings import child_environment
from siglip_pipeline_tests.search.conftest import Films

SCRIPT = "import sys; from siglip_pipeline.cli.main import main; "


def _completed(films: Films, words: str, **changes: str) -> list[str]:
    asked = {
        "_SIGLIP_PIPELINE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    script = f"{SCRIPT}sys.argv[0] = 'siglip-pipeline'; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **child_environment(films.settings), **asked, **changes},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("siglip-pipeline duplicates o", ["one.mp4"]),
        ("siglip-pipeline duplicates sub/", ["sub/two.mp4"]),
        ("siglip-pipeline search x --video o", ["one.mp4"]),
        ("siglip-pipeline materialize o", ["one.mp4"]),
        ("siglip-pipeline materialize --videos o", ["one.mp4"]),
        ("siglip-pipeline labels o", ["one.mp4"]),
        ("siglip-pipeline search --like o", ["one.mp4@"]),
        ("siglip-pipeline explain x o", ["one.mp4@"]),
        ("siglip-pipeline duplicates nothing", []),
    ],
)
def test_names_of_videos_are_completed(films: Films, words: str, expected: list[str]) -> None:
    assert _completed(films, words) == expected


def test_keys_of_models_are_completed(films: Films) -> None:
    key = films.service.active_model().key
    for command in ("models promote", "evaluate x --model"):
        assert _completed(films, f"siglip-pipeline {command} {key[:4]}") == [key]


def test_without_a_database_nothing_is_completed_and_none_is_started(films: Films) -> None:
    lost = "postgresql://127.0.0.1:1/nothing"
    assert _completed(films, "siglip-pipeline duplicates o", SIGLIP_DATABASE_URL=lost) == []
