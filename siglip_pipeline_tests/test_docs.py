"""The documentation as a site: what leads a reader nowhere fails the build."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import build_docs  # noqa: E402


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
