"""Change modules whose errors are silent, one place at a time, and count what tests notice.

    .venv/mutation/bin/python scripts/mutation.py [--sample N] [--seed N] [--all] [--only TEXT]

Uses cosmic-ray, on a copy. Each module has its own tests, so that a change takes seconds. Changes
that no test can notice are in scripts/mutation_equivalents.toml, with reasons; they do not count.
"""

import argparse
import ast
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

ROOT: Final = Path(__file__).parents[1]
MODULES: Final = {
    "video/sampling.py": ["video/test_sampling.py"],
    "video/frame_selection.py": ["video/test_sampling.py"],
    "video/plan.py": ["video/test_plan.py", "video/test_decode.py"],
    "video/packet_index.py": ["video/test_scan.py", "video/test_decode.py"],
    "video/geometry.py": ["video/test_geometry.py", "video/test_picture.py"],
    "video/tone.py": ["video/test_tone.py"],
    "video/shots.py": ["video/test_shots.py"],
    "siglip/preprocess.py": ["siglip/test_preprocess.py", "siglip/test_embeddings.py"],
    "siglip/similarity.py": ["siglip/test_similarity.py"],
    "siglip/collect.py": ["siglip/test_collect.py", "siglip/test_engine.py"],
    "store/copy.py": ["store/test_copy.py"],
    "store/moments.py": ["store/test_moments.py"],
    "store/search/scope.py": ["store/search/test_scope.py", "store/search/test_moment_search.py"],
    "store/search/globs.py": ["store/search/test_globs.py"],
    "similarity/alignment.py": ["similarity/test_alignment.py", "similarity/test_compare.py"],
    "similarity/copy_decision.py": [
        "similarity/test_copy_decision.py",
        "similarity/test_compare.py",
    ],
    "uploads/listing.py": ["uploads/test_listing.py", "uploads/test_uploads.py"],
    "uploads/names.py": ["uploads/test_names.py", "defs/test_partitions.py"],
    "stages/duplicates.py": ["stages/test_duplicates.py"],
    "stages/reconcile.py": ["stages/test_reconcile.py"],
    "web/ranges.py": ["web/test_ranges.py"],
    "web/guard.py": ["web/test_guard.py", "web/test_limits.py", "hostile/test_other_pages.py"],
    "search/query_terms.py": ["search/test_query_terms.py"],
    "defs/outcomes.py": ["defs/test_outcomes.py"],
    "defs/in_flight.py": ["defs/test_in_flight.py"],
}
"""Modules of the package, and the tests that hold them."""
EQUIVALENTS: Final = Path(__file__).with_name("mutation_equivalents.toml")
TEST_SECONDS: Final = 600
MODULE_SECONDS: Final = 4 * 3600
_LEFT_OUT: Final = shutil.ignore_patterns(".*", "build", "__pycache__")


class Change(NamedTuple):
    """Lines of a module before and after a change, without indentation."""

    module: str
    before: str
    after: str | None
    """None in the list of equivalents: any change of these lines."""

    def __str__(self) -> str:
        return f"  {self.module} survived:\n  - {self.before}\n  + {self.after}"


