"""The one door to private parts of Dagster: no other module but `code_server` names any.

Each entry says which public way is missing in Dagster 1.13.27, where it was read. The contract test
`siglip_pipeline_tests/defs/test_internals.py` uses every entry, so that a new Dagster that changes
one fails there with a plain message. This module imports no other of the project: workers and the
command line use it, too.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.events import JobFailureData, RunFailureReason, StepMaterializationData
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.instance.utils import RUNLESS_JOB_NAME, RUNLESS_RUN_ID
from dagster._core.scheduler.instigation import InstigatorState
from dagster._core.storage.schedules.schema import JobTickTable
from dagster._core.storage.schedules.sql_schedule_storage import SqlScheduleStorage
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    GRPC_INFO_TAG,
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    RUN_FAILURE_REASON_TAG,
    RUN_KEY_TAG,
    WILL_RETRY_TAG,
)
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import pack_value, unpack_value
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage
from dagster_postgres.utils import create_pg_engine
from dagster_shared.record import copy

# Tags of runs and events, which Dagster's documentation names but no public constant does.
__all__ = [
    "AUTO_RETRY_RUN_ID_TAG",
    "DATA_VERSION_TAG",
    "GRPC_INFO_TAG",
    "MODULES_OF_RUNS",
    "PARENT_RUN_ID_TAG",
    "PARTITION_NAME_TAG",
    "RUN_KEY_TAG",
    "WILL_RETRY_TAG",
    "a_backfill_goes_on",
    "bring_back_instigator",
    "check_target",
    "copy_step_for",
    "forget_loaded_jobs",
    "held_connections",
    "input_tags",
    "report_lost_run",
    "retry_was_dropped",
    "run_of_step",
    "store_materializations",
    "targets_of_backfills",
    "version_tags",
    "webserver_app",
]

MODULES_OF_RUNS: Final = ("dagster._core.execution.api", "dagster._grpc.impl", "dagster_postgres")
"""What a run imports besides `dagster` itself. Dagster names no public set."""

_MOST_CONNECTIONS: Final = 8
_LIVE_DATA_POLL_MS: Final = 2000


# Materializations of many partitions.


def store_materializations(
    instance: dg.DagsterInstance, events: Iterable[dg.AssetMaterialization]
) -> None:
    """Store materializations that belong to no run, in one write.

    The public `report_runless_asset_event` takes one event, and costs a connection or two and some
    five queries for it.
    """
    instance.event_log_storage.store_event_batch([_runless_entry(event) for event in events])


def _runless_entry(materialization: dg.AssetMaterialization) -> dg.EventLogEntry:
    event = dg.DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
        event_specific_data=StepMaterializationData(materialization),
        job_name=RUNLESS_JOB_NAME,
    )
    return dg.EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None,
        user_message="",
        level=logging.INFO,
        run_id=RUNLESS_RUN_ID,
        timestamp=time.time(),
        job_name=RUNLESS_JOB_NAME,
        dagster_event=event,
    )


def version_tags(data_version: str) -> dict[str, str]:
    """Return the tags that give a logged materialization a data version of ours.

    The public `MaterializeResult(data_version=…)` takes one version for all partitions of a run.
    """
    return {DATA_VERSION_TAG: data_version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}


def input_tags(context: dg.AssetExecutionContext, keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return, by partition, tags that say which code and which inputs it is made from.

    Dagster writes them by itself for a step that yields its output, and reads them to tell what is
    out of date. No public way writes them for a materialization that a step logs.
    """
    storage = context.instance.event_log_storage
    made = dg.DagsterEventType.ASSET_MATERIALIZATION
    spec = context.assets_def.get_asset_spec(context.asset_key)
    tags = {key: {CODE_VERSION_TAG: spec.code_version or context.run_id} for key in keys}
    for dep in spec.deps:
        versions = storage.get_latest_tags_by_partition(
            dep.asset_key, made, [DATA_VERSION_TAG], asset_partitions=keys
        )
        pointers = storage.get_latest_storage_id_by_partition(
            dep.asset_key, made, partitions=set(keys)
        )
        for key in keys:
            version = versions.get(key, {}).get(DATA_VERSION_TAG, DEFAULT_DATA_VERSION.value)
            pointer = str(pointers.get(key, NULL_EVENT_POINTER))
            tags[key][get_input_data_version_tag(dep.asset_key)] = version
            tags[key][get_input_event_pointer_tag(dep.asset_key)] = pointer
    return tags


