"""The documentation: links lead somewhere, and the architecture page describes the code."""

import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import build_docs  # noqa: E402
import check_promises  # noqa: E402

from siglip_pipeline.settings import Settings  # noqa: E402


@pytest.mark.slow
def test_what_leads_nowhere_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_docs.lay_out(tmp_path)
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    shutil.copytree(ROOT / "siglip_pipeline", tmp_path / "siglip_pipeline", dirs_exist_ok=True)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    monkeypatch.setattr(build_docs, "ROOT", tmp_path)
    assert build_docs.main() == 0, capsys.readouterr().err
    reference = (tmp_path / "build/site/docs/reference/index.html").read_text()
    assert "find_similar_frames" in reference
    assert ":class:" not in reference

    with (tmp_path / "docs" / "search.md").open("a") as page:
        page.write("[a](nowhere.md) [b](http.md#no-such-heading) ![c](images/none.png)\n")
    with (tmp_path / "docs" / "reference.md").open("a") as page:
        page.write("\n::: siglip_pipeline.search.NoSuchName\n")
    (tmp_path / "docs" / "unlisted.md").write_text("# A page\n")
    assert build_docs.main() == 1
    said = capsys.readouterr().err
    for part in (
        "add docs/unlisted.md to nav",
        "docs/search.md: nowhere.md is not on the site",
        "docs/search.md: images/none.png is not on the site",
        "anchor does not exist",
        "siglip_pipeline.search.NoSuchName could not be found",
    ):
        assert part in said


def test_the_file_for_nginx_passes_on_what_the_services_need() -> None:
    """It was run by hand: a proxy that drops the port from Host makes each page foreign."""
    page = (ROOT / "docs" / "security.md").read_text()
    nginx = page.partition("```nginx\n")[2].partition("```")[0]
    assert "proxy_set_header Host $http_host;" in nginx
    largest = re.search(r"client_max_body_size (\d+)m;", nginx)
    assert largest is not None
    assert int(largest[1]) > Settings.model_fields["http_max_body_mib"].default


def _architecture() -> str:
    return (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_that_the_docs_name_exists() -> None:
    """As a path from the root of the repository, of the package or of its tests."""
    roots = (ROOT, ROOT / "siglip_pipeline", ROOT / "siglip_pipeline_tests")
    named = {
        (page.relative_to(ROOT), name)
        for page in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
        for name in re.findall(r"`([\w./-]+\.(?:py|html|toml))`", page.read_text())
    }
    assert len(named) > 150
    assert {
        (str(page), name)
        for page, name in named
        if not any((root / name).is_file() for root in roots)
    } == set()


def test_the_architecture_lists_the_rooms_in_the_layers_of_the_contract() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    table = _architecture().partition("| what they own |\n|---|---|\n")[2].partition("\n\n")[0]
    listed = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table.splitlines()]
    assert listed == [layer.split(" | ") for layer in layers]


def test_every_promise_names_a_test() -> None:
    assert list(check_promises.problems(ROOT)) == []


def test_a_promise_without_a_test_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("images"))
    docs = tmp_path / "docs"
    tests = ROOT / "siglip_pipeline_tests"
    (tmp_path / "siglip_pipeline_tests").symlink_to(tests)

    def change(page: str, old: str, new: str) -> None:
        text = (docs / page).read_text()
        assert old in text
        (docs / page).write_text(text.replace(old, new, 1))

    change("operations.md", "| two `up` in one home |", "| three `up` in one home |")
    change("security.md", "| query text |", "| a limit | 1 | fixed |\n| query text |")
    change("search.md", "A black opening counts as one frame.", "A black opening counts.")
    change("indexes.md", "## Moments\n", "## Another kind\nIt is fast.\n\n## Moments\n")
    change("promises.md", "::test_patterns_are_short", "::test_patterns_are_long")
    said = list(check_promises.problems(tmp_path))
    for part in (
        "docs/operations.md, What it survives: 'three `up` in one home' names no test",
        "'two `up` in one home' is no row of docs/operations.md, What it survives",
        "docs/security.md, Limits: 'a limit' names no test",
        "docs/search.md does not say 'A black opening counts as one frame.'",
        "docs/indexes.md, Another kind: no promise of it names a test",
        "there is no test web/test_texts.py::test_patterns_are_long",
    ):
        assert any(part in line for line in said), part


def test_every_decision_has_a_number_of_its_own() -> None:
    decisions = sorted((ROOT / "docs/decisions").glob("*.md"))
    numbers = [decision.name[:4] for decision in decisions]
    assert len(set(numbers)) == len(numbers)
    for decision, number in zip(decisions, numbers, strict=True):
        assert decision.read_text().startswith(f"# {number}: "), decision.name
