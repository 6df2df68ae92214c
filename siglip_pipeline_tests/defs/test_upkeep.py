"""Removal of deleted uploads, reconciliation at every moment, and alerts."""

import json
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest

from siglip_pipeline.definitions import defs
from siglip_pipeline.defs.alerts import run_failures
from siglip_pipeline.defs.deleted_uploads import deleted_uploads
from siglip_pipeline.defs.reconciliation import reconciliation
from siglip_pipeline.defs.sensors import new_uploads
from siglip_pipeline.stages.run_names import FRAMES_PER_RUN, RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.defs.conftest import tick
from siglip_pipeline_tests.defs.test_in_flight import make_run


def _tick(sensor: dg.SensorDefinition, instance: dg.DagsterInstance) -> object:
    """Evaluate a sensor and apply its result, as the daemon does."""
    result = tick(sensor, instance)
    if isinstance(result, dg.SensorResult):
        for request in result.dynamic_partitions_requests or []:
            for key in request.partition_keys:
                instance.delete_dynamic_partition(request.partitions_def_name, key)
    return result


def test_a_deleted_upload_is_forgotten_after_its_grace_and_not_under_a_run(
    uploads: Path,
    instance: dg.DagsterInstance,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (uploads / name).write_bytes(b"x")
    _tick(new_uploads, instance)
    (uploads / "b.mp4").unlink()
    _tick(new_uploads, instance)
    # During the grace period nothing is removed, and a file that comes back keeps its results.
    assert isinstance(_tick(deleted_uploads, instance), dg.SkipReason)
    (uploads / "b.mp4").write_bytes(b"x")
    _tick(new_uploads, instance)
    assert AnnouncedUploads(database).missing_for(timedelta(0)) == []

    (uploads / "b.mp4").unlink()
    _tick(new_uploads, instance)
    monkeypatch.setenv("SIGLIP_REMOVE_GRACE_HOURS", "0")
    monkeypatch.setenv("SIGLIP_REMOVE_DELETED", "false")
    assert isinstance(_tick(deleted_uploads, instance), dg.SkipReason)
    monkeypatch.setenv("SIGLIP_REMOVE_DELETED", "true")
    run = make_run(instance, "video_frames", dg.DagsterRunStatus.STARTED, "a.mp4", "b.mp4")
    assert isinstance(_tick(deleted_uploads, instance), dg.SkipReason)
    instance.report_run_canceled(run)
    assert isinstance(_tick(deleted_uploads, instance), dg.SensorResult)
    assert instance.get_dynamic_partitions("videos") == ["a.mp4", "c.mp4"]
    assert VideoStore(database).paths() == {"a.mp4", "c.mp4"}

    # A file that comes back later is a new upload, with a new run.
    (uploads / "b.mp4").write_bytes(b"x")
    result = _tick(new_uploads, instance)
    assert isinstance(result, dg.SensorResult)
    assert len(result.run_requests or []) == 1


def test_what_a_failed_run_has_left_is_retried_and_nothing_else(
    uploads: Path, instance: dg.DagsterInstance, database: Database
) -> None:
    """No video has a reason recorded where the run failed as a whole: its model was missing."""
    names = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    for name in names:
        (uploads / name).write_bytes(b"x")
    _tick(new_uploads, instance)
    make_run(instance, "frame_embeddings", dg.DagsterRunStatus.FAILURE, "a.mp4", "b.mp4")
    make_run(instance, "frame_embeddings", dg.DagsterRunStatus.STARTED, "b.mp4", "b.mp4")
    make_run(instance, "frame_embeddings", dg.DagsterRunStatus.CANCELED, "c.mp4", "c.mp4")
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO failures (video_id, stage, reason) "
            "SELECT video_id, 'frames', 'no video' FROM videos WHERE path = 'd.mp4'"
        )
    assert defs.resolve_job_def("retry_failed").execute_in_process(instance=instance).success
    known = AnnouncedUploads(database).listed_fingerprints()
    assert [name for name in names if known[name] == ""] == ["a.mp4", "d.mp4"]


def test_reconciliation_agrees_at_every_moment_of_new_uploads(
    uploads: Path, instance: dg.DagsterInstance, database: Database
) -> None:
    def look() -> None:
        result = dg.materialize(
            [reconciliation],
            instance=instance,
            resources=dict(defs.resources or {}),
        )
        (check,) = result.get_asset_check_evaluations()
        assert check.passed, result.asset_materializations_for_node("reconciliation")[0].metadata
        assert all(AnnouncedUploads(database).listed_fingerprints().values())

    for number in range(2 * FRAMES_PER_RUN):
        (uploads / f"{number:02d}.mp4").write_bytes(b"x")
    result = tick(new_uploads, instance)
    assert isinstance(result, dg.SensorResult)
    runs = []
    for request in result.run_requests or []:
        look()  # Registered, but without runs.
        ends = (request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG])
        runs.append(make_run(instance, "video_frames", dg.DagsterRunStatus.NOT_STARTED, *ends))
    assert len(runs) == 2
    look()
    for run in runs:
        instance.report_run_canceled(run)
        look()  # What follows a run may still be in progress.


def test_storage_that_is_not_mounted_is_no_deletion(
    uploads: Path, instance: dg.DagsterInstance, database: Database
) -> None:
    for name in ("a.mp4", "b.mp4"):
        (uploads / name).write_bytes(b"x")
    _tick(new_uploads, instance)
    for name in ("a.mp4", "b.mp4"):
        (uploads / name).unlink()
    _tick(new_uploads, instance)
    assert AnnouncedUploads(database).missing_for(timedelta(0)) == []


def test_the_gpu_pool_has_its_limit_before_the_first_run(uploads: Path, tmp_path: Path) -> None:
    config = {"concurrency": {"pools": {"default_limit": 1, "granularity": "run"}}}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=config) as instance:
        assert instance.event_log_storage.get_pool_limits() == []
        _tick(new_uploads, instance)
        (limit,) = instance.event_log_storage.get_pool_limits()
        assert (limit.name, limit.limit) == ("gpu", 1)


def test_a_failed_run_is_told_with_its_reasons(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.append(json.loads(body)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    @dg.op
    def broken() -> None:
        raise dg.Failure("1 of 2 videos failed:\nbad.mp4: it is no film")

    @dg.job
    def sampling() -> None:
        broken()

    result = sampling.execute_in_process(instance=instance, raise_on_error=False)
    context = dg.build_run_status_sensor_context(
        sensor_name="run_failures",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=instance,
        dagster_run=result.dagster_run,
    ).for_run_failure()
    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("SIGLIP_ALERT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hook")
        try:
            run_failures(context)
        finally:
            server.shutdown()
            thread.join()
    assert len(told) == 1
    assert result.run_id in told[0]
    assert "bad.mp4: it is no film" in told[0]
    # If the webhook does not answer, the sensor continues.
    run_failures(context)
