"""Run tests on a copy of the project, in forks of a process that has imported the libraries.

    python -m siglip_pipeline_tests.sabotage.forked COPY

reads arguments of pytest, a JSON list a line, and answers with pytest's exit status.
"""

import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

TEST_SECONDS = 600
OUTPUT = "output.txt"
FORK = multiprocessing.get_context("fork")
PACKAGES = ("siglip_pipeline", "siglip_pipeline_tests")
LIBRARIES = (
    "dagster",
    "hypothesis.extra.numpy",
    "psycopg",
    "pyarrow.parquet",
    "torch",
    "transformers",
)
"""Imported once, before tests run in forks: their import takes longer than most tests."""


def import_libraries() -> None:
    for library in LIBRARIES:
        importlib.import_module(library)


def run(copy: Path, arguments: Sequence[str]) -> int:
    """Run tests on the copy in a process that has the libraries already; its exit status.

    It is -1 if they did not end. What they said is in the file ``OUTPUT`` of the copy.
    """
    process = FORK.Process(target=_run_pytest, args=(copy, arguments))
    process.start()
    process.join(TEST_SECONDS + 10 * len(arguments))
    if process.exitcode is None:
        process.kill()
        process.join()
    return -1 if process.exitcode is None else process.exitcode


def _run_pytest(copy: Path, arguments: Sequence[str]) -> None:
    output = os.open(copy / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(output, number)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)  # of processes that tests start
    options = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    sys.exit(int(pytest.main([*options, *arguments])))


if __name__ == "__main__":
    import_libraries()
    for line in sys.stdin:
        print(run(Path(sys.argv[1]), json.loads(line)), flush=True)
