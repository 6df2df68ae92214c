"""Old logs are deleted or rotated, and no other files."""

import os
import time
from pathlib import Path

import dagster as dg
import pytest

from siglip_pipeline.defs.cleaning import remove_old_logs
from siglip_pipeline.files.log_rotation import shorten
from siglip_pipeline.stages.old_logs import Removed
from siglip_pipeline.stages.old_logs import remove_old_logs as remove_old_log_files


def _age(path: Path, *, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(path, (then, then))


def _log(folder: Path, name: str, *, days: float) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("12345")
    _age(path, days=days)
    return path


def test_old_logs_and_their_folders_go(tmp_path: Path) -> None:
    old = _log(tmp_path, "run-1/compute_logs/step.err", days=31)
    _log(tmp_path, "run-1/compute_logs/step.out", days=31)
    for folder in (old.parent, old.parent.parent):
        _age(folder, days=31)
    young = _log(tmp_path, "run-2/compute_logs/step.err", days=29)
    other = _log(tmp_path, "run-3/result.parquet", days=400)
    waiting = tmp_path / "run-4" / "compute_logs"
    waiting.mkdir(parents=True)
    assert remove_old_log_files(tmp_path, days=30) == Removed(files=2, size_bytes=10)
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {young, other}
    assert not (tmp_path / "run-1").exists()
    assert waiting.exists()
    assert remove_old_log_files(tmp_path / "absent", days=30).files == 0


def test_the_job_removes_what_runs_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.op
    def says() -> None:
        print("a line on stdout")

    @dg.job(executor_def=dg.in_process_executor)
    def saying() -> None:
        says()

    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        run = saying.execute_in_process(instance=instance)
        logs = [path for path in tmp_path.rglob(f"{run.run_id}/**/*") if path.is_file()]
        assert any("a line on stdout" in path.read_text() for path in logs)
        for path in logs:
            _age(path, days=2)
        monkeypatch.setenv("SIGLIP_KEEP_LOGS_DAYS", "0")
        assert remove_old_logs.execute_in_process(instance=instance).success
        assert all(path.exists() for path in logs)
        monkeypatch.setenv("SIGLIP_KEEP_LOGS_DAYS", "1")
        assert remove_old_logs.execute_in_process(instance=instance).success
        assert not any(path.exists() for path in logs)
        # The run itself is still known.
        assert instance.get_run_by_id(run.run_id) is not None


def test_a_long_log_is_put_aside_while_it_is_written_to(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old line\n")
        assert not shorten(log, most_bytes=100)
        assert shorten(log, most_bytes=5)
        writer.write(b"new line\n")
    assert log.read_bytes() == b"new line\n"
    assert (tmp_path / "daemon.log.1").read_bytes() == b"old line\n"
    assert not shorten(tmp_path / "absent.log")
