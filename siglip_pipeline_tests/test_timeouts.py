"""Every wait for another program has a timeout."""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from siglip_pipeline.embedded_postgres.programs import run_program
from siglip_pipeline.errors import EmbeddedDatabaseError

PACKAGE = Path(__file__).parents[1] / "siglip_pipeline"

RUNS = {"run", "call", "check_call", "check_output"}


def endless(tree: ast.AST) -> Iterator[str]:
    """Calls that wait for a process without a limit of time."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, ast.unparse(node.func.value)
        limited = any(keyword.arg in ("timeout", None) for keyword in node.keywords)
        waits = (
            (owner == "subprocess" and name in RUNS)
            or name == "communicate"
            or (name == "wait" and not node.args)
        )
        if waits and not limited:
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


def test_every_wait_for_a_process_has_a_limit() -> None:
    found = [
        f"{path}, {call}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for call in endless(ast.parse(path.read_text()))
    ]
    assert found == []


def test_the_rule_finds_what_it_is_for() -> None:
    code = "subprocess.run(x)\np.communicate()\np.wait()\nsubprocess.run(x, timeout=1)\np.wait(5)"
    assert len(list(endless(ast.parse(code)))) == 3


def test_a_program_that_does_not_end_is_ended_and_named() -> None:
    code = "import time; print('half done', flush=True); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(EmbeddedDatabaseError, match=r"did not end within 2 s(.|\n)*half done"):
        run_program([sys.executable, "-c", code], seconds=2)
    assert time.monotonic() - began < 20


def test_what_a_program_says_is_returned() -> None:
    done: subprocess.CompletedProcess[str] = run_program(["sh", "-c", "echo a; exit 3"], seconds=10)
    assert (done.returncode, done.stdout) == (3, "a\n")
