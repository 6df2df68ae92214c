"""What ruff and import-linter do not check: names, loads, and private parts of Dagster."""

import functools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "siglip_pipeline"

LIGHT = [
    "siglip_pipeline",
    "siglip_pipeline.settings",
    "siglip_pipeline.records",
    "siglip_pipeline.siglip",
    "siglip_pipeline.siglip.similarity",
    "siglip_pipeline.store",
    "siglip_pipeline.store.index.similarity_index",
    "siglip_pipeline.search",
    "siglip_pipeline.search.export",
    "siglip_pipeline.evaluation.promotion",
    "siglip_pipeline.video.clip",
    "siglip_pipeline.cli.main",
    "siglip_pipeline.definitions",
    "siglip_pipeline.web.app",
]


def test_the_name_of_a_module_says_its_subject_without_its_folder() -> None:
    names = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


@functools.cache
def _loaded_by(module: str) -> set[str]:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@functools.cache
def _definitions_loaded() -> "subprocess.CompletedProcess[str]":
    """Import what is light; print what that loads, then how many assets there are.

    A connection ends the process: Python's hook sees the sockets; for libpq, which it does not see,
    nothing listens.
    """
    code = (
        "import sys; refuse = lambda event, _: event != 'socket.connect' or sys.exit(event); "
        f"sys.addaudithook(refuse); import json, {', '.join(LIGHT)}; "
        "print(json.dumps(sorted(sys.modules))); from siglip_pipeline.definitions import defs; "
        "print(len(list(defs.resolve_all_asset_specs())))"
    )
    nowhere = "127.0.0.1:1/none?connect_timeout=1"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "SIGLIP_DATABASE_URL": f"postgresql://{nowhere}",
            "DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://{nowhere}",
        },
        capture_output=True,
        text=True,
    )


def test_light_modules_load_no_torch_transformers_or_av() -> None:
    """All of them in one process; each in its own to name the one that does."""
    heavy = {"torch", "transformers", "av"}
    done = _definitions_loaded()
    assert done.stdout, done.stderr
    together = set(json.loads(done.stdout.splitlines()[0])) & heavy
    assert not together, {
        module: found for module in LIGHT if (found := _loaded_by(module) & heavy)
    }


# What commands that take tenths of a second do without.
SLOW_TO_IMPORT = {
    "siglip_pipeline.web.app": {"dagster", "mcp"},
    "siglip_pipeline.cli.main": {
        *("dagster", "fastapi", "psycopg", "pyarrow", "PIL", "fsspec"),
        *("asyncio", "pydantic_settings", "urllib.request"),
    },
    "siglip_pipeline.cli.service_search": {
        *("dagster", "fastapi", "psycopg", "pyarrow", "PIL", "asyncio", "pydantic_settings"),
    },
    "siglip_pipeline.cli.main, siglip_pipeline.stages.status, siglip_pipeline.store.database": {
        "dagster",
        "fastapi",
        "pyarrow",
        "PIL",
        "numpy",
        "fsspec",
        "pydantic_settings",
    },
    "siglip_pipeline.cli.search_work": {"dagster", "fastapi"},
}


@pytest.mark.parametrize("module", SLOW_TO_IMPORT)
def test_what_must_start_at_once_loads_nothing_slow(module: str) -> None:
    assert not _loaded_by(module) & SLOW_TO_IMPORT[module]


def test_asking_a_running_dagster_loads_none() -> None:
    """It takes a second or two, of the few that `materialize` of one video takes."""
    assert "dagster" not in _loaded_by("siglip_pipeline.cli.main, siglip_pipeline.runs.remote")


def _imports(path: Path) -> set[str]:
    import ast

    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


MAY_NAME_PRIVATE_DAGSTER = {
    "defs/internals.py": "the one door, with a contract test",
    "services/code_server.py": "replaces how the code server starts runs, and is nothing else",
    "services/up.py": "runs `python -m dagster._daemon`: its script may not be on PATH",
}


