"""A disk that loses what was not flushed when the power goes, for processes that a test starts."""

import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("disk.c")
SECTOR_BYTES = 512
"""Written wholly or not at all."""
_HERE, _LONGEST = -100, 4096
"""AT_FDCWD and PATH_MAX of C."""


@dataclass(frozen=True)
class LossyDisk:
    """What a power loss would leave of a folder, as its processes flush it.

    Each of them needs :attr:`environment`, and must be held while the disk is looked at.
    """

    of: Path
    folder: Path
    library: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """What makes a process flush to it."""
        return {
            "LD_PRELOAD": str(self.library),
            "FAULT_DISK_OF": str(self.of),
            "FAULT_DISK": str(self.folder),
        }

    def lose_power(self, home: Path, found: Path, draw: random.Random) -> None:
        """Write what the disk has of ``home``, below :attr:`of`, to the folder ``found``.

        Whatever was flushed is there. Of what was written since, any sector may be.
        """
        tree = self.folder / "tree" / home.relative_to(self.of)
        shutil.copytree(tree, found, copy_function=shutil.copyfile)
        for path in _everything(found):
            was, kept = (side / path.relative_to(found) for side in (home, tree))
            if path.is_file() and was.is_file() and self._is_of(kept, was):
                path.write_bytes(_mixed(path.read_bytes(), was.read_bytes(), draw))
            like = next(each for each in (was, *was.parents) if each.exists()).stat()
            os.chown(path, like.st_uid, like.st_gid)
            path.chmod(like.st_mode if path.is_dir() or was.exists() else 0o600)

    def _is_of(self, kept: Path, file: Path) -> bool:
        """Return whether what is kept under a name is of the file that has it now."""
        name = ctypes.create_string_buffer(_LONGEST)
        identify = ctypes.CDLL(str(self.library)).identify
        assert identify(_HERE, os.fsencode(file), 0, name, ctypes.c_size_t(_LONGEST))
        known = self.folder / "files" / Path(os.fsdecode(name.value)).name
        return known.exists() and known.samefile(kept)


def make_disk(of: Path, folder: Path) -> LossyDisk:
    """Compile it; ``folder`` is on the same file system, and open to all users."""
    library = folder / "disk.so"
    options = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library)]
    subprocess.run(["cc", *options, str(SOURCE)], check=True)
    for made in (folder, folder / "tree", folder / "files"):
        made.mkdir(exist_ok=True)
        made.chmod(0o777)
    return LossyDisk(of.resolve(), folder.resolve(), library)


def _everything(folder: Path) -> Iterator[Path]:
    yield folder
    yield from sorted(folder.rglob("*"))


def _mixed(flushed: bytes, written: bytes, draw: random.Random) -> bytes:
    """Take each sector that differs from one or the other."""
    if flushed == written:
        return flushed
    size = draw.choice([len(flushed), max(len(flushed), len(written))])
    before, after = flushed.ljust(size, b"\0"), written.ljust(size, b"\0")
    sectors = (slice(at, min(at + SECTOR_BYTES, size)) for at in range(0, size, SECTOR_BYTES))
    return b"".join(draw.choice((before, after))[sector] for sector in sectors)