def check_target(
    instance: dg.DagsterInstance, asset_key: dg.AssetKey, partition: str
) -> AssetCheckEvaluationTargetMaterializationData | None:
    """Return what a check of this partition is of: its latest materialization.

    Dagster takes an evaluation that names another one, or none, for outdated, and shows it as
    missing. It names it for an `AssetCheckResult`, which a run over many partitions cannot have.
    """
    of_partition = dg.AssetRecordsFilter(asset_key, asset_partitions=[partition])
    records = instance.fetch_materializations(of_partition, limit=1).records
    return next(
        (
            AssetCheckEvaluationTargetMaterializationData(
                storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
            )
            for record in records
        ),
        None,
    )


# Backfills: the public API of an instance has none.


def a_backfill_goes_on(instance: dg.DagsterInstance) -> bool:
    """Return whether a backfill has not ended."""
    active = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]
    return any(instance.get_backfills(status=status, limit=1) for status in active)


def targets_of_backfills(instance: dg.DagsterInstance, asset_key: dg.AssetKey) -> set[str]:
    """Return partition keys that backfills are to make, and do not know as made or failed.

    The daemon takes a second or so to make each run of a backfill: a run that begins while it does
    finds few of them in the queue.
    """
    found: set[str] = set()
    with partition_loading_context(dynamic_partitions_store=instance):
        for backfill in instance.get_backfills(status=BulkActionStatus.REQUESTED):
            data = backfill.asset_backfill_data
            if data is None or asset_key not in data.target_subset.asset_keys:
                continue
            keys = set(data.target_subset.get_partitions_subset(asset_key).get_partition_keys())
            for settled in (data.materialized_subset, data.failed_and_downstream_subset):
                if asset_key in settled.asset_keys:
                    keys -= set(settled.get_partitions_subset(asset_key).get_partition_keys())
            found |= keys
    return found


# Runs whose process was lost.


def report_lost_run(instance: dg.DagsterInstance, run: dg.DagsterRun, message: str) -> None:
    """Mark a run as failed because its process is gone, so that Dagster's daemon retries it.

    No public way gives a reason, and without this one the run counts as failed by itself.
    """
    reason = RunFailureReason.UNEXPECTED_TERMINATION
    instance.report_run_failed(run, message, JobFailureData(error=None, failure_reason=reason))


def retry_was_dropped(
    instance: dg.DagsterInstance, run: dg.DagsterRun, *, is_overdue: bool
) -> bool:
    """Return whether the settings have a failed run started again, and Dagster has not done it.

    Its daemon looks once at each failure. Where the code server is away then, it leaves the run as:
    will not be retried, although nothing stands against it. Where the run's backfill has ended
    already, or the daemon itself ends, it leaves it as: will be retried. The public API does not
    tell whether a run is to be retried.

    Args:
        instance: where runs are kept.
        run: a failed one.
        is_overdue: it failed so long ago that its retry must exist by now.
    """
    if AUTO_RETRY_RUN_ID_TAG in run.tags:
        return False
    if run.tags.get(WILL_RETRY_TAG) != "false":
        return is_overdue and not _belongs_to_cancelled_backfill(instance, run)
    reason = run.tags.get(RUN_FAILURE_REASON_TAG)
    failure = RunFailureReason(reason) if reason else None
    return bool(auto_reexecution_should_retry_run(instance, run, failure))


