import signal
import subprocess
import sys
import textwrap
import time

import pytest

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
        ("", "goes on"),  # if this fails, Dagster has fixed it: remove cli/interrupts.py
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
    import threading, time
    from siglip_pipeline.cli.interrupts import ending_soon
    threading.Thread(target=time.sleep, args=[60]).start()
    with ending_soon():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            time.sleep(60)
    """
)


def test_ctrl_c_ends_a_command_within_seconds() -> None:
    """Its clean-up hangs, and a thread of it goes on."""
    started = subprocess.Popen(
        [sys.executable, "-c", HANGING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        began = time.monotonic()
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=30)
    finally:
        started.kill()
    assert time.monotonic() - began < 8, "5 s, and what a busy machine takes"
    assert started.returncode == 130
    assert "Traceback" not in errors