def main() -> int:
    """Return 0 if the share of noticed changes is at least that of ``--least``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, default=5, help="changes of each module")
    parser.add_argument("--seed", type=int, default=1, help="for other changes than the last time")
    parser.add_argument("--all", action="store_true", help="all changes, which takes days")
    parser.add_argument("--only", default="", metavar="TEXT", help="modules with TEXT in the path")
    parser.add_argument("--least", type=float, default=0.0, metavar="SHARE")
    options = parser.parse_args()
    equivalents = _read_equivalents()
    noticed, survivors = 0, []
    with tempfile.TemporaryDirectory(prefix="siglip-mutation-") as folder:
        copy = Path(folder).resolve() / "copy"
        shutil.copytree(ROOT, copy, ignore=_LEFT_OUT)
        for module in (module for module in MODULES if options.only in module):
            results = _mutate(module, copy, None if options.all else options.sample, options.seed)
            unnoticed = [_change_of(*result) for result in results if not _is_noticed(result[1])]
            survived = [
                change
                for change in unnoticed
                if not equivalents & {change, change._replace(after=None)}
            ]
            count = len(results) - len(unnoticed)
            equal = len(unnoticed) - len(survived)
            of = f"{count + len(survived)} noticed" + (f", {equal} equivalent" if equal else "")
            print("\n".join([f"{module}: {count} of {of}", *map(str, survived)]), flush=True)
            noticed += count
            survivors += survived
    total = noticed + len(survivors)
    print(f"{noticed} of {total} changes were noticed (seed {options.seed})")
    return 0 if total and noticed >= options.least * total else 1


def _mutate(module: str, copy: Path, sample: int | None, seed: int) -> list[tuple[Any, Any]]:
    """Apply changes of a module; return each with its result."""
    tests = " ".join(f"siglip_pipeline_tests/{test}" for test in MODULES[module])
    python = ROOT / ".venv" / "bin" / "python"
    pytest = f"{python} -m pytest -x -q -p no:cacheprovider --hypothesis-seed=0 {tests}"
    config, session = copy / "mutation.toml", copy / "mutation.sqlite"
    session.unlink(missing_ok=True)
    config.write_text(
        f'[cosmic-ray]\nmodule-path = "siglip_pipeline/{module}"\ntimeout = {TEST_SECONDS}\n'
        f"excluded-modules = []\ntest-command = {json.dumps(pytest)}\n"
        '[cosmic-ray.distributor]\nname = "local"\n'
    )
    _cosmic_ray(copy, "init", config, session)
    _keep_sample(session, (copy / "siglip_pipeline" / module).read_text(), sample, seed)
    _cosmic_ray(copy, "baseline", config)  # raises if the tests fail as they are
    _cosmic_ray(copy, "exec", config, session)
    dumped = _cosmic_ray(copy, "dump", session)
    return [(work, result) for work, result in map(json.loads, dumped.splitlines()) if result]


def _cosmic_ray(copy: Path, command: str, *arguments: Path) -> str:
    # Nothing compiled: a change within a second of the last one would not be seen.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [Path(sys.executable).with_name("cosmic-ray"), command, *arguments],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=MODULE_SECONDS,
    ).stdout


def _keep_sample(session: Path, source: str, sample: int | None, seed: int) -> None:
    """Remove all but a sample of the changes that a test can notice."""
    with sqlite3.connect(session) as database:
        # Job ids are random; the order is not.
        places = database.execute(
            "SELECT job_id, operator_name, occurrence FROM work_items"
            " JOIN mutation_specs USING (job_id) ORDER BY work_items.rowid"
        ).fetchall()
        before = _behaviour(source)
        jobs = [job for job, *place in places if _is_change(source, before, *place)]
        if sample is not None:
            jobs = random.Random(seed).sample(jobs, min(sample, len(jobs)))
        dropped: Sequence[tuple[str]] = [(job,) for job, *_ in places if job not in jobs]
        for table in ("mutation_specs", "work_items"):
            database.executemany(f"DELETE FROM {table} WHERE job_id = ?", dropped)


def _is_change(source: str, before: str, operator: str, occurrence: int) -> bool:
    """Return whether a change is one of behaviour, into what Python can read."""
    changed = mutate_code(source, get_operator(operator)(), occurrence)
    try:
        return changed is not None and _behaviour(changed) != before
    except SyntaxError:
        return False


def _behaviour(source: str) -> str:
    """Return the syntax tree of a module as text, without what only mypy or a programmer heeds.

    That is annotations, whether records are frozen and have slots, and what is named in calls.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in {"annotation", "returns"} & {*node._fields}:
            setattr(node, name, None)
        for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            if isinstance(decorator, ast.Call):
                decorator.keywords.clear()
        if isinstance(node, ast.arguments):
            node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.defaults += filter(None, node.kw_defaults)
            node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
    return ast.dump(tree)


def _is_noticed(result: Any) -> bool:
    return bool(result["test_outcome"] != "survived")


def _read_equivalents() -> frozenset[Change]:
    entries = tomllib.loads(EQUIVALENTS.read_text()).get("equivalent", ())
    return frozenset(
        Change(entry["module"], entry["before"], entry.get("after")) for entry in entries
    )


def _change_of(work: Any, result: Any) -> Change:
    (mutation,) = work["mutations"]
    # The diff begins with a title and the names of both files.
    rows = (result["diff"] or "").splitlines()[3:]
    before, after = (
        "\n".join(row[1:].strip() for row in rows if row[:1] == sign).strip() for sign in "-+"
    )
    module = Path(mutation["module_path"]).relative_to("siglip_pipeline")
    return Change(module.as_posix(), before, after)


if __name__ == "__main__":
    sys.exit(main())
