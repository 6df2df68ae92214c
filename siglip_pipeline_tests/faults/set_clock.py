"""A wall clock that a test sets, for the pipeline's processes and their Postgres alone."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")
DAY_SECONDS = 86_400
_WIDTH = 8


def reason_it_cannot_be_had() -> str | None:
    """Why no clock can be set here; None if one can."""
    if sys.platform != "linux":
        return "a library that is loaded first is needed, as Linux has it"
    return None if shutil.which("cc") else "a C compiler is needed, as cc"


@dataclass(frozen=True)
class SetClock:
    """The clock of every process that has :attr:`environment`."""

    environment: Mapping[str, str]
    file: Path

    def set(self, *, days_ahead: int) -> None:
        """Set it, for processes that run already too; 0: to the machine's time."""
        seconds = days_ahead * DAY_SECONDS
        # In place, all eight bytes at once: every process has the file mapped.
        with self.file.open("r+b", buffering=0) as file:
            file.write(seconds.to_bytes(_WIDTH, sys.byteorder, signed=True))


def make_clock(folder: Path) -> SetClock:
    """Compile it into a folder that all its users may read."""
    library, file = folder / "clock.so", folder / "clock"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library)]
    subprocess.run(["cc", *options, str(SOURCE)], check=True)
    file.write_bytes(bytes(_WIDTH))
    return SetClock({"LD_PRELOAD": str(library), "FAULT_CLOCK": str(file)}, file)
