"""All uses of private parts of Dagster, except those in `services/code_server`.

Each docstring says which public interface is missing in Dagster 1.13.27. The contract test
`siglip_pipeline_tests/defs/test_internals.py` uses every function, and fails with a plain message
if a new Dagster changes one. This module imports no other of the project, because workers and the
command line use it too.
"""

import logging
import os
import re
import select
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias
from weakref import WeakSet

import dagster as dg
import sqlalchemy
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as CheckTarget,
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
from dagster._serdes import ConfigurableClassData, pack_value, unpack_value
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.event_log.event_log import CHANNEL_NAME
from dagster_postgres.utils import (
    create_pg_engine,
    get_token_provider_from_config,
    pg_url_from_config,
)
from dagster_shared.record import copy
from sqlalchemy import Engine, make_url
from sqlalchemy.pool import NullPool

# The tags are documented by Dagster, but have no public constants.
__all__ = [
    "DATA_VERSION_TAG",
    "GRPC_INFO_TAG",
    "MODULES_OF_RUNS",
    "PARENT_RUN_ID_TAG",
    "PARTITION_NAME_TAG",
    "RUN_KEY_TAG",
    "WILL_RETRY_TAG",
    "CheckTarget",
    "PooledPostgresStorage",
    "check_target",
    "copy_step_for",
    "forget_loaded_jobs",
    "has_active_backfill",
    "input_tags",
    "keep_connections",
    "log_materialization",
    "report_lost_run",
    "reset_instigator_times",
    "retry_was_dropped",
    "run_of_step",
    "store_materializations",
    "tags_of_steps",
    "targets_of_backfills",
    "version_tags",
    "webserver_app",
]

logger = logging.getLogger(__name__)

MODULES_OF_RUNS: Final = ("dagster._core.execution.api", "dagster._grpc.impl", "dagster_postgres")
"""Modules that a run imports besides `dagster` itself. Dagster documents no such list."""

_STORAGE_WAIT_SECONDS: Final = 10.0
"""How long a process waits at its start for a server that may be starting, too."""
_STORAGE_PAUSE_SECONDS: Final = 0.5
_FOR_GOOD: Final = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|does not support SSL"
    r'|(database|role) ".*" does not exist|permission denied for database'
    r"|could not translate host name .*(not known|No address)"
)
"""What libpq says, in English, where it would say the same in a minute."""
_KEPT_CONNECTIONS: Final = 2
_LONGEST_KEPT_SECONDS: Final = 300
_LIVE_DATA_POLL_MS: Final = 2000

_PostgresStorage: TypeAlias = PostgresEventLogStorage | PostgresRunStorage | PostgresScheduleStorage


# Materializations of many partitions.


