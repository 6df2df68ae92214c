"""Dagster's code server (`dagster api grpc`), whose runs start in a fraction of a second.

Dagster starts a new interpreter for every run, which then imports Dagster, this package and torch:
seconds of CPU, for runs that often do less than that. Here the runs are forked from a process that
has imported all this and does nothing else (Python's own `forkserver`), so no thread, connection or
lock is inherited. See docs/decisions/0005-runs-are-forked.md.
"""

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import sys
import tempfile
from typing import Any

from siglip_pipeline.files.private_files import keep_files_private
from siglip_pipeline.services.ports import parent_of_sockets
from siglip_pipeline.services.signals import heed_interrupts

PRELOADED = "siglip_pipeline.services.preload"


def main() -> None:
    """Run `dagster api grpc` with this process's arguments."""
    import dagster._grpc.server as server
    from dagster._cli import main as dagster_cli

    keep_files_private()
    heed_interrupts()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    tempfile.tempdir = parent_of_sockets()
    multiprocessing.util.get_temp_dir()  # made now, and kept: the fork server's socket lies there
    tempfile.tempdir = None
    multiprocessing.forkserver.ensure_running()

    class ForkingServer(server.DagsterApiServer):
        """Starts runs from the fork server."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._mp_ctx = context  # type: ignore[assignment]

    server.DagsterApiServer = ForkingServer  # type: ignore[misc]
    sys.argv = ["dagster", "api", "grpc", *sys.argv[1:]]
    dagster_cli()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
