"""Find the partitions of unfinished runs, of waiting runs and of backfills."""

from collections.abc import Sequence

import dagster as dg

from siglip_pipeline.defs.internals import (
    PARTITION_NAME_TAG,
    has_active_backfill,
    targets_of_backfills,
)
from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG, keys_between

_FINISHED = {
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
}
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in _FINISHED]

MOST_AHEAD = 256
"""A run embeds at most this many videos of other runs. More would save few loads of the model, and
make the run last for hours."""


def partitions_of_run(run: dg.DagsterRun, existing: Sequence[str]) -> list[str]:
    """Return the partition keys that a run covers.

    Args:
        run: any run.
        existing: every partition key in insertion order.
    """
    if PARTITION_NAME_TAG in run.tags:
        return [run.tags[PARTITION_NAME_TAG]]
    if RANGE_START_TAG in run.tags and RANGE_END_TAG in run.tags:
        return keys_between(existing, run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG])
    return []


def partitions_that_wait(
    instance: dg.DagsterInstance, asset_key: dg.AssetKey, *, after: str
) -> list[str]:
    """Return partition keys of queued runs of this asset alone, then those of backfills' next runs.

    A Dagster run covers a range that is contiguous in the order of the partitions, so a backfill
    over every second video becomes one run per video. Only one of them has the GPU at a time. It
    also embeds the videos of the waiting runs; each of those then finds its vectors stored, and
    loads no model. See docs/decisions/0004-waiting-runs.md.

    Args:
        instance: where runs and backfills are kept.
        asset_key: the asset of the runs and backfills.
        after: of a backfill, return only keys after this one: a backfill makes its runs in order.

    Returns:
        At most :data:`MOST_AHEAD` keys.
    """
    statuses = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]
    runs = [
        run
        for run in instance.get_runs(
            dg.RunsFilter(statuses=statuses), limit=MOST_AHEAD, ascending=True
        )
        if run.asset_selection == frozenset({asset_key})
    ]
    targets = targets_of_backfills(instance, asset_key)
    if not runs and not targets:
        return []
    existing = instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
    waiting = [key for run in runs for key in partitions_of_run(run, existing)]
    position = existing.index(after) if after in existing else -1
    to_come = [key for key in existing[position + 1 :] if key in targets]
    return list(dict.fromkeys([*waiting, *to_come]))[:MOST_AHEAD]


def partitions_in_flight(
    instance: dg.DagsterInstance, existing: Sequence[str]
) -> frozenset[str] | None:
    """Return the partition keys that unfinished runs cover; None while a backfill is active.

    The keys of an active backfill are unknown until it has made its last run.
    """
    if has_active_backfill(instance):
        return None
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return frozenset(key for run in runs for key in partitions_of_run(run, existing))