def store_materializations(
    instance: dg.DagsterInstance, events: Iterable[dg.AssetMaterialization]
) -> None:
    """Store materializations that belong to no run, in one write.

    The public `report_runless_asset_event` takes one event, for which it makes one or two
    connections and about five queries.
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
    """Return the tags that give a logged materialization its own data version.

    The public `MaterializeResult(data_version=…)` takes one version for all partitions of a run.
    """
    return {DATA_VERSION_TAG: data_version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}


def input_tags(context: dg.AssetExecutionContext, keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return, by partition, the tags that record its code version and its inputs.

    Dagster writes them for a step that yields its output, and reads them to find what is out of
    date. No public interface writes them for a materialization that a step logs.
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
) -> CheckTarget | None:
    """Return the target of a check of this partition: its latest materialization.

    Dagster shows a check evaluation without this target as missing. It sets the target of an
    `AssetCheckResult`, but a run over many partitions cannot return one for each.
    """
    of_partition = dg.AssetRecordsFilter(asset_key, asset_partitions=[partition])
    records = instance.fetch_materializations(of_partition, limit=1).records
    return next(
        (
            CheckTarget(
                storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
            )
            for record in records
        ),
        None,
    )


def log_materialization(
    context: dg.AssetExecutionContext, materialization: dg.AssetMaterialization
) -> CheckTarget | None:
    """Log a materialization from a step, and return the target of its checks.

    `log_event` does not return the id under which the event is stored, and `check_target` takes
    two queries to find it.
    """
    storage: Any = context.instance.event_log_storage
    store = storage._store_asset_event
    wanted = materialization.asset_key, materialization.partition
    stored: list[CheckTarget] = []

    def note(connection: Any, entry: dg.EventLogEntry, storage_id: int) -> None:
        made = entry.asset_materialization
        if made is not None and (made.asset_key, made.partition) == wanted:
            stored.append(
                CheckTarget(storage_id=storage_id, run_id=entry.run_id, timestamp=entry.timestamp)
            )
        store(connection, entry, storage_id)

    storage._store_asset_event = note
    try:
        context.log_event(materialization)
    finally:
        del storage._store_asset_event
    return stored[-1] if stored else None


# Backfills: the public API of an instance does not list them.


def has_active_backfill(instance: dg.DagsterInstance) -> bool:
    """Return whether a backfill has not ended."""
    active = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]
    return any(instance.get_backfills(status=status, limit=1) for status in active)


def targets_of_backfills(instance: dg.DagsterInstance, asset_key: dg.AssetKey) -> set[str]:
    """Return partition keys of active backfills that are neither materialized nor failed.

    The daemon needs about a second to make each run of a backfill, so a run that begins meanwhile
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

    The public method sets no failure reason, and Dagster does not retry a run without this reason.
    """
    reason = RunFailureReason.UNEXPECTED_TERMINATION
    instance.report_run_failed(run, message, JobFailureData(error=None, failure_reason=reason))


def retry_was_dropped(
    instance: dg.DagsterInstance, run: dg.DagsterRun, *, is_overdue: bool
) -> bool:
    """Return whether the settings require a retry of a failed run that Dagster did not make.

    Its daemon looks at each failure once. If the code server is down at that moment, the daemon
    marks the run as one that will not be retried. If the run's backfill has ended, or the daemon
    itself ends, the run stays marked as one that will be retried. The public API does not tell
    whether a run is to be retried.

    Args:
        instance: where runs are kept.
        run: a failed run.
        is_overdue: whether it failed so long ago that its retry must exist by now.
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


# Steps that a worker takes from a queue: the form of dagster-celery's messages is private.


def run_of_step(packed: Mapping[str, Any]) -> str:
    """Return the id of the run to which the step in a message of dagster-celery belongs."""
    return unpack_value(dict(packed), as_type=ExecuteStepArgs).run_id


