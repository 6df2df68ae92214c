"""Removal of deleted uploads, alerts, and the partitions of runs."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from siglip_pipeline.definitions import defs
from siglip_pipeline.defs import in_flight
from siglip_pipeline.defs.alerts import run_failures
from siglip_pipeline.defs.deleted_uploads import deleted_uploads
from siglip_pipeline.defs.in_flight import partitions_in_flight, partitions_that_wait
from siglip_pipeline.defs.partitions import videos_partitions
from siglip_pipeline.defs.reconciliation import reconciliation
from siglip_pipeline.defs.sensors import new_uploads
from siglip_pipeline.stages.run_names import FRAMES_PER_RUN, RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.defs.test_sensors import uploads

__all__ = ["uploads"]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def _tick(sensor: dg.SensorDefinition, instance: dg.DagsterInstance) -> object:
    """Evaluate a sensor and apply its result, as the daemon does."""
    context = dg.build_sensor_context(
        instance=instance, definitions=defs, resources=dict(defs.resources or {})
    )
    result = sensor(context)
    if isinstance(result, dg.SensorResult):
        for request in result.dynamic_partitions_requests or []:
            for key in request.partition_keys:
                instance.delete_dynamic_partition(request.partitions_def_name, key)
    return result


def _run(
    instance: dg.DagsterInstance, asset: str, status: dg.DagsterRunStatus, first: str, last: str
) -> dg.DagsterRun:
    return instance.create_run_for_job(
        defs.resolve_implicit_global_asset_job_def(),
        status=status,
        asset_selection=frozenset({dg.AssetKey(asset)}),
        tags={
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        },
    )


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
    run = _run(instance, "video_frames", dg.DagsterRunStatus.STARTED, "a.mp4", "b.mp4")
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
    context = dg.build_sensor_context(
        instance=instance, definitions=defs, resources=dict(defs.resources or {})
    )
    result = new_uploads(context)
    assert isinstance(result, dg.SensorResult)
    runs = []
    for request in result.run_requests or []:
        look()  # Registered, but without runs.
        ends = (request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG])
        runs.append(_run(instance, "video_frames", dg.DagsterRunStatus.NOT_STARTED, *ends))
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


@pytest.mark.parametrize(
    ("tags", "covered"),
    [
        ({"dagster/partition": "b"}, ["b"]),
        ({RANGE_START_TAG: "b", RANGE_END_TAG: "c"}, ["b", "c"]),
        ({RANGE_START_TAG: "b", RANGE_END_TAG: "c", "dagster/partition": "a"}, ["a"]),
        ({RANGE_START_TAG: "b"}, []),
        ({RANGE_END_TAG: "b"}, []),
        ({}, []),
    ],
)
def test_a_run_covers_a_partition_or_a_range(tags: dict[str, str], covered: list[str]) -> None:
    run = dg.DagsterRun(job_name="any", tags=tags)
    assert in_flight.partitions_of_run(run, ["a", "b", "c", "d"]) == covered


# A queued run can be created only with a code location.
@pytest.mark.parametrize(
    "status", [s for s in dg.DagsterRunStatus if s is not dg.DagsterRunStatus.QUEUED]
)
def test_a_run_is_in_flight_until_it_has_ended(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    instance.add_dynamic_partitions("videos", ["a.mp4", "b.mp4"])
    _run(instance, "frame_embeddings", status, "b.mp4", "b.mp4")
    ended = status.value in ("SUCCESS", "FAILURE", "CANCELED")
    busy = partitions_in_flight(instance, ["a.mp4", "b.mp4"])
    assert busy == (frozenset() if ended else frozenset({"b.mp4"}))
    waiting = partitions_that_wait(instance, dg.AssetKey("frame_embeddings"), after="a.mp4")
    assert waiting == (["b.mp4"] if status.value == "NOT_STARTED" else [])
    assert dg.DagsterRunStatus.QUEUED in in_flight.UNFINISHED


def test_partitions_that_wait_and_of_runs_in_flight(instance: dg.DagsterInstance) -> None:
    keys = [f"{n}.mp4" for n in range(8)]
    instance.add_dynamic_partitions("videos", [*keys, "gone.mp4"])
    status = dg.DagsterRunStatus
    _run(instance, "frame_embeddings", status.NOT_STARTED, "1.mp4", "2.mp4")
    _run(instance, "frame_embeddings", status.STARTED, "0.mp4", "0.mp4")
    _run(instance, "video_frames", status.NOT_STARTED, "4.mp4", "4.mp4")
    _run(instance, "frame_embeddings", status.NOT_STARTED, "6.mp4", "6.mp4")
    _run(instance, "frame_embeddings", status.SUCCESS, "7.mp4", "7.mp4")
    _run(instance, "frame_embeddings", status.NOT_STARTED, "7.mp4", "gone.mp4")
    instance.delete_dynamic_partition("videos", "gone.mp4")
    asset = dg.AssetKey("frame_embeddings")
    assert partitions_that_wait(instance, asset, after="0.mp4") == ["1.mp4", "2.mp4", "6.mp4"]
    busy = partitions_in_flight(instance, keys)
    assert busy == frozenset({"0.mp4", "1.mp4", "2.mp4", "4.mp4", "6.mp4"})


def test_what_a_backfill_is_about_to_make_waits_too(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{n}.mp4" for n in range(8)]
    instance.add_dynamic_partitions("videos", keys)
    asset = dg.AssetKey("frame_embeddings")

    def subset(*names: str) -> AssetGraphSubset:
        keys = videos_partitions.subset_with_partition_keys(names)
        return AssetGraphSubset(  # type: ignore[call-arg]  # a record that mypy does not see through
            partitions_subsets_by_asset_key={asset: keys}, non_partitioned_asset_keys=frozenset()
        )

    def backfill(name: str, targets: AssetGraphSubset) -> PartitionBackfill:
        made: PartitionBackfill = PartitionBackfill.from_asset_graph_subset(
            name, 1.0, {}, instance, targets, None, None, None
        )
        instance.add_backfill(made)
        return made

    going_on = backfill("aaaa", subset("0.mp4", "2.mp4", "4.mp4", "6.mp4"))
    assert going_on.asset_backfill_data is not None
    known = going_on.asset_backfill_data._replace(materialized_subset=subset("4.mp4"))
    instance.update_backfill(
        going_on.with_asset_backfill_data(known, instance, defs.resolve_asset_graph())
    )
    ended = backfill("bbbb", subset("5.mp4"))
    instance.update_backfill(ended._replace(status=BulkActionStatus.COMPLETED_SUCCESS))
    _run(instance, "frame_embeddings", dg.DagsterRunStatus.NOT_STARTED, "7.mp4", "7.mp4")
    # First the queued runs, then the backfill's later keys that are not materialized.
    assert partitions_that_wait(instance, asset, after="0.mp4") == ["7.mp4", "2.mp4", "6.mp4"]
    assert partitions_that_wait(instance, asset, after="2.mp4") == ["7.mp4", "6.mp4"]
    everything = partitions_that_wait(instance, asset, after="that is not there")
    assert everything == ["7.mp4", "0.mp4", "2.mp4", "6.mp4"]
    assert partitions_in_flight(instance, keys) is None, "the keys of its next runs are not known"
    assert in_flight.MOST_AHEAD == 256
    monkeypatch.setattr(in_flight, "MOST_AHEAD", 2)
    assert partitions_that_wait(instance, asset, after="0.mp4") == ["7.mp4", "2.mp4"]


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
