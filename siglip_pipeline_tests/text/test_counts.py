"""No message says "1 videos": each count and its noun come from `counted`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from siglip_pipeline.text.in_words import counted

PACKAGE = Path(__file__).parents[2] / "siglip_pipeline"
NOUNS = (
    "videos|frames|vectors|queries|hits|moments|files|uploads|messages|pairs|rows|texts|workers"
    "|processes|threads|runs|warnings|watches|filters"
)
OF_CODE = re.compile(rf"^ (?:judged |new |failed |more |other |stored )?({NOUNS})\b")
OF_PAGES = re.compile(rf"\}}\}}(?:</\w+>)? (?:judged )?({NOUNS})\b")
NEVER_ONE = {
    "cli/watch.py document.name",
    "search/explaining.py exact_place",
    "search/query_terms.py MAX_STEPS",
    "siglip/engine_report.py self.frames_per_second",
    "similarity/compare.py CANDIDATE_COSINE",
    "stages/partition_limit.py partitions",
    "store/index/build.py tuples_total",
    "store/index/choice.py compactness",
    "store/index/partitioning.py frames",
    "store/index/partitioning.py total",
    "store/index/recall/recall_report.py case.modality",
    "video/bitmap.py height",
    "web/query.py MAX_K",
    "defs/sensors.py known",
    "demo/run.py document.frames",
    "demo/run.py document.queries",
    "demo/run.py document.videos",
    "demo/run.py expected",
    "demo/run.py len(videos)",
}
"""What is more than one by its nature, or is no count; with its file."""


def _in_code() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                for value, text in zip(node.values, node.values[1:], strict=False):
                    if (
                        isinstance(value, ast.FormattedValue)
                        and isinstance(text, ast.Constant)
                        and OF_CODE.match(str(text.value))
                    ):
                        yield f"{path.relative_to(PACKAGE)} {ast.unparse(value.value)}"


def test_no_message_says_1_videos() -> None:
    assert set(_in_code()) - NEVER_ONE == set()
    pages = {path.name: path.read_text() for path in PACKAGE.rglob("*.html")}
    assert {name: found for name, page in pages.items() if (found := OF_PAGES.findall(page))} == {}


@pytest.mark.parametrize(
    ("count", "nouns", "words"),
    [
        (0, ("video",), "0 videos"),
        (1, ("video",), "1 video"),
        (2000, ("video",), "2,000 videos"),
        (1, ("query", "queries"), "1 query"),
        (2, ("query", "queries"), "2 queries"),
    ],
)
def test_counts_have_the_form_of_their_noun(count: int, nouns: tuple[str, ...], words: str) -> None:
    assert counted(count, *nouns) == words