def copy_step_for(instance: dg.DagsterInstance, packed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message for this machine's instance: the sender's holds folders of its machine."""
    step = unpack_value(dict(packed), as_type=ExecuteStepArgs)
    changed = pack_value(copy(step, instance_ref=instance.get_ref()))
    assert isinstance(changed, dict)
    return changed


def tags_of_steps(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dict[str, str]:
    """Return the tags that the steps of a run had in the definitions that launched it.

    A worker has definitions of its own. The public API shows no tags of another process's steps.
    """
    if run.execution_plan_snapshot_id is None:
        return {}
    plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
    return {tag: value for step in plan.steps for tag, value in (step.tags or {}).items()}


def forget_loaded_jobs() -> None:
    """Clear Dagster's cache of definitions, so that the next step loads them again.

    Dagster caches the latest job of a process by its module's name. The public alternative is a new
    process, which would load the model again.
    """
    ReconstructableJob.get_repository_definition.cache_clear()
    ReconstructableJob.get_definition.cache_clear()


# Times after the clock was set back: the public API cannot change recorded times.


def reset_instigator_times(
    instance: dg.DagsterInstance, state: InstigatorState, now: float
) -> bool:
    """Set times after `now`, that a sensor or schedule recorded, to `now`.

    Returns:
        Whether there was such a time.
    """
    return _reset_tick_times(instance, state, now) | _reset_state_times(instance, state, now)


def _reset_state_times(instance: dg.DagsterInstance, state: InstigatorState, now: float) -> bool:
    """Set the times of the last evaluation and of the start."""
    data = state.instigator_data
    if data is None:
        return False
    ahead = {
        name: now
        for name, value in data._asdict().items()
        if name.endswith("_timestamp") and value is not None and value > now
    }
    if ahead:
        # Replace only the times; other fields of the named tuple stay.
        instance.update_instigator_state(state.with_data(type(data)(**data._asdict() | ahead)))
    return bool(ahead)


def _reset_tick_times(instance: dg.DagsterInstance, state: InstigatorState, now: float) -> bool:
    """Set the last tick to `now`, and earlier ones before it.

    The last tick holds the cursor and interrupted work, so it has to stay the last.
    """
    origin, selector = state.instigator_origin_id, state.selector_id
    ahead = instance.get_ticks(origin, selector, after=now, limit=1)
    if not ahead:
        return False
    storage = instance.schedule_storage
    assert isinstance(storage, SqlScheduleStorage)
    (last,) = ahead
    instance.update_tick(last._replace(tick_data=last.tick_data._replace(timestamp=now)))
    # Of earlier ticks Dagster reads only the column that sorts them.
    earlier = JobTickTable.update().where(
        JobTickTable.c.selector_id == selector, JobTickTable.c.timestamp > _at(now)
    )
    with storage.connect() as connection:
        connection.execute(earlier.values(timestamp=_at(now - 1)))
    return True


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


# The webserver: its command has no option for a middleware.


@contextmanager
def webserver_app(instance: dg.DagsterInstance, workspace: Path) -> Iterator[Any]:
    """Open Dagster's UI and GraphQL as an ASGI application, with the options of its command.

    The command `dagster-webserver` builds the application and serves it; no public function only
    builds it.

    Args:
        instance: what the UI shows.
        workspace: file that names the code locations.
    """
    # They take a second to import, and only the webserver needs them.
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


class PooledPostgresStorage(DagsterPostgresStorage):
    """Store what Dagster does in Postgres, over connections that a process opens once.

    `dagster.yaml` names this class. Outside its webserver, `DagsterPostgresStorage` opens a
    connection for every query, and Postgres starts a process for each: more than half of the work
    of services that have nothing to do. Here all instances of a process share one pool for each
    URL; a forked process begins with an empty one. An existing table is looked for once.

    dagster-postgres has no option for a pool.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: Any = None,
    ) -> None:
        # The code server makes an instance for each tick: it need not look for tables again.
        known = _pool_of_process.url == postgres_url
        if not known:
            _wait_for_server(postgres_url, token_provider)
        super().__init__(
            postgres_url, should_autocreate_tables and not known, inst_data, token_provider
        )
        _use_pool(self.event_log_storage, self.run_storage, self.schedule_storage)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "PooledPostgresStorage":
        """Make the storage that a `dagster.yaml` describes."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )


def _wait_for_server(postgres_url: str, token_provider: Any) -> None:
    """Connect once: dagster-postgres tries for 11 s, even if the password is wrong.

    Raises:
        OperationalError: of SQLAlchemy; the server refuses for good, or does not answer in time.
    """
    # libpq waits for minutes for a server that does not answer at all.
    says_how_long = "connect_timeout" in make_url(postgres_url).query
    options = {} if says_how_long else {"connect_timeout": int(_STORAGE_WAIT_SECONDS)}
    engine = create_pg_engine(
        postgres_url, token_provider, poolclass=NullPool, connect_args=options
    )
    deadline = time.monotonic() + _STORAGE_WAIT_SECONDS
    said = False
    while True:
        try:
            engine.connect().close()
            return
        except sqlalchemy.exc.OperationalError as error:
            if _FOR_GOOD.search(str(error.orig)) or time.monotonic() > deadline:
                raise
        if not said:
            logger.warning(
                "Dagster's storage does not answer yet; waiting for it, at most %d s",
                _STORAGE_WAIT_SECONDS,
            )
            said = True
        time.sleep(_STORAGE_PAUSE_SECONDS)


class _PoolOfProcess:
    """The connections to one URL, and the tables that were found there."""

    def __init__(self) -> None:
        self.url: str | None = None
        self._engine: Engine | None = None
        self._tables: set[str] = set()
        self._lock = threading.Lock()

    def get(self, storage: _PostgresStorage) -> tuple[Engine, set[str]]:
        """Return them for a storage; those to another URL are closed when their queries end."""
        with self._lock:
            if self._engine is None or self.url != storage.postgres_url:
                if self._engine is not None:
                    self._engine.dispose()
                self._engine, self._tables = _pooled_engine(storage), set()
                self.url = storage.postgres_url
            return self._engine, self._tables


_pool_of_process: Final = _PoolOfProcess()
_pooled_engines: Final[WeakSet[Engine]] = WeakSet()


def _forget_connections() -> None:
    """Leave the connections of the process that forked this one to that process."""
    for engine in _pooled_engines:
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_connections)


def keep_connections(instance: dg.DagsterInstance) -> None:
    """Have an instance use the connections of its process, as `PooledPostgresStorage` does.

    For a run of an instance whose `dagster.yaml` names Dagster's own classes, as that of the Helm
    chart does: about thirty queries per video, and opening a connection for each is most of the
    cost of a video. Other storages stay as they are. The public `optimize_for_webserver` keeps
    overflow connections, and does not replace those that a restart of Postgres has closed.
    """
    _use_pool(instance.event_log_storage, instance.run_storage, instance.schedule_storage)


def _use_pool(*storages: object) -> None:
    for storage in storages:
        if not isinstance(storage, _PostgresStorage):
            continue
        if isinstance(storage._engine.pool, NullPool):
            storage._engine, tables = _pool_of_process.get(storage)
            if isinstance(storage, PostgresEventLogStorage):
                _remember_tables(storage, tables)


def _is_notification(cursor: object, statement: str, *_: object) -> bool:
    """Return whether a statement need not be executed.

    Dagster still notifies for versions long before 1.13. A commit with a notification waits for the
    disk as one with an event does.
    """
    return statement.startswith(f"NOTIFY {CHANNEL_NAME},")


def _pooled_engine(storage: _PostgresStorage) -> Engine:
    """Return a pool that opens as many connections as are needed, and keeps a few.

    One that a restart of Postgres has closed is replaced, without a query before each query. No
    event is announced by `NOTIFY`, for which no Dagster of today listens.
    A connection is used for `_LONGEST_KEPT_SECONDS` at most: what watches connections on the way
    (a firewall, a translation of addresses) often forgets those that are silent for longer.
    """
    engine = create_pg_engine(
        storage.postgres_url,
        storage._token_provider,
        isolation_level="AUTOCOMMIT",
        pool_size=_KEPT_CONNECTIONS,
        max_overflow=-1,
        pool_use_lifo=True,
        pool_recycle=_LONGEST_KEPT_SECONDS,
        pool_pre_ping=True,
    )
    _ask_only_if_there_is_news(engine.dialect)
    sqlalchemy.event.listen(engine, "do_execute", _is_notification)
    _pooled_engines.add(engine)
    return engine


def _remember_tables(events: Any, found: set[str]) -> None:
    """Look for a table once it is there no more: Dagster looks before many of its queries."""
    look = events.has_table

    def has_table(name: str) -> bool:
        if name not in found and look(name):
            found.add(name)
        return name in found

    events.has_table = has_table


def _ask_only_if_there_is_news(dialect: Any) -> None:
    """Let a ping answer at once for a connection on which nothing has arrived.

    The end of a server's process closes its connections, which makes them readable. A server that
    the network separated is noticed by the next query, as it would be by a query sent before it.
    """
    ask = dialect.do_ping

    def ping(connection: Any) -> bool:
        if connection.closed:
            return bool(ask(connection))
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        return bool(ask(connection)) if poll.poll(0) else True

    dialect.do_ping = ping
