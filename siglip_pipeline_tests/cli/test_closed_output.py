"""A command whose stdout is closed says so; its answer would be seen by nobody."""

import subprocess
import sys

import pytest

_MAIN = "from siglip_pipeline.cli.main import main; main()"


@pytest.mark.parametrize("command", [["--version"], ["status", "--json"], ["search", "a red car"]])
def test_a_closed_stdout_is_named_with_the_way_out(command: list[str]) -> None:
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", _MAIN, *command]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: stdout is closed; redirect it, e.g. with > /dev/null\n"
