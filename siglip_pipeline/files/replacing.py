"""Write files into folders that other people may write to as well."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes a name once the block ends; none is left when it raises.

    An existing file of this name is replaced, and an existing link is replaced, not followed.
    """
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("x+b") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
