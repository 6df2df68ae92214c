"""Globs over paths: what they match in Python and in Postgres."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_pipeline.store.database import Database
from siglip_pipeline.store.search.globs import glob_regex, is_glob

PATHS = [
    "a.mp4",
    "b.mkv",
    "holiday/a.mp4",
    "holiday/2024/c.mp4",
    "holiday/[1] x+y (z).mp4",
    "Holiday/d.mp4",
    "clip-1.mp4",
    "clip^2.mp4",
    "brackets/].txt",
    "brackets/x.txt",
    "ends/,.txt",
    "ends/-.txt",
    "ends/[.txt",
    "ends/\\.txt",
    "ends/].txt",
    "ends/^.txt",
]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", [p for p in PATHS if p.endswith(".mp4")]),
        ("holiday/*", ["holiday/[1] x+y (z).mp4", "holiday/a.mp4"]),
        ("holiday/**", [p for p in PATHS if p.startswith("holiday/")]),
        ("**/c.mp4", ["holiday/2024/c.mp4"]),
        ("**/a.mp4", ["a.mp4", "holiday/a.mp4"]),
        ("?.m*", ["Holiday/d.mp4", "a.mp4", "b.mkv", "holiday/2024/c.mp4", "holiday/a.mp4"]),
        ("[ab].mp4", ["a.mp4", "holiday/a.mp4"]),
        ("[axd].mp4", ["Holiday/d.mp4", "a.mp4", "holiday/a.mp4"]),
        ("[a,d].mp4", ["Holiday/d.mp4", "a.mp4", "holiday/a.mp4"]),
        ("[a-bd].mp4", ["Holiday/d.mp4", "a.mp4", "holiday/a.mp4"]),
        (
            "[xya-d].mp4",
            ["Holiday/d.mp4", "a.mp4", "holiday/2024/c.mp4", "holiday/a.mp4"],
        ),
        ("[a-c].mp4", ["a.mp4", "holiday/2024/c.mp4", "holiday/a.mp4"]),
        ("[!a-c].mp4", ["Holiday/d.mp4"]),
        ("clip[-^][12].mp4", ["clip-1.mp4", "clip^2.mp4"]),
        ("holiday/[[]1]*(z).mp4", ["holiday/[1] x+y (z).mp4"]),
        ("[z-a].mp4", []),
        ("brackets/[]x].txt", ["brackets/].txt", "brackets/x.txt"]),
        ("brackets/[]].txt", ["brackets/].txt"]),
        ("brackets/[!]].txt", ["brackets/x.txt"]),
        ("[!]x].txt", [f"ends/{name}.txt" for name in ",-[\\^"]),
        ("holiday/[1*", ["holiday/[1] x+y (z).mp4"]),
        ("holiday/[!1*", []),
        ("[a-].mp4", ["a.mp4", "holiday/a.mp4"]),
        ("[!z-a].txt", [p for p in PATHS if p.endswith(".txt")]),
        ("ends/[+--].txt", ["ends/,.txt", "ends/-.txt"]),
        ("ends/[[-^].txt", ["ends/[.txt", "ends/\\.txt", "ends/].txt", "ends/^.txt"]),
        ("ends/[]-^].txt", ["ends/].txt", "ends/^.txt"]),
        ("ends/[^-z].txt", ["ends/^.txt"]),
    ],
)
def test_globs_match(database: Database, pattern: str, expected: list[str]) -> None:
    regex = glob_regex(pattern)
    assert is_glob(pattern)
    assert sorted(path for path in PATHS if re.search(regex, path)) == sorted(expected)
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT p FROM unnest(%s::text[]) p WHERE p ~ %s", [PATHS, regex]
        ).fetchall()
    assert sorted(path for (path,) in rows) == sorted(expected)


def test_a_long_pattern_ends() -> None:
    assert glob_regex("a" * 300 + "/*") == "^" + "a" * 300 + "/[^/]*$"


@settings(max_examples=200)
@given(st.text(alphabet="ab/.*?[]!-^\\+()|{}$ ü", max_size=12))
def test_any_pattern_is_a_regular_expression(pattern: str) -> None:
    re.compile(glob_regex(pattern))


@settings(max_examples=200)
@given(st.text(alphabet="ab/.!-^\\+()|{}$] ü\n", min_size=1, max_size=12))
def test_a_pattern_without_wildcards_matches_itself(pattern: str) -> None:
    assert not is_glob(pattern)
    assert re.fullmatch(glob_regex(pattern)[:-1], pattern, re.DOTALL)
