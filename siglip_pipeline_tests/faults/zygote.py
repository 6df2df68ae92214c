"""Starts `siglip-pipeline` commands in forked processes that have imported everything already.

    python -m siglip_pipeline_tests.faults.zygote

Reads ``{"arguments", "environment", "log", "hook"}`` from stdin, a JSON document a line; answers
``{"pid"}`` when the command runs and ``{"status"}`` when it has ended. A fault that comes after so
many seconds then strikes the work, and not the import of libraries.
"""

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

CRASHED = 70
"""Exit status of a command that ended with a traceback, which no command should."""

PRELOADED = (
    "siglip_pipeline.cli.main",
    "siglip_pipeline.cli.commands",
    "siglip_pipeline.cli.indexing",
    "siglip_pipeline.runs.in_process",
    "siglip_pipeline.siglip.embeddings",
    "siglip_pipeline.siglip.engine",
    "siglip_pipeline.siglip.identity",
    "siglip_pipeline.siglip.model",
    "transformers.models.siglip.modeling_siglip",
    "transformers.models.siglip.configuration_siglip",
)


def main() -> None:
    # What a shell or a test runner has its children ignore, Dagster's helpers must not.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    for name in PRELOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork copies one thread alone"
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(request)
        _answer(pid=pid)
        _, status = os.waitpid(pid, 0)
        _answer(status=os.waitstatus_to_exitcode(status))


def _answer(**values: int) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _run(request: dict[str, Any]) -> None:
    status = 1
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number in (1, 2):
            os.dup2(log, number)
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        os.environ.update(request["environment"])
        if request["hook"]:
            module, _, function = request["hook"].partition(":")
            getattr(importlib.import_module(module), function)()
        from siglip_pipeline.cli import main as cli

        sys.argv = ["siglip-pipeline", *request["arguments"]]
        cli.main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = CRASHED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
