"""Which partitions a run is over: unfinished runs, and runs that wait in the queue."""

from collections.abc import Sequence

import dagster as dg
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.tags import PARTITION_NAME_TAG

from siglip_pipeline.defs.partitions import (
    RANGE_END_TAG,
    RANGE_START_TAG,
    VIDEOS_PARTITIONS_NAME,
    keys_between,
)

MOST_WAITING_RUNS = 1000
"""Waiting runs that are looked at: enough for a large backfill, and one query."""


def partitions_of_run(run: dg.DagsterRun, existing: Sequence[str]) -> list[str]:
    """Partition keys that a run is over.

    Args:
        run: any run.
        existing: every partition key in insertion order.
    """
    if PARTITION_NAME_TAG in run.tags:
        return [run.tags[PARTITION_NAME_TAG]]
    if RANGE_START_TAG in run.tags and RANGE_END_TAG in run.tags:
        return keys_between(existing, run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG])
    return []


def partitions_of_waiting_runs(instance: dg.DagsterInstance, asset_key: dg.AssetKey) -> list[str]:
    """Partition keys of the queued runs over this asset alone, in the order of the queue.

    Dagster runs cover ranges that are contiguous in the order of the partitions, so a backfill
    over every second video becomes a run for each. Only one has the GPU at a time. It embeds the
    videos of the waiting runs too; each of those then finds its vectors stored, and loads no
    model. See docs/decisions/0004-waiting-runs.md.
    """
    waiting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED])
    runs = [
        run
        for run in instance.get_runs(waiting, limit=MOST_WAITING_RUNS, ascending=True)
        if run.asset_selection == frozenset({asset_key})
    ]
    if not runs:
        return []
    existing = instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
    return list(dict.fromkeys(key for run in runs for key in partitions_of_run(run, existing)))


def partitions_in_flight(
    instance: dg.DagsterInstance, existing: Sequence[str]
) -> frozenset[str] | None:
    """Partition keys that an unfinished run is over; None while a backfill goes on.

    A backfill keeps its keys to itself until it has made its last run of them.
    """
    active = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]
    if any(instance.get_backfills(status=status, limit=1) for status in active):
        return None
    unfinished = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
    runs = instance.get_runs(dg.RunsFilter(statuses=unfinished))
    return frozenset(key for run in runs for key in partitions_of_run(run, existing))
