import signal
import subprocess
import sys
import textwrap

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
