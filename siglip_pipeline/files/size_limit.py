"""Keep a folder of files that can be made again within a size."""

import contextlib
from pathlib import Path


def remove_oldest(folder: Path, pattern: str, *, max_bytes: int, kept: Path) -> None:
    """Remove the files that were used longest ago, by their times, until the others fit.

    Args:
        folder: whose files are counted.
        pattern: glob of the files; others are left alone.
        max_bytes: size of all of them together.
        kept: is not removed.
    """
    found = []
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > max_bytes and path != kept:
            path.unlink(missing_ok=True)
            total -= size
