"""A disk of a few megabytes: a tmpfs in a mount namespace of its own, gone with its holder."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BALLAST = "ballast"


@dataclass(frozen=True)
class SmallDisk:
    """A folder that is small for processes started with ``prefix``."""

    folder: Path
    """As those processes see it."""
    holder: int

    @property
    def prefix(self) -> list[str]:
        return ["nsenter", "--target", str(self.holder), "--mount", "--"]

    @property
    def seen(self) -> Path:
        """The same folder, for everybody else."""
        return Path(f"/proc/{self.holder}/root{self.folder}")

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.seen).free

    def fill(self, *, leave_bytes: int) -> None:
        """Write until so much is left."""
        with (self.seen / BALLAST).open("wb") as file:
            while (missing := self.free_bytes - leave_bytes) > 4096:
                file.write(bytes(min(missing, 2**20)))
                file.flush()

    def make_room(self) -> None:
        (self.seen / BALLAST).unlink()


def reason_it_cannot_be_had() -> str | None:
    """Why no small disk can be mounted here; None if one can."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "unshare and nsenter are needed (util-linux)"
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/mnt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"a tmpfs cannot be mounted: {done.stderr.strip()}"


@contextmanager
def small_disk(folder: Path, *, size_kib: int) -> Iterator[SmallDisk]:
    """Mount it over ``folder`` for the length of the block."""
    script = (
        f"mount -t tmpfs -o size={size_kib}k,mode=755 none '{folder}' && echo ready && "
        "exec setpriv --pdeathsig KILL sleep infinity"
    )
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield SmallDisk(folder, holder.pid)
    finally:
        holder.kill()
        holder.wait()
