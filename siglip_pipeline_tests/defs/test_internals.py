"""The contract with Dagster's private parts: every entry of `defs/internals.py` works.

A failure names the entry to fix. CI also runs this file against Dagster's newest patch release.
"""

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
from starlette.testclient import TestClient

from siglip_pipeline_tests.defs.test_connections import (
    counted_connections,
    dagster_url,
    pooled_instance,
)
from siglip_pipeline_tests.defs.test_connections import instance as postgres_instance

try:
    from siglip_pipeline.defs import internals
except ImportError as error:
    raise ImportError(
        f"Dagster {dg.__version__} has moved a private name that siglip_pipeline uses: {error}. "
        "Mend siglip_pipeline/defs/internals.py, or pin the Dagster before it in pyproject.toml."
    ) from error

__all__ = ["dagster_url", "pooled_instance", "postgres_instance"]

KEYS: Final = ["a", "b", "c"]
PARTITIONS: Final = dg.DynamicPartitionsDefinition(name="videos")
HELD: set[str] = set()


def holds(*entries: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test that uses these entries; says plainly what changed when it fails."""
    HELD.update(entries)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def told(*arguments: Any, **options: Any) -> None:
            try:
                test(*arguments, **options)
            except Exception as error:
                raise AssertionError(
                    f"Dagster {dg.__version__} has changed what {', '.join(entries)} in "
                    f"siglip_pipeline/defs/internals.py stands on: {error!r}"
                ) from error

        return told

    return decorate


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    retries = {"enabled": True, "max_retries": 1, "retry_on_asset_or_op_failure": False}
    with dg.instance_for_test(
        temp_dir=str(tmp_path), overrides={"run_retries": retries}
    ) as instance:
        instance.add_dynamic_partitions("videos", KEYS)
        yield instance


@dg.asset(partitions_def=PARTITIONS)
def upstream() -> None: ...


@dg.job
def job_of_one() -> None:
    dg.op(name="nothing")(lambda: None)()


def test_every_entry_is_held() -> None:
    assert set(internals.__all__) - HELD == set()


@holds(
    *("GRPC_INFO_TAG", "PARENT_RUN_ID_TAG", "PARTITION_NAME_TAG", "RUN_KEY_TAG", "WILL_RETRY_TAG"),
    "DATA_VERSION_TAG",
)
def test_tags_are_what_databases_hold() -> None:
    found = {name: getattr(internals, name) for name in internals.__all__ if name.endswith("_TAG")}
    assert found == {
        "DATA_VERSION_TAG": "dagster/data_version",
        "GRPC_INFO_TAG": ".dagster/grpc_info",
        "PARENT_RUN_ID_TAG": "dagster/parent_run_id",
        "PARTITION_NAME_TAG": "dagster/partition",
        "RUN_KEY_TAG": "dagster/run_key",
        "WILL_RETRY_TAG": "dagster/will_retry",
    }


@holds("MODULES_OF_RUNS")
def test_what_a_run_needs_is_there() -> None:
    for module in internals.MODULES_OF_RUNS:
        import_module(module)


@holds("store_materializations")
def test_materializations_of_no_run_are_stored_in_one_write(
    postgres_instance: dg.DagsterInstance,
) -> None:
    events = [dg.AssetMaterialization("bulk", partition=key, tags={"k": key}) for key in KEYS]
    internals.store_materializations(postgres_instance, events)
    postgres_instance.report_runless_asset_event(dg.AssetMaterialization("bulk", partition="d"))
    assert postgres_instance.get_materialized_partitions(dg.AssetKey("bulk")) == {*KEYS, "d"}
    records = postgres_instance.fetch_materializations(dg.AssetKey("bulk"), limit=9).records
    entries = [record.event_log_entry for record in records]
    # Dagster's own method made the last event: ours differ from it only in their content.
    own = {(entry.run_id, entry.job_name, entry.step_key, entry.level) for entry in entries}
    assert len(own) == 1
    assert len(entries) == 4


@holds("version_tags", "input_tags")
def test_tags_of_versions_are_those_that_dagster_writes(instance: dg.DagsterInstance) -> None:
    ours: dict[str, str] = {}

    @dg.asset(partitions_def=PARTITIONS, deps=[upstream], code_version="7")
    def downstream(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        ours.update(internals.version_tags("v") | internals.input_tags(context, ["b"])["b"])
        return dg.MaterializeResult(data_version=dg.DataVersion("v"))

    for asset in (upstream, downstream):
        assert dg.materialize(
            [upstream, downstream], selection=[asset], instance=instance, partition_key="b"
        ).success
    event = instance.get_latest_materialization_event(downstream.key)
    assert event is not None
    assert event.asset_materialization is not None
    written: Mapping[str, str] = event.asset_materialization.tags or {}
    assert ours.keys() == written.keys() - {"dagster/partition"}
    # For a partitioned input, Dagster itself records the asset's latest event of any partition.
    of_inputs = {name for name in ours if name.endswith(f"/{upstream.key.to_user_string()}")}
    assert len(of_inputs) == 2
    assert {name: written[name] for name in ours.keys() - of_inputs} == {
        name: ours[name] for name in ours.keys() - of_inputs
    }


@holds("check_target", "log_materialization", "CheckTarget")
def test_a_check_names_what_it_is_of(instance: dg.DagsterInstance) -> None:
    """What Dagster itself writes for a run over one partition."""

    @dg.asset(
        partitions_def=PARTITIONS,
        check_specs=[dg.AssetCheckSpec("whole", asset="checked", partitions_def=PARTITIONS)],
    )
    def checked() -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster looks for the bare class
        return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True)])

    assert dg.materialize([checked], instance=instance, partition_key="a").success
    check = dg.AssetCheckKey(checked.key, "whole")
    (record,) = instance.event_log_storage.get_asset_check_execution_history(check, limit=9)
    assert record.evaluation is not None
    written = record.evaluation.target_materialization_data
    assert written is not None
    assert written == internals.check_target(instance, checked.key, "a")
    assert isinstance(written, internals.CheckTarget)
    assert internals.check_target(instance, checked.key, "b") is None

    told: dict[str, Any] = {}

    @dg.asset(name="checked", partitions_def=PARTITIONS, output_required=False)
    def logs(context: dg.AssetExecutionContext) -> Iterator[dg.Output[None]]:
        for key in KEYS:
            event = dg.AssetMaterialization(context.asset_key, partition=key)
            told[key] = internals.log_materialization(context, event)
        yield from ()

    assert dg.materialize([logs], instance=instance, partition_key="a").success
    assert told == {key: internals.check_target(instance, checked.key, key) for key in KEYS}
    assert told["a"].storage_id > written.storage_id


def _backfill(instance: dg.DagsterInstance, *keys: str) -> Any:
    from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
    from dagster._core.execution.backfill import PartitionBackfill

    subset = AssetGraphSubset(  # type: ignore[call-arg]  # a record that mypy does not see through
        partitions_subsets_by_asset_key={upstream.key: PARTITIONS.subset_with_partition_keys(keys)},
        non_partitioned_asset_keys=frozenset(),
    )
    made: Any = PartitionBackfill.from_asset_graph_subset(
        "made", 1.0, {}, instance, subset, None, None, None
    )
    instance.add_backfill(made)
    return made


@holds("has_active_backfill", "targets_of_backfills")
def test_what_backfills_are_to_make_is_known(instance: dg.DagsterInstance) -> None:
    from dagster._core.execution.backfill import BulkActionStatus

    assert not internals.has_active_backfill(instance)
    backfill = _backfill(instance, "a", "c")
    assert internals.has_active_backfill(instance)
    assert internals.targets_of_backfills(instance, upstream.key) == {"a", "c"}
    instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))
    assert not internals.has_active_backfill(instance)
    assert internals.targets_of_backfills(instance, upstream.key) == set()


@holds("report_lost_run", "retry_was_dropped")
def test_a_lost_run_is_to_be_retried_until_dagster_drops_that(
    instance: dg.DagsterInstance,
) -> None:
    run = instance.create_run_for_job(job_of_one, status=dg.DagsterRunStatus.STARTED)
    internals.report_lost_run(instance, run, "its process is gone")
    lost = instance.get_run_by_id(run.run_id)
    assert lost is not None
    assert lost.is_failure
    assert lost.tags[internals.WILL_RETRY_TAG] == "true"
    assert not internals.retry_was_dropped(instance, lost, is_overdue=False)
    assert internals.retry_was_dropped(instance, lost, is_overdue=True)
    # Dagster's daemon marks a run so if it could not retry it.
    instance.add_run_tags(run.run_id, {internals.WILL_RETRY_TAG: "false"})
    dropped = instance.get_run_by_id(run.run_id)
    assert dropped is not None
    assert internals.retry_was_dropped(instance, dropped, is_overdue=False)

    failed = instance.create_run_for_job(job_of_one, status=dg.DagsterRunStatus.STARTED)
    instance.report_run_failed(failed, "by itself")
    instance.add_run_tags(failed.run_id, {"dagster/failure_reason": "STEP_FAILURE"})
    instance.add_run_tags(failed.run_id, {internals.WILL_RETRY_TAG: "false"})
    by_itself = instance.get_run_by_id(failed.run_id)
    assert by_itself is not None
    assert not internals.retry_was_dropped(instance, by_itself, is_overdue=True)


@holds("run_of_step", "copy_step_for")
def test_a_step_of_a_queue_gets_an_instance_of_its_own(instance: dg.DagsterInstance) -> None:
    from dagster._grpc.types import ExecuteStepArgs
    from dagster._serdes import pack_value, unpack_value

    origin = dg.reconstructable(job_of_one).get_python_origin()
    sent = pack_value(
        ExecuteStepArgs(
            job_origin=origin,
            run_id="one",
            step_keys_to_execute=["nothing"],
            instance_ref=None,
            known_state=None,
            print_serialized_events=False,
        )
    )
    assert isinstance(sent, dict)
    assert internals.run_of_step(sent) == "one"
    own = unpack_value(internals.copy_step_for(instance, sent), as_type=ExecuteStepArgs)
    assert own.instance_ref == instance.get_ref()
    assert (own.run_id, own.step_keys_to_execute) == ("one", ["nothing"])


@holds("tags_of_steps")
def test_tags_of_steps_are_those_of_the_definitions_that_launched_a_run(
    instance: dg.DagsterInstance,
) -> None:
    @dg.op(tags={"made/with": "a model"})
    def tagged() -> None: ...

    @dg.job
    def job() -> None:
        tagged()
        dg.op(name="untagged")(lambda: None)()

    run = instance.create_run_for_job(job)
    assert internals.tags_of_steps(instance, run) == {"made/with": "a model"}


def test_a_message_of_dagster_celery_is_such_a_step() -> None:
    tasks = pytest.importorskip("dagster_celery.tasks")
    source = inspect.getsource(tasks.create_task)
    assert "execute_step_args_packed, executable_dict" in source
    assert "as_type=ExecuteStepArgs" in source


@holds("forget_loaded_jobs")
def test_definitions_are_loaded_anew_when_told(tmp_path: Path) -> None:
    from dagster._core.definitions.reconstruct import ReconstructableRepository

    code = """
import dagster as dg
@dg.job
def one(): ...
defs = dg.Definitions(jobs=[one])
"""
    (tmp_path / "loaded_anew.py").write_text(code)
    repository = ReconstructableRepository.for_module("loaded_anew", "defs", str(tmp_path))
    job = repository.get_reconstructable_job("one")
    first = job.get_definition()
    del sys.modules["loaded_anew"]
    assert job.get_definition() is first
    internals.forget_loaded_jobs()
    assert job.get_definition() is not first


@holds("reset_instigator_times")
def test_times_to_come_are_brought_back(instance: dg.DagsterInstance) -> None:
    from dagster._core.scheduler.instigation import TickStatus

    from siglip_pipeline_tests.services.test_clock import add_tick, sensor

    now = time.time()
    state = sensor(now + 9_000, now + 9_000)
    instance.add_instigator_state(state)
    add_tick(instance, state, now + 8_000, TickStatus.SUCCESS)
    add_tick(instance, state, now + 9_000, TickStatus.STARTED)
    assert internals.reset_instigator_times(instance, state, now)
    (found,) = instance.all_instigator_state()
    data: Any = found.instigator_data
    assert data.last_tick_timestamp == now
    origin, selector = state.instigator_origin_id, state.selector_id
    assert instance.get_ticks(origin, selector, after=now + 1) == []
    assert instance.get_ticks(origin, selector)[0].status == TickStatus.STARTED
    assert not internals.reset_instigator_times(instance, found, now)


@holds("webserver_app")
def test_the_webserver_can_be_had_without_its_server(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text("load_from: []")
    with internals.webserver_app(instance, workspace) as app, TestClient(app) as client:
        answer = client.post("/graphql", json={"query": "{ version }"})
        assert answer.json()["data"] == {"version": dg.__version__}


@holds("keep_connections")
def test_connections_are_kept(postgres_instance: dg.DagsterInstance) -> None:
    with counted_connections() as opened:
        internals.keep_connections(postgres_instance)
        for key in KEYS:
            postgres_instance.report_runless_asset_event(
                dg.AssetMaterialization("kept", partition=key)
            )
            assert postgres_instance.get_runs_count() == 0
            assert postgres_instance.all_instigator_state() == []
    assert len(opened) <= 2


@holds("PooledPostgresStorage")
def test_connections_of_a_process_are_pooled(pooled_instance: dg.DagsterInstance) -> None:
    storages: tuple[Any, ...] = (
        pooled_instance.event_log_storage,
        pooled_instance.run_storage,
        pooled_instance.schedule_storage,
    )
    with counted_connections() as opened:
        for key in KEYS:
            pooled_instance.report_runless_asset_event(
                dg.AssetMaterialization("pooled", partition=key)
            )
            assert pooled_instance.get_runs_count() == 0
            assert pooled_instance.all_instigator_state() == []
    assert len(opened) <= 2
    assert len({id(storage._engine) for storage in storages}) == 1


def test_the_code_server_starts_runs_from_its_context() -> None:
    """What `code_server` replaces: see its docstring."""
    from dagster._grpc.server import DagsterApiServer

    assert "self._mp_ctx = " in inspect.getsource(DagsterApiServer.__init__), (
        "services/code_server.py"
    )
    assert "self._mp_ctx.Process(" in inspect.getsource(DagsterApiServer), "services/code_server.py"
