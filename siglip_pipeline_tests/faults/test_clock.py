"""Clocks that jump: under the sensor, and in the times of files."""

import os
import time
from pathlib import Path

import dagster as dg
import pytest

from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME
from siglip_pipeline.defs.sensors import new_uploads
from siglip_pipeline.settings import Settings, process_environment
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG, keys_between
from siglip_pipeline_tests.defs.conftest import tick
from siglip_pipeline_tests.faults.conftest import Make

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

DAY_SECONDS = 86_400
SETTLE_SECONDS = 8.0


def taken_up(settings: Settings, instance: dg.DagsterInstance) -> list[str]:
    """Return the uploads that one tick of the sensor announces."""
    result = tick(new_uploads, instance)
    if not isinstance(result, dg.SensorResult):
        return []
    partitions = instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
    return sorted(
        key
        for request in result.run_requests or []
        for key in keys_between(
            partitions, request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG]
        )
    )


def test_times_of_files_that_lie_anywhere(make_pipeline: Make, tmp_path: Path) -> None:
    """Each upload is announced once, independent of its time, and again when it changes."""
    now = time.time()
    times = {
        "epoch.mp4": 0.0,
        "before-the-epoch.mp4": -5.0 * DAY_SECONDS,
        "yesterday.mp4": now - DAY_SECONDS,
        "tomorrow.mp4": now + DAY_SECONDS,
        "far.mp4": 4_000_000_000.0,
    }
    for name, modified in times.items():
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (modified, modified))
    settings = make_pipeline(uploads=tmp_path).settings
    with process_environment(settings), dg.DagsterInstance.ephemeral() as instance:
        assert taken_up(settings, instance) == sorted(times)
        assert taken_up(settings, instance) == []
        # The clock was set back, and then a file replaced by one as large.
        (tmp_path / "tomorrow.mp4").write_text("TOMORROW.mp4")
        os.utime(tmp_path / "tomorrow.mp4", (now - 5, now - 5))
        assert taken_up(settings, instance) == ["tomorrow.mp4"]
        assert taken_up(settings, instance) == []


def test_a_file_from_the_future_is_left_until_it_has_settled(
    make_pipeline: Make, tmp_path: Path
) -> None:
    settings = make_pipeline(uploads=tmp_path, uploads_settle_seconds=SETTLE_SECONDS).settings
    with process_environment(settings), dg.DagsterInstance.ephemeral() as instance:
        growing = tmp_path / "growing.mp4"
        growing.write_text("first half")
        ahead = time.time() + DAY_SECONDS
        os.utime(growing, (ahead, ahead))
        assert taken_up(settings, instance) == [], "it was written a moment ago"
        time.sleep(SETTLE_SECONDS)
        assert taken_up(settings, instance) == ["growing.mp4"]
        assert taken_up(settings, instance) == []


@pytest.mark.parametrize("ahead_days", [-40, 40])
def test_the_clock_of_the_sensor_is_set(
    ahead_days: int, make_pipeline: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_pipeline(uploads=tmp_path, uploads_settle_seconds=0.5).settings
    real = time.time
    with process_environment(settings), dg.DagsterInstance.ephemeral() as instance:
        (tmp_path / "before.mp4").write_text("before")
        time.sleep(0.6)
        assert taken_up(settings, instance) == ["before.mp4"]
        monkeypatch.setattr(time, "time", lambda: real() + ahead_days * DAY_SECONDS)
        assert taken_up(settings, instance) == []
        (tmp_path / "after.mp4").write_text("after")
        assert taken_up(settings, instance) == ["after.mp4"]
        monkeypatch.setattr(time, "time", real)
        time.sleep(0.6)
        assert taken_up(settings, instance) == []
