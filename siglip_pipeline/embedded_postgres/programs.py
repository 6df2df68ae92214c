"""Run programs of the system and of Postgres with a time limit."""

import subprocess
from collections.abc import Sequence
from typing import Any

from siglip_pipeline.errors import EmbeddedDatabaseError


def run_program(
    command: Sequence[str], *, seconds: float, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end; its stdout and stderr are both in ``stdout``.

    Args:
        command: the program and its arguments.
        seconds: it is ended when it takes longer.
        options: of :class:`subprocess.Popen`.

    Raises:
        EmbeddedDatabaseError: it took longer.
        OSError: it cannot be started.
    """
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=seconds,
            **options,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise EmbeddedDatabaseError(
            f"{command[0]} did not end within {seconds:g} s and was ended; look whether its disk "
            f"answers, and try again{':' if text else ''}\n{text[-2000:]}".strip()
        ) from error
