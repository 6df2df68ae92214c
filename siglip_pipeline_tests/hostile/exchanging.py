"""Exchange two names in a loop, as fast as the kernel can, in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOOP = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
one, other = (os.fsencode(name) for name in sys.argv[1:])
RENAME_EXCHANGE, HERE = 2, -100
parent = os.getppid()
print("ready", flush=True)
while os.getppid() == parent:
    for _ in range(1000):
        if libc.renameat2(HERE, one, HERE, other, RENAME_EXCHANGE):
            sys.exit(os.strerror(ctypes.get_errno()))
"""


@contextmanager
def exchanging(one: Path, other: Path) -> Iterator[None]:
    """While this is entered, ``one`` and ``other`` change places all the time."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(one), str(other)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
        assert process.poll() is None, "it stopped exchanging"
    finally:
        process.kill()
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()
