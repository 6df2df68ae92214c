"""Restart runs whose retry by Dagster was dropped.

Runs that wait in the queue while the code server is down stay there (``dagster.yaml``). If a run's
process was lost, or did not start in time, Dagster's daemon retries the run once, when it reads the
failure event. If the code server does not answer at that moment, the run is marked "Failed to retry
run". If the run's backfill has ended by then, or the daemon ends, the run stays marked as one that
will be retried. The code server evaluates sensors, so it is up when this sensor runs.
"""

from collections.abc import Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg

from siglip_pipeline.defs.assets import frame_embeddings, similarity_index, video_frames
from siglip_pipeline.defs.in_flight import partitions_of_run
from siglip_pipeline.defs.internals import PARENT_RUN_ID_TAG, WILL_RETRY_TAG, retry_was_dropped
from siglip_pipeline.defs.jobs import (
    compare_videos,
    embed_frames,
    match_watches,
    rebuild_index,
    reconcile_collection,
    sample_frames,
)
from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME
from siglip_pipeline.defs.reconciliation import reconciliation
from siglip_pipeline.defs.video_similarity import video_similarity
from siglip_pipeline.defs.watch_hits import watch_hits
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG

INSTEAD_OF_TAG: Final = "siglip/instead_of"
"""Tag of a run that this sensor starts: the id of the run that it replaces."""
TIMES_TAG: Final = "siglip/times_started_again"
"""Tag of such a run, and of Dagster's own retries of it: how often this sensor restarted it."""
MOST_TIMES: Final = 3
"""Restarts of one run. A run that ends the code server each time must not restart forever."""
RETRIED_WITHIN: Final = timedelta(minutes=2)
"""A retry by Dagster exists after this time: its daemon reads a failure event within seconds."""
LOOK_BACK: Final = timedelta(days=1)
"""Older failures are left to the daily reconciliation."""

MOST_LOOKED_AT: Final = 500
"""Failed runs that one tick looks at, the newest first."""

JOBS: Final = {
    video_frames.key: sample_frames,
    frame_embeddings.key: embed_frames,
    watch_hits.key: match_watches,
    similarity_index.key: rebuild_index,
    video_similarity.key: compare_videos,
    reconciliation.key: reconcile_collection,
}
"""The job of each asset, in order from upstream to downstream."""


def _request_instead_of(
    run: dg.DagsterRun, assets: Set[dg.AssetKey], existing: Sequence[str]
) -> dg.RunRequest | None:
    """Return a request for the same work; None if its partitions are gone or after too many times.

    If the run covers several assets, the request names the most upstream one: automation then makes
    the assets downstream of it.

    Args:
        run: the lost run.
        assets: what it makes.
        existing: every partition key in insertion order.
    """
    times = int(run.tags.get(TIMES_TAG, "0")) + 1
    if times > MOST_TIMES:
        return None
    asset = next(key for key in JOBS if key in assets)
    tags = {INSTEAD_OF_TAG: run.run_id, TIMES_TAG: str(times)}
    if asset in (video_frames.key, frame_embeddings.key, watch_hits.key):
        partitions = partitions_of_run(run, existing)
        if not partitions:
            return None
        tags |= {RANGE_START_TAG: partitions[0], RANGE_END_TAG: partitions[-1]}
    of_asset = asset.to_python_identifier()
    config: dict[str, Any] = {**run.run_config}
    if "ops" in config:
        config["ops"] = {op: chosen for op, chosen in config["ops"].items() if op == of_asset}
    return dg.RunRequest(
        run_key=f"instead of {run.run_id}",
        job_name=JOBS[asset].name,
        run_config=config,
        tags=tags,
        asset_selection=[asset],
    )


@dg.sensor(
    jobs=[*JOBS.values()],
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Restarts runs whose process was lost or did not start in time, if Dagster did not retry "
        f"them, for example because the code server was down; at most {MOST_TIMES} times."
    ),
)
def lost_runs(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Request each lost run again, unless another run has already replaced it."""
    instance = context.instance
    failed = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE],
        tags={WILL_RETRY_TAG: ["false", "true"]},
        updated_after=datetime.now(UTC) - LOOK_BACK,
    )
    existing: list[str] | None = None
    requests = []
    overdue = datetime.now(UTC) - RETRIED_WITHIN
    for record in instance.get_run_records(failed, limit=MOST_LOOKED_AT):
        run = record.dagster_run
        # Skip runs of another shard, and of jobs that people start with their own selection.
        assets = run.asset_selection or frozenset()
        if not assets or not assets <= JOBS.keys():
            continue
        is_overdue = record.update_timestamp < overdue
        if not retry_was_dropped(instance, run, is_overdue=is_overdue):
            continue
        if _has_another(instance, run):
            continue
        if existing is None:
            existing = [*instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)]
        request = _request_instead_of(run, assets, existing)
        if request is not None:
            requests.append(request)
            context.log.warning(f"run {run.run_id} was lost and not retried: requested again")
    return dg.SensorResult(run_requests=requests) if requests else dg.SkipReason("no run was lost")


def _has_another(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Return whether a run of this sensor, or one that a person started, replaces this run."""
    return any(
        instance.get_runs(dg.RunsFilter(tags={tag: run.run_id}), limit=1)
        for tag in (INSTEAD_OF_TAG, PARENT_RUN_ID_TAG)
    )
