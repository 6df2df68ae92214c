"""A run is restarted if its process and its retry were lost, and only then."""

import logging
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import WILL_RETRY_TAG
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import (
    consume_new_runs_for_automatic_reexecution,
)

from siglip_pipeline.definitions import defs
from siglip_pipeline.defs.lost_runs import INSTEAD_OF_TAG, MOST_TIMES, TIMES_TAG, lost_runs
from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG

# In these tests no code server answers.
pytestmark = pytest.mark.filterwarnings("ignore:Error loading repository location")

VIDEOS = ["a.mp4", "b.mp4", "c.mp4"]
RANGE = {RANGE_START_TAG: "a.mp4", RANGE_END_TAG: "b.mp4"}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    retries = {"enabled": True, "max_retries": 1, "retry_on_asset_or_op_failure": False}
    overrides = {"run_retries": retries}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=overrides) as instance:
        instance.add_dynamic_partitions(VIDEOS_PARTITIONS_NAME, VIDEOS)
        yield instance


def _failed(
    instance: dg.DagsterInstance,
    tags: Mapping[str, str] = RANGE,
    *,
    reason: RunFailureReason | None = None,
    asset: str = "video_frames",
) -> dg.DagsterRun:
    """Return a failed run, reported as Dagster's monitoring or `up` would."""
    location = GrpcServerCodeLocationOrigin("127.0.0.1", port=free_port(), location_name="code")
    run = instance.create_run_for_job(
        defs.resolve_implicit_global_asset_job_def(),
        status=dg.DagsterRunStatus.STARTED,
        asset_selection=frozenset({dg.AssetKey(asset)}),
        tags={**RANGE, **tags},
        remote_job_origin=RemoteJobOrigin(
            RemoteRepositoryOrigin(location, "__repository__"), "__ASSET_JOB"
        ),
    )
    # Dagster's monitoring sets no reason when a run's process is gone.
    data = reason and JobFailureData(error=None, failure_reason=reason)
    instance.report_run_failed(run, "its process is gone", data)
    return run


def _retry(instance: dg.DagsterInstance) -> None:
    """Do what Dagster's daemon does with failed runs while no code server answers."""
    target = GrpcServerTarget(host="127.0.0.1", port=free_port(), socket=None, location_name="code")
    with WorkspaceProcessContext(instance, target) as workspace:
        records = instance.get_run_records()
        logger = logging.getLogger("retry")
        for _ in consume_new_runs_for_automatic_reexecution(workspace, records, logger):
            pass


def _tick(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    repository = defs.get_repository_def()
    context = dg.build_sensor_context(instance=instance, repository_def=repository)
    return [*(repository.get_sensor_def(lost_runs.name).evaluate_tick(context).run_requests or [])]


def test_a_lost_run_whose_retry_could_not_be_made_starts_again(
    instance: dg.DagsterInstance,
) -> None:
    # `up` reports runs this way that ended with an earlier `up`.
    reason = RunFailureReason.UNEXPECTED_TERMINATION
    run = _failed(instance, asset="frame_embeddings", reason=reason)
    # Dagster will retry this run itself, so the sensor leaves it.
    assert _tick(instance) == []
    _retry(instance)
    (request,) = _tick(instance)
    assert request.asset_selection == [dg.AssetKey("frame_embeddings")]
    assert request.job_name == "embed_frames"
    assert {**request.tags, **RANGE} == request.tags
    assert request.tags[INSTEAD_OF_TAG] == run.run_id
    # If the daemon has not started it yet, the next tick requests the same run key.
    assert [again.run_key for again in _tick(instance)] == [request.run_key]
    instance.create_run_for_job(
        defs.resolve_implicit_global_asset_job_def(), tags=dict(request.tags)
    )
    assert _tick(instance) == []


def test_a_lost_run_over_standing_queries_starts_again(instance: dg.DagsterInstance) -> None:
    _failed(instance, asset="watch_hits", reason=RunFailureReason.UNEXPECTED_TERMINATION)
    _retry(instance)
    (request,) = _tick(instance)
    assert request.asset_selection == [dg.AssetKey("watch_hits")]
    assert request.job_name == "match_watches"
    assert {**request.tags, **RANGE} == request.tags


def test_a_run_that_takes_the_code_server_with_it_is_given_up(
    instance: dg.DagsterInstance,
) -> None:
    _failed(instance, {TIMES_TAG: str(MOST_TIMES - 1)})
    _retry(instance)
    (request,) = _tick(instance)
    assert request.tags[TIMES_TAG] == str(MOST_TIMES)
    _failed(instance, request.tags)
    _retry(instance)
    assert _tick(instance) == []


def test_a_run_that_was_to_be_retried_and_was_not_starts_again(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster does not retry a run of an ended backfill, but leaves it marked for a retry."""

    def backfill(name: str, status: BulkActionStatus) -> dict[str, str]:
        instance.add_backfill(
            PartitionBackfill(
                backfill_id=name,
                status=status,
                from_failure=False,
                tags={},
                backfill_timestamp=time.time(),
                partition_set_origin=None,
                partition_names=[],
                last_submitted_partition_name=None,
                reexecution_steps=[],
            )
        )
        return {"dagster/backfill": name}

    timeout = RunFailureReason.START_TIMEOUT
    ended = backfill("ended", BulkActionStatus.COMPLETED_SUCCESS)
    run = _failed(instance, ended, reason=timeout)
    _failed(instance, backfill("given up", BulkActionStatus.CANCELED), reason=timeout)
    _retry(instance)
    tags = [run.tags[WILL_RETRY_TAG] for run in instance.get_runs()]
    assert tags == ["true"] * 2, tags
    # Within `RETRIED_WITHIN`, Dagster may still retry it.
    assert _tick(instance) == []
    monkeypatch.setattr("siglip_pipeline.defs.lost_runs.RETRIED_WITHIN", timedelta(0))
    (request,) = _tick(instance)
    assert request.tags[INSTEAD_OF_TAG] == run.run_id


def test_other_failures_stay_as_they_are(instance: dg.DagsterInstance) -> None:
    _failed(instance, reason=RunFailureReason.STEP_FAILURE)
    _failed(instance, {"dagster/max_retries": "0"})
    elsewhere = _failed(instance)
    _retry(instance)
    # A person has already started it again.
    instance.create_run_for_job(
        defs.resolve_implicit_global_asset_job_def(),
        parent_run_id=elsewhere.run_id,
        root_run_id=elsewhere.run_id,
        tags={"dagster/parent_run_id": elsewhere.run_id, "dagster/root_run_id": elsewhere.run_id},
    )
    _failed(instance, {RANGE_START_TAG: "c.mp4", RANGE_END_TAG: "c.mp4"})
    _retry(instance)
    instance.delete_dynamic_partition(VIDEOS_PARTITIONS_NAME, "c.mp4")
    tags = [run.tags[WILL_RETRY_TAG] for run in instance.get_runs() if run.is_failure]
    assert tags == ["false"] * 4, tags
    assert _tick(instance) == []
