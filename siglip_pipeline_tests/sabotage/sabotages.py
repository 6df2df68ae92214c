"""Faults that tests must notice: what each breaks, where, and which test fails then."""

import ast
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("sabotages.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sabotage:
    """A change of a line or two that breaks a promise."""

    breaks: str
    """What is wrong afterwards."""
    file: str
    find: str
    """Text that occurs once in the file."""
    replace: str
    test: str
    """The test that must fail, as ``path::name``."""

    def apply(self, root: Path) -> str:
        """Break the file below ``root``; return its text from before.

        Raises:
            ValueError: the text is not in the file, or more than once.
        """
        path = root / self.file
        before = path.read_text()
        if (found := before.count(self.find)) != 1:
            raise ValueError(
                f"{self.breaks!r}: its text is {found} times in {self.file}, must be once; bring "
                f"{FILE.name} up to date"
            )
        path.write_text(before.replace(self.find, self.replace))
        return before


def read_sabotages() -> list[Sabotage]:
    """Return all sabotages, in the order of the file."""
    return [Sabotage(**entry) for entry in tomllib.loads(FILE.read_text())["sabotage"]]


@cache
def tests_in(path: Path) -> frozenset[str]:
    """Return the names of the test functions of a file."""
    tree = ast.parse(path.read_text())
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def is_test(test: str, root: Path = ROOT) -> bool:
    """Return whether ``path::name`` is a test."""
    path, _, name = test.partition("::")
    return (root / path).is_file() and name in tests_in(root / path)
