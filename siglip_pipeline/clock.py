"""When somebody sets the clock back: Dagster's daemon must not wait until it has caught up.

The daemon looks at a sensor when so many seconds have passed since the last look, and keeps that
time in its database and in memory. Where it lies weeks ahead, nothing would be taken up for weeks.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from siglip_pipeline.errors import DatabaseUnavailableError
from siglip_pipeline.settings import Settings, process_environment

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from dagster._core.scheduler.instigation import InstigatorState

_SLACK_SECONDS: Final = 5.0
"""What a time service corrects without anybody noticing."""


class ClockWatch:
    """Compares the clock that people set with the one that nobody does."""

    def __init__(self) -> None:
        self._highest = self._look()

    def set_back_seconds(self) -> float:
        """By how much the clock was set back since :meth:`heeded`; 0.0 when it was not."""
        now = self._look()
        self._highest = max(self._highest, now)
        back = self._highest - now
        return back if back > _SLACK_SECONDS else 0.0

    def heeded(self) -> None:
        """From here on the clock is right."""
        self._highest = self._look()

    @staticmethod
    def _look() -> float:
        return time.time() - time.monotonic()


def forget_times_to_come(settings: Settings, dagster_home: Path) -> int:
    """Have Dagster take what it noted for a time to come as noted now; its daemon must not run.

    Returns:
        How many sensors and schedules had such times.

    Raises:
        DatabaseUnavailableError: Dagster's storage does not answer.
    """
    # Dagster takes a second to import; most commands of the CLI do without it.
    import psycopg2
    import sqlalchemy.exc
    from dagster import DagsterInstance
    from dagster_postgres.utils import DagsterPostgresException

    try:
        with (
            process_environment(settings, DAGSTER_HOME=str(dagster_home)),
            DagsterInstance.get() as instance,
        ):
            now = time.time()
            return sum(
                _bring_back_ticks(instance, state, now) | _bring_back_state(instance, state, now)
                for state in instance.all_instigator_state()
            )
    except (psycopg2.Error, sqlalchemy.exc.SQLAlchemyError, DagsterPostgresException) as error:
        raise DatabaseUnavailableError(
            f"Dagster's storage does not answer: {error}; bring its Postgres back"
        ) from error


def _bring_back_state(instance: "DagsterInstance", state: "InstigatorState", now: float) -> bool:
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


def _bring_back_ticks(instance: "DagsterInstance", state: "InstigatorState", now: float) -> bool:
    """The last tick says where to go on, and what of it was interrupted: it stays the last."""
    from dagster._core.storage.schedules.schema import JobTickTable
    from dagster._core.storage.schedules.sql_schedule_storage import SqlScheduleStorage

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