def _belongs_to_cancelled_backfill(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    backfill = instance.get_backfill(run.tags.get(BACKFILL_ID_TAG, ""))
    cancelled = (BulkActionStatus.CANCELING, BulkActionStatus.CANCELED)
    return backfill is not None and backfill.status in cancelled


# Steps that a worker takes from a queue: dagster-celery's message is private to it.


def run_of_step(packed: Mapping[str, Any]) -> str:
    """Return the id of the run that a step in a message of dagster-celery belongs to."""
    return unpack_value(dict(packed), as_type=ExecuteStepArgs).run_id


def copy_step_for(instance: dg.DagsterInstance, packed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message with this instance in it: the sender's names folders of its machine."""
    step = unpack_value(dict(packed), as_type=ExecuteStepArgs)
    changed = pack_value(copy(step, instance_ref=instance.get_ref()))
    assert isinstance(changed, dict)
    return changed


def forget_loaded_jobs() -> None:
    """Have the definitions loaded anew by whoever asks next.

    Dagster keeps the latest job of a process, and knows it by its module's name. The public way is
    a new process, which would load the model again.
    """
    ReconstructableJob.get_repository_definition.cache_clear()
    ReconstructableJob.get_definition.cache_clear()


# Times that the clock's owner set back: the public API never moves what was noted.


def bring_back_instigator(instance: dg.DagsterInstance, state: InstigatorState, now: float) -> bool:
    """Have what a sensor or schedule noted for a time after `now` taken as noted now.

    Returns:
        Whether there was such a time.
    """
    return _bring_back_ticks(instance, state, now) | _bring_back_state(instance, state, now)


def _bring_back_state(instance: dg.DagsterInstance, state: InstigatorState, now: float) -> bool:
    """When a sensor or schedule was looked at last, and since when it runs."""
    data = state.instigator_data
    if data is None:
        return False
    ahead = {
        name: now
        for name, value in data._asdict().items()
        if name.endswith("_timestamp") and value is not None and value > now
    }
    if ahead:
        # Named tuples of which only the times are replaced, whatever else they hold.
        instance.update_instigator_state(state.with_data(type(data)(**data._asdict() | ahead)))
    return bool(ahead)


def _bring_back_ticks(instance: dg.DagsterInstance, state: InstigatorState, now: float) -> bool:
    """The last tick says where to go on, and what of it was interrupted: it stays the last."""
    origin, selector = state.instigator_origin_id, state.selector_id
    ahead = instance.get_ticks(origin, selector, after=now, limit=1)
    if not ahead:
        return False
    storage = instance.schedule_storage
    assert isinstance(storage, SqlScheduleStorage)
    (last,) = ahead
    instance.update_tick(last._replace(tick_data=last.tick_data._replace(timestamp=now)))
    # Those before it are history: nothing of them is read but the column that they are sorted by.
    earlier = JobTickTable.update().where(
        JobTickTable.c.selector_id == selector, JobTickTable.c.timestamp > _at(now)
    )
    with storage.connect() as connection:
        connection.execute(earlier.values(timestamp=_at(now - 1)))
    return True


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


# The webserver: its command offers no place for a door before it.


@contextmanager
def webserver_app(instance: dg.DagsterInstance, workspace: Path) -> Iterator[Any]:
    """Return Dagster's UI and GraphQL as an ASGI application, with the options of its command.

    `dagster-webserver` builds it, and serves it at once. No public name does the one without the
    other.

    Args:
        instance: what is shown.
        workspace: file that names the code locations.
    """
    # A second to import, and only the webserver needs them.
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.cli import (
        DEFAULT_DB_STATEMENT_TIMEOUT,
        DEFAULT_POOL_MAX_OVERFLOW,
        DEFAULT_POOL_RECYCLE,
    )

    instance.optimize_for_webserver(
        DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_RECYCLE, DEFAULT_POOL_MAX_OVERFLOW
    )
    target = WorkspaceFileTarget([str(workspace)])
    with WorkspaceProcessContext(instance, target, version=dg.__version__) as context:
        yield create_app_from_workspace_process_context(
            context, live_data_poll_rate=_LIVE_DATA_POLL_MS
        )


# Connections to Dagster's own Postgres.


@contextmanager
def held_connections(instance: dg.DagsterInstance) -> Iterator[None]:
    """Keep connections to Dagster's storage open for the length of the block.

    Outside its webserver Dagster opens a connection for every query. A run over partitions asks
    some thirty queries a video, and for each of them Postgres starts a process: most of what a
    video costs. A connection that a restart of Postgres has cut is noticed and replaced. Nor does
    it ask anew, several times a video, which tables there are. Storages other than Postgres are
    left as they are, and so is a block within another. The public `optimize_for_webserver` cannot
    be undone, keeps overflowing connections, and does not notice cut ones.
    """
    events: Any = instance.event_log_storage
    if "has_table" in vars(events):
        yield
        return
    held: list[tuple[Any, Any]] = []
    for storage in (instance.event_log_storage, instance.run_storage):
        if isinstance(storage, PostgresEventLogStorage | PostgresRunStorage):
            held.append((storage, storage._engine))
            storage._engine = create_pg_engine(
                storage.postgres_url,
                storage._token_provider,
                isolation_level="AUTOCOMMIT",
                pool_size=1,
                max_overflow=_MOST_CONNECTIONS - 1,
                pool_pre_ping=True,
            )
    if held:
        events.has_table = cache(events.has_table)
    try:
        yield
    finally:
        if held:
            del events.has_table
        for storage, engine in held:
            storage._engine.dispose()
            storage._engine = engine
