"""A JSON object in a file, of what can be computed again."""

import contextlib
import json
from pathlib import Path
from typing import Any

from siglip_pipeline.files.replacing import replacing


def read_cache(file: Path) -> dict[str, Any]:
    """Return the object in a file; empty if there is none, or it cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def add_to_cache(file: Path, key: str, value: Any) -> None:
    """Add a value to the object in a file; keep nothing in a folder that can only be read."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(file) as stream:
            stream.write(json.dumps({**read_cache(file), key: value}).encode())
