"""The end of a command by Ctrl-C."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

_END_SECONDS = 4.0
INTERRUPTED = 128 + signal.SIGINT
"""Exit code, as shells have it."""


@contextmanager
def ending_soon() -> Iterator[None]:
    """End this process within seconds of Ctrl-C, whatever its threads and its clean-up still do.

    Everything that it leaves can be taken up again: a decoder ends with its parent, and both stages
    skip what is done.
    """

    def interrupt(*_: object) -> None:
        timer = threading.Timer(_END_SECONDS, os._exit, [INTERRUPTED])
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_after_interrupt() -> NoReturn:
    """End this process as ``sys.exit`` does, but without ending its threads first.

    The interpreter unwinds a daemon thread that returns to Python code. If it comes from C++ code,
    such as torch's, that aborts the process with a core dump instead of the exit code.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads any more, or it is closed
            stream.flush()
    os._exit(INTERRUPTED)
