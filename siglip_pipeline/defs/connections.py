"""Connections to Dagster's own Postgres, held while many events are written."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import dagster as dg
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage
from dagster_postgres.utils import create_pg_engine

_MOST_CONNECTIONS = 8


@contextmanager
def held_connections(instance: dg.DagsterInstance) -> Iterator[None]:
    """Keep connections to Dagster's storage open for the length of the block.

    Outside its webserver Dagster opens a connection for every query. A run over partitions asks
    some thirty queries a video, and for each of them Postgres starts a process: most of what a
    video costs. A connection that a restart of Postgres has cut is noticed and replaced. Nor does
    it ask anew, several times a video, which tables there are. Storages other than Postgres are
    left as they are, and so is a block within another.
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
