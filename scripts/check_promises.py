"""Check that each promise of the documentation names a test, in docs/promises.md.

Each section of that page is of one page, or of one table of a page. The first cells of the table
must all be there, and no others; of a page, each section needs a promise, word for word.
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
TABLES: Final = (
    ("operations.md", "When something fails"),
    ("operations.md", "What it survives"),
    ("security.md", "Limits"),
    ("http.md", "Errors"),
)
"""Tables of which each row is a promise."""
PAGES: Final = ("search.md", "indexes.md")
"""Pages of prose: each section holds at least one promise."""
_TEST: Final = re.compile(r"`([\w/]+\.py::\w+)`")


def problems(root: Path) -> Iterator[str]:
    """Yield what is wrong with docs/promises.md below ``root``."""
    docs = root / "docs"
    kept = sections((docs / "promises.md").read_text())
    for page, title in TABLES:
        promised = [row[0] for row in rows(sections((docs / page).read_text())[title])]
        named = [row[0] for row in rows(kept.pop(f"{page}: {title}", ""))]
        for promise in promised:
            if promise not in named:
                yield f"docs/{page}, {title}: {promise!r} names no test; add a row for it"
        for promise in named:
            if promise not in promised:
                yield f"{promise!r} is no row of docs/{page}, {title}; remove it"
    for page in PAGES:
        named = [row[0] for row in rows(kept.pop(page, ""))]
        text = (docs / page).read_text()
        for title, part in sections(text).items():
            if not any(promise in _words(part) for promise in named):
                yield f"docs/{page}, {title}: no promise of it names a test; add one"
        for promise in named:
            if promise not in _words(text):
                yield f"docs/{page} does not say {promise!r}; bring it up to date"
    yield from (f"{title!r} is no page or table that is checked" for title in kept)
    for promise, tests in rows((docs / "promises.md").read_text()):
        if not (found := _TEST.findall(tests)):
            yield f"{promise!r} names no test"
        for test in found:
            path, _, name = test.partition("::")
            if name not in _tests_in(root / "siglip_pipeline_tests" / path):
                yield f"{promise!r}: there is no test {test}"


def sections(page: str) -> dict[str, str]:
    """Return the text under each heading, without that of the page itself."""
    _, *parts = re.split(r"^##+ ", page, flags=re.MULTILINE)
    return {title.strip(): text for title, _, text in (part.partition("\n") for part in parts)}


def rows(text: str) -> list[Sequence[str]]:
    """Return the cells of the rows of all tables, without their heads."""
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    rules = {i for i, cells in enumerate(table) if set(cells[0]) == {"-"}}
    return [cells for i, cells in enumerate(table) if not {i, i + 1} & rules]


def _words(text: str) -> str:
    return " ".join(text.split())


@cache
def _tests_in(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef))


def main() -> int:
    """Return 0 if every promise names its test."""
    found = list(problems(ROOT))
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