def _private_dagster(path: Path) -> set[str]:
    """What a file names of Dagster that begins with an underscore."""
    import ast
    import re

    source = path.read_text()
    found = set(re.findall(r"\bdagster\w*(?:\.\w+)*\._\w+", source))
    found |= set(re.findall(r"^\s*(?:from|import) (dagster_shared[\w.]*)", source, re.MULTILINE))
    if "dagster" in _imports(path):
        found |= {
            f"{ast.unparse(node.value)}.{node.attr}"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and node.attr not in ("_asdict", "_replace")  # public, on every named tuple
            and not node.attr.endswith("__")
            and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        }
    return found


def test_private_parts_of_dagster_are_named_in_one_place() -> None:
    named = {p.relative_to(PACKAGE).as_posix(): _private_dagster(p) for p in PACKAGE.rglob("*.py")}
    named = {path: names for path, names in named.items() if names}
    assert named["defs/internals.py"]  # or nothing would be found anywhere
    offenders = {p: names for p, names in named.items() if p not in MAY_NAME_PRIVATE_DAGSTER}
    assert offenders == {}, "move these into siglip_pipeline/defs/internals.py"


def test_defs_do_not_postpone_annotations() -> None:
    # Dagster reads the annotations of resources and configs at definition time.
    for path in [*(PACKAGE / "defs").glob("*.py"), PACKAGE / "definitions.py"]:
        assert "from __future__ import annotations" not in path.read_text()


def test_loading_the_definitions_connects_to_nothing() -> None:
    done = _definitions_loaded()
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[1]) >= 4


COUNT_COLLECTIONS = """
import gc, sys
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
"""

IN_A_COMMAND = """
from siglip_pipeline.cli import main
sys.argv = ["siglip-pipeline", "--version"]
try:
    main.main()
except SystemExit:
    import siglip_pipeline.runs.in_process
"""


@functools.cache
def _preloaded() -> list[str]:
    """What a process says of its collections, then of the rest, that imports what is forked."""
    code = (
        f"{COUNT_COLLECTIONS}import siglip_pipeline.services.preload\n"
        "print(len(collections) // 2, gc.isenabled())\n"
        "import json, pathlib, torch\n"
        "tasks = pathlib.Path('/proc/self/task').glob('*/comm')\n"
        "print(json.dumps([sorted(sys.modules), torch.cuda.is_initialized(), "
        "sorted(task.read_text().strip() for task in tasks)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-2:]


def test_runs_are_forked_also_where_the_model_cannot_be_imported() -> None:
    """Those that embed say so; else no run would start, and none would say why."""
    code = (
        "import sys; sys.modules['siglip_pipeline.siglip.engine'] = None\n"
        "import siglip_pipeline.services.preload"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ModuleNotFoundError: import of siglip_pipeline.siglip.engine halted" in done.stderr


def _collections_of_a_command() -> str:
    code = f"{COUNT_COLLECTIONS}{IN_A_COMMAND}\nprint(len(collections) // 2, gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("said", "most"),
    [(_collections_of_a_command, 250), (lambda: _preloaded()[0], 10)],
    ids=["a command", "what runs are forked from"],
)
def test_no_garbage_is_looked_for_among_what_is_imported(
    said: Callable[[], str], most: int
) -> None:
    """By default that is a sixth of the CPU time of a start: 564 and 1,383 collections."""
    count, enabled = said().split()
    assert int(count) <= most
    assert enabled == "True"


def test_what_runs_are_forked_from_is_safe_to_fork() -> None:
    """All is imported, a device is not touched, and only libraries that heed forks have threads."""
    modules, has_device, threads = json.loads(_preloaded()[1])
    assert {"torch", "siglip_pipeline.definitions", "dagster_postgres"} <= set(modules)
    assert not has_device
    assert len([name for name in threads if not name.startswith("jemalloc")]) == 1, threads
