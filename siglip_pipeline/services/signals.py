"""The handler of Ctrl-C that Dagster gives SIGTERM too."""

import signal


def heed_interrupts() -> None:
    """Restore the default handler of SIGINT, which a shell sets to "ignore" for ``command &``.

    Dagster gives SIGTERM the handler of SIGINT. Where that is "ignore", every process below
    inherits it: the processes that copy a step's output cannot be terminated, so each step waits a
    minute for them and fails, and a run cannot be cancelled.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
