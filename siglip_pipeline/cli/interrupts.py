"""Signals as the processes below need them."""

import signal


def heed_interrupts() -> None:
    """Undo that SIGINT is ignored, as it is in whatever a shell starts with ``&``.

    Dagster gives SIGTERM the handler of SIGINT. Where that is "ignore", every process below
    inherits it: those that copy a step's output cannot be ended, so that each step waits a minute
    for them and fails, and a run cannot be cancelled.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
