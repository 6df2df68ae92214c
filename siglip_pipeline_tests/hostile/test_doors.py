"""Each library that reads untrusted bytes is called at one place, with a list of formats."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "siglip_pipeline"
DEMO = PACKAGE / "demo"
"""Makes its own films and reads those."""


def calls(of: str, method: str) -> Iterator[tuple[Path, ast.Call]]:
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(DEMO):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == f"{of}.{method}":
                yield path, node


def test_ffmpeg_opens_at_one_place_by_lists_of_formats_and_protocols() -> None:
    found = list(calls("av", "open"))
    assert [path.relative_to(PACKAGE).as_posix() for path, _ in found] == ["video/container.py"]
    (_, call) = found[0]
    options = next(ast.unparse(word.value) for word in call.keywords if word.arg == "options")
    assert options.rstrip("}").endswith("**_LISTS")  # whatever a caller asks for


def test_pillow_is_told_what_it_may_read() -> None:
    for path, call in calls("Image", "open"):
        assert any(word.arg == "formats" for word in call.keywords), path


def test_no_upload_is_opened_by_name_for_decoding() -> None:
    for path in (PACKAGE / "video").glob("*.py"):
        assert "local_path" not in path.read_text(), path
