"""Build the documentation as a site in build/site; fail on links that lead nowhere.

Each page keeps its path in the repository, so that a link means the same on the site and where the
repository is browsed.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (
    "*.md",
    "docs/**/*.md",
    "docs/images/*.png",
    "docs/images/*.jpg",
    "benchmarks/results/*.md",
    "siglip_pipeline/demo/model/README.md",
)
LISTED: Final = {"docs/decisions": "Decisions", "benchmarks/results": "Measurements"}
"""Folders whose pages are listed on a page of their own, and that page's title."""


def lay_out(target: Path) -> None:
    """Copy all pages to an empty folder, and write the list of each folder in LISTED."""
    shutil.rmtree(target, ignore_errors=True)
    for pattern in PAGES:
        for source in ROOT.glob(pattern):
            copy = target / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    for folder, title in LISTED.items():
        pages = sorted((target / folder).glob("*.md"))
        lines = [f"- [{_title(page)}]({page.name})\n" for page in pages]
        (target / folder / "README.md").write_text(f"# {title}\n\n{''.join(lines)}")


def _title(page: Path) -> str:
    return page.read_text().partition("\n")[0].lstrip("# ")


def unlisted(pages: Path, menu: object) -> list[str]:
    """Return the pages that neither the menu nor a list names."""
    named = {*_strings(menu)}
    paths = {str(page.relative_to(pages)) for page in pages.rglob("*.md")}
    return sorted(p for p in paths - named if str(Path(p).parent) not in LISTED)


def _strings(menu: object) -> Iterator[str]:
    if isinstance(menu, str):
        yield menu
    elif isinstance(menu, list | dict):
        for entry in menu.values() if isinstance(menu, dict) else menu:
            yield from _strings(entry)


def broken_targets(pages: Path) -> list[str]:
    """Return a line for each link or picture that leads to no file or folder of the site.

    Zensical looks only at links to pages and to their headings.
    """
    return [
        f"{page.relative_to(pages)}: {target} is not on the site"
        for page in sorted(pages.rglob("*.md"))
        for target in re.findall(r"\]\(([^)#\s:]+)[^):\s]*\)", page.read_text())
        if not (page.parent / target).exists()
    ]


def main() -> int:
    """Build the site; return 1 if a page is not in the menu or a link has no target."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    pages = ROOT / project["docs_dir"]
    lay_out(pages)
    wrong = [f"add {page} to nav in zensical.toml" for page in unlisted(pages, project["nav"])]
    wrong += broken_targets(pages)
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    # Zensical's output goes through a pipe: no colours, and no stack traces for broken links.
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).partition("Traceback")[0]
    # A name that docs/reference.md asks for and the code has not is no error to Zensical.
    if done.returncode or "mkdocstrings:" in said:
        wrong.append(said)
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
