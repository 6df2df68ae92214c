import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from siglip_pipeline import __version__

STARTED_WITH_AND = textwrap.dedent(
    """
    import signal, subprocess, sys
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does
    {heed}
    from dagster._utils.interrupts import capture_interrupts
    with capture_interrupts():
        pass
    child = subprocess.Popen(["sleep", "60"])
    child.terminate()
    try:
        print(child.wait(timeout=3))
    except subprocess.TimeoutExpired:
        child.kill()
        print("goes on")
    """
)


@pytest.mark.parametrize(
    ("heed", "says"),
    [
        ("from siglip_pipeline.cli.main import main; sys.argv[1:] = ['db', 'nonsense']\n"
         "try: main()\nexcept SystemExit: pass", str(-signal.SIGTERM)),
        ("import dagster._cli, multiprocessing.forkserver\n"
         "from siglip_pipeline.services.code_server import main\n"
         "dagster._cli.main = multiprocessing.forkserver.ensure_running = lambda: None\n"
         "main()", str(-signal.SIGTERM)),
        ("", "goes on"),  # if this fails, Dagster has fixed it: remove services/signals.py
    ],
)  # fmt: skip
def test_what_a_step_starts_can_be_ended_even_in_the_background(heed: str, says: str) -> None:
    script = STARTED_WITH_AND.replace("{heed}", heed)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n")[-2] == says, done.stderr


HANGING = textwrap.dedent(
    """
    import sys, threading, time
    from siglip_pipeline.cli import main as cli

    @cli.app.command()
    def hang():
        threading.Thread(target=time.sleep, args=[60]).start()
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            time.sleep(60)

    sys.argv[1:] = ["hang"]
    cli.main()
    """
)


COMPUTING = textwrap.dedent(
    """
    import sys, threading, time, torch
    from siglip_pipeline.cli import main as cli

    def compute():
        numbers = torch.ones(300, 300)
        while True:
            numbers.matmul(numbers)

    @cli.app.command()
    def hang():
        for _ in range(4):
            threading.Thread(target=compute, daemon=True).start()
        print("ready", flush=True)
        time.sleep(60)

    sys.argv[1:] = ["hang"]
    cli.main()
    """
)


@contextmanager
def started(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def assert_ctrl_c_ends(process: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 8, "5 s, and what a busy machine takes"
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_the_end_of_a_command_looks_for_no_garbage() -> None:
    """With torch and Dagster loaded that took seconds after Ctrl-C."""
    script = (
        "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "from siglip_pipeline.cli.main import main; sys.argv[1:] = ['--version']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"siglip-pipeline {__version__}\nTrue\n"


@pytest.mark.parametrize("script", [HANGING, COMPUTING], ids=["clean-up hangs", "threads of C++"])
def test_ctrl_c_ends_any_command_within_seconds(script: str) -> None:
    """Also if a thread of it goes on."""
    with started("-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert_ctrl_c_ends(process)


@pytest.mark.parametrize(
    "command",
    [
        "search words",
        "search --like a.mp4@1",
        "labels --all circle",
        "duplicates",
        "export --to frames.parquet",
        "evaluate judged.jsonl",
        "materialize --all-missing",
        "models list",
        "watch list",
        "status",
    ],
)
def test_ctrl_c_ends_what_waits_for_the_database(command: str, tmp_path: Path) -> None:
    (tmp_path / "judged.jsonl").write_text('{"query": "a", "relevant": []}\n')
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/nothing"
        words = [
            str(tmp_path / word) if "." in word and "@" not in word else word
            for word in command.split()
        ]
        with started(
            *("-m", "siglip_pipeline.cli.main", *words),
            SIGLIP_HOME=str(tmp_path),
            SIGLIP_UPLOADS=str(tmp_path),
            SIGLIP_DATABASE_URL=url,
        ) as process:
            connection, _ = silent.accept()
            with connection:
                assert_ctrl_c_ends(process)
