"""A decoding child can reach nothing but what it was handed."""

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.status import StatusOptions, collect_status
from siglip_pipeline.store.database import Database
from siglip_pipeline.video import sandbox
from siglip_pipeline.video.child_jobs import Limits
from siglip_pipeline.video.children import Child, JobError, wait_for_any
from siglip_pipeline.video.sandbox import SandboxReport, sandbox_report
from siglip_pipeline_tests.hostile.attacks import (
    ATTACKS,
    AttackJob,
    BabbleJob,
    BurnJob,
    EnvironmentJob,
    RepeatJob,
    SayJob,
)

REPORT = sandbox_report()
needs_linux = pytest.mark.skipif(not REPORT.is_closed, reason=f"this machine has only {REPORT}")
LIMITS = Limits(total_seconds=60)


@contextlib.contextmanager
def attacked_child() -> Iterator[Child]:
    child = Child(modules=["siglip_pipeline_tests.hostile.attacks"])
    try:
        yield child
    finally:
        child.end()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("there")
    (folder / "there").write_bytes(b"")
    with socket.create_server(("127.0.0.1", 0)) as listener, attacked_child() as child:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        job = AttackJob(folder=str(folder), port=port, parent=os.getpid())
        yield child.run(job, LIMITS)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert [path.name for path in folder.iterdir()] == ["there"]


@needs_linux
@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_refused(attack: str, outcomes: dict[str, str]) -> None:
    assert outcomes[attack] == "refused"


def test_no_secret_is_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "SIGLIP_API_KEY", "SIGLIP_DATABASE_URL", "PGPASSWORD"):
        monkeypatch.setenv(name, "marker-of-a-secret")
    with attacked_child() as child:
        environment = child.run(EnvironmentJob(), LIMITS)
        assert "marker" not in json.dumps(environment)
        assert "marker" not in Path(f"/proc/{child.pid}/environ").read_text()
    allowed = "PATH|LANG|LANGUAGE|LC_.*|TZ|LD_LIBRARY_PATH|PYTHON(HOME|UTF8)|(OPENBLAS|OMP)_NUM_.*"
    assert [name for name in environment if not re.fullmatch(allowed, name)] == []


def test_it_says_which_locks_hold() -> None:
    with attacked_child() as child:
        child.run(SayJob(answer=1), LIMITS)
        assert child.sandbox == {
            "no_new_privs": REPORT.no_new_privs,
            "seccomp": REPORT.seccomp,
            "landlock": REPORT.landlock,
        }


@needs_linux
def test_the_kernel_says_so_too() -> None:
    with attacked_child() as child:
        child.run(SayJob(answer=1), LIMITS)
        status = Path(f"/proc/{child.pid}/status").read_text()
        limits = Path(f"/proc/{child.pid}/limits").read_text()
    held = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert (held["NoNewPrivs"], held["Seccomp"]) == ("1", "2")
    assert int(held["CapEff"], 16) == int(held["CapPrm"], 16) == 0
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert re.search(r"Max open files +32 +32 ", limits)
    assert re.search(r"Max cpu time +\d+ ", limits)
    assert re.search(rf"Max file size +{LIMITS.file_bytes} ", limits)


@pytest.mark.skipif(REPORT.landlock == 0, reason="this kernel has no Landlock")
def test_landlock_alone_refuses_files_and_tcp() -> None:
    code = (
        "import socket; from siglip_pipeline.video import sandbox as s\n"
        "s._libc().prctl(s.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)\n"
        "assert s._restrict_files(s._landlock_version())\n"
        "for attack in (lambda: open('/etc/passwd'), lambda: open('/tmp/made', 'w'),\n"
        "               lambda: socket.create_server(('127.0.0.1', 0))):\n"
        "    try: attack(); print('got it')\n"
        "    except PermissionError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * (3 if REPORT.landlock >= 4 else 2)


def test_a_child_that_never_stops_talking_is_ended() -> None:
    with attacked_child() as child, pytest.raises(JobError, match="than 1 s"):
        child.run(BabbleJob(), Limits(total_seconds=1))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("message", [b'["done", ' + b"[" * 300_000, b'["ready", {}]'])
def test_no_message_stops_the_parent_or_its_clock(message: bytes) -> None:
    """JSON nested too deeply to be read; a child that says again and again that it begins."""
    with attacked_child() as child, pytest.raises(JobError):
        child.run(RepeatJob(message=message), Limits(total_seconds=1))


@needs_linux
def test_cpu_time_is_bounded_however_many_threads_take_it() -> None:
    """The kernel ends it, before the parent's own clock would."""
    with attacked_child() as child:
        child.run(SayJob(answer=1), LIMITS)
        child.start(BurnJob(), Limits(total_seconds=60))
        _, hard = resource.prlimit(child.pid, resource.RLIMIT_CPU)
        resource.prlimit(child.pid, resource.RLIMIT_CPU, (2, hard))
        wait_for_any([child])
        with pytest.raises(JobError, match="more CPU time"):
            child.value()


@pytest.mark.parametrize(("answer", "times"), [({"info": 1}, 1), ("x", 2**21), ([], 1), (None, 1)])
def test_what_a_child_says_is_not_trusted(answer: object, times: int) -> None:
    """Whatever it answers to a job, the parent neither runs it nor waits for it."""
    from siglip_pipeline.errors import VideoError
    from siglip_pipeline.video.frame_report import read_report

    unclear = pytest.raises((VideoError, JobError), match="makes no sense")
    with attacked_child() as child, unclear:
        read_report("a.mp4", child.run(SayJob(answer=answer, times=times), LIMITS))


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (SandboxReport(no_new_privs=False, seccomp=False, landlock=0), "held by limits on memory"),
        (SandboxReport(no_new_privs=True, seccomp=True, landlock=0), None),
    ],
)
def test_a_machine_without_the_locks_is_warned_about(
    report: SandboxReport, words: str | None, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    monkeypatch.setattr(sandbox, "sandbox_report", lambda: report)
    options = StatusOptions.from_settings(Settings.load())
    warnings = " ".join(collect_status(database, options).warnings)
    assert (words in warnings) if words else ("decode" not in warnings)
