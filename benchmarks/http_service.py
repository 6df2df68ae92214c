"""A service over HTTP in a process of its own, for as long as a benchmark needs it."""

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psutil  # type: ignore[import-untyped,unused-ignore]

_START_SECONDS = 120.0
_LOOK_SECONDS = 0.1


@contextmanager
def running(
    command: Sequence[str], ready_url: str, *, environment: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """The process, once ``ready_url`` answers with 200; ended afterwards.

    Raises:
        RuntimeError: it ended, or did not answer within two minutes.
    """
    with subprocess.Popen(
        command, env=os.environ if environment is None else environment, stdout=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _answers(ready_url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{ready_url} does not answer; {command} ended or hangs")
                time.sleep(_LOOK_SECONDS)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False
