"""Write docs/settings.md from the fields of Settings, or with --check say whether it is current."""

import sys
from pathlib import Path

from siglip_pipeline.settings import Settings, variable_of

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# Settings

Read from the environment, once, by `siglip_pipeline/settings.py`; nothing else reads it. This page
is written by `make docs` from the descriptions there.

| variable | default | meaning |
|---|---|---|
"""


def render() -> str:
    """Return the whole page."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`"
        description = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{variable_of(name)}` | {default} | {description} |\n")
    return HEAD + "".join(rows)


def main() -> int:
    """Write the page, or compare it with ``--check``."""
    page = render()
    if "--check" in sys.argv[1:]:
        current = PAGE.read_text() if PAGE.exists() else ""
        if current != page:
            print("docs/settings.md is out of date: run `make docs`", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
