"""Change modules whose errors are silent, one place at a time, and count what tests notice.

    .venv/mutation/bin/python scripts/mutation.py [--sample N] [--seed N] [--all] [--only TEXT]

Uses cosmic-ray, on a copy. Each module has its own tests, so that a change takes seconds. Changes
that no test can notice are in scripts/mutation_equivalents.toml, with reasons; they do not count.
"""

import argparse
import ast
import difflib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Final, NamedTuple

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

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
    "store/kinds/clusters.py": ["store/index/test_clusters.py"],
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
TEST_SECONDS: Final = 60
"""Of each test: a change may make it endless."""
_TIMES: Final = itertools.count(1)
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
    noticed, survived = 0, 0
    with tempfile.TemporaryDirectory(prefix="siglip-mutation-") as folder:
        copy = Path(folder).resolve() / "copy"
        shutil.copytree(ROOT, copy, ignore=_LEFT_OUT)
        tests = _Tests(copy)
        for module in (module for module in MODULES if options.only in module):
            sample = None if options.all else options.sample
            counts = _mutate(module, tests, equivalents, sample, options.seed)
            noticed += counts["noticed"]
            survived += counts["survived"]
        tests.close()
    total = noticed + survived
    print(f"{noticed} of {total} changes were noticed (seed {options.seed})")
    return 0 if total and noticed >= options.least * total else 1


class _Tests:
    """Tests of a copy, in forks of a process that has imported the libraries."""

    def __init__(self, copy: Path) -> None:
        self.copy = copy
        self._process = subprocess.Popen(
            [ROOT / ".venv/bin/python", "-m", "siglip_pipeline_tests.sabotage.forked", copy],
            cwd=copy,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def pass_(self, module: str) -> bool:
        """Return whether those of a module pass."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        tests = [f"siglip_pipeline_tests/{test}" for test in MODULES[module]]
        # The thread ends the process. After a signal Hypothesis would try the endless case again.
        limit = [f"--timeout={TEST_SECONDS}", "--timeout-method=thread"]
        json.dump([*limit, *tests], self._process.stdin)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()) == 0

    def close(self) -> None:
        self._process.communicate(timeout=TEST_SECONDS)


def _mutate(
    module: str, tests: _Tests, equivalents: Set[Change], sample: int | None, seed: int
) -> Counter[str]:
    """Apply changes of a module; return how many were noticed, survived, or are equivalent."""
    path = tests.copy / "siglip_pipeline" / module
    source = path.read_text()
    if not tests.pass_(module):
        raise SystemExit(f"the tests of {module} do not pass as they are")
    behaviour = _behaviour(source)
    changed = [text for text in _changes(source) if _behaviour(text) not in (None, behaviour)]
    if sample is not None:
        changed = random.Random(seed).sample(changed, min(sample, len(changed)))
    counts = Counter[str]()
    for text in changed:
        path.write_text(text)
        # Python recognises a changed file by its time in seconds and its size.
        os.utime(path, (next(_TIMES),) * 2)
        change = _difference(module, source, text)
        if not tests.pass_(module):
            counts["noticed"] += 1
        elif equivalents & {change, change._replace(after=None)}:
            counts["equivalent"] += 1
        else:
            counts["survived"] += 1
            print(change, flush=True)
    path.write_text(source)
    of = f"{counts['noticed'] + counts['survived']} noticed"
    if counts["equivalent"]:
        of += f", {counts['equivalent']} equivalent"
    print(f"{module}: {counts['noticed']} of {of}", flush=True)
    return counts


def _changes(source: str) -> Iterator[str]:
    """Yield the source with each change that cosmic-ray knows, one at a time."""
    for operator in map(get_operator, operator_names()):
        if not operator.arguments():
            for occurrence in itertools.count():
                if (text := mutate_code(source, operator(), occurrence)) is None:
                    break
                yield text


def _behaviour(source: str) -> str | None:
    """Return the syntax tree of a module as text, without what only mypy or a programmer heeds.

    That is annotations, whether records are frozen and have slots, and what is named in calls.
    None if Python cannot read it.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
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


def _read_equivalents() -> frozenset[Change]:
    entries = tomllib.loads(EQUIVALENTS.read_text()).get("equivalent", ())
    return frozenset(
        Change(entry["module"], entry["before"], entry.get("after")) for entry in entries
    )


def _difference(module: str, source: str, text: str) -> Change:
    rows = [*difflib.unified_diff(source.splitlines(), text.splitlines(), n=0)][2:]
    before, after = (
        "\n".join(row[1:].strip() for row in rows if row[0] == sign).strip() for sign in "-+"
    )
    return Change(module, before, after)


if __name__ == "__main__":
    sys.exit(main())
