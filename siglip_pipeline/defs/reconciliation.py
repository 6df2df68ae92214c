"""The daily reconciliation of uploads, partitions, frames, vectors and index."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from siglip_pipeline.defs.assets import OWNERS, similarity_index
from siglip_pipeline.defs.in_flight import UNFINISHED, partitions_in_flight, partitions_of_run
from siglip_pipeline.defs.metadata import table
from siglip_pipeline.defs.outcomes import retrying_temporary_errors
from siglip_pipeline.defs.partitions import (
    GROUP,
    KEY_PREFIX,
    SHARD,
    VIDEOS_PARTITIONS_NAME,
    asset_key,
    no_upload_has,
    path_of_partition,
)
from siglip_pipeline.defs.quality_check import LOGGED_CHECKS, check_logged_queries
from siglip_pipeline.defs.resources import DatabaseResource, FrameStoreResource, UploadsResource
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.reconcile import AWAITED_SECONDS, InDagster, Reconciliation, reconcile

PLACES_AGREE = "places_agree"
_MOST_DIFFERENCES_SHOWN = 200


class ReconciliationConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    verify_frames: bool = False
    """Compare every stored picture with its checksum, for example after disk errors."""


def in_dagster(instance: dg.DagsterInstance, *, besides: str) -> InDagster:
    """Return what Dagster holds now, by the videos' paths, without the run `besides`.

    While a backfill is active, all videos are busy: they are counted, but not repaired.
    """
    existing = instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
    strays = {key for key in existing if no_upload_has(key) is not None}
    busy = partitions_in_flight(instance, existing)
    lately = datetime.now(UTC) - timedelta(seconds=AWAITED_SECONDS)
    runs = [
        run
        for wanted in (dg.RunsFilter(statuses=UNFINISHED), dg.RunsFilter(updated_after=lately))
        for run in instance.get_runs(wanted)
        if run.run_id != besides
    ]
    recent = {key for run in runs for key in partitions_of_run(run, existing)}
    return InDagster(
        partitions=_paths(key for key in existing if key not in strays),
        strays=frozenset() if busy is None else frozenset(strays - busy),
        busy=_paths(existing if busy is None else busy),
        recent=_paths(recent),
        is_quiet=busy is not None and not runs,
    )


def _paths(keys: Iterable[str]) -> frozenset[str]:
    return frozenset(map(path_of_partition, keys))


@dg.asset(
    key_prefix=KEY_PREFIX,
    deps=[similarity_index],
    check_specs=[
        dg.AssetCheckSpec(
            PLACES_AGREE,
            asset=asset_key("reconciliation"),
            description="Uploads, partitions, frames, vectors and the index agree, video by video.",
        ),
        *LOGGED_CHECKS,
    ],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres"},
)
def reconciliation(
    context: dg.AssetExecutionContext,
    config: ReconciliationConfig,
    uploads: UploadsResource,
    frame_store: FrameStoreResource,
    database: DatabaseResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster looks for the bare class
    """Count uploads, partitions, frames and vectors, and list where they differ.

    Sensors and automation react to changes; this asset finds what they missed. It announces a
    missed video again for `new_uploads`, removes a partition that has neither upload nor result,
    and lists the other differences.
    """
    with retrying_temporary_errors(context), database.open() as db:
        found = reconcile(
            uploads=uploads.store(),
            frame_store=frame_store.store(),
            database=db,
            in_dagster=lambda: in_dagster(context.instance, besides=context.run_id),
            shard=SHARD,
            verify_frames=config.verify_frames,
        )
        settings = Settings.load()
        logged = [check_logged_queries(db, settings)] if settings.query_log else []
    _remove_partitions(context, found)
    return dg.MaterializeResult(
        metadata=_metadata(found),
        check_results=[
            dg.AssetCheckResult(
                check_name=PLACES_AGREE,
                passed=not found.differences,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"differences": len(found.differences)},
            ),
            *logged,
        ],
    )


def _remove_partitions(context: dg.AssetExecutionContext, found: Reconciliation) -> None:
    """Log each difference, and remove the partitions that `reconcile` chose."""
    for difference in found.differences:
        context.log.warning(
            f"{difference.video or 'collection'}: {difference.problem} ({difference.repair})"
        )
        if difference.partition is not None:
            context.instance.delete_dynamic_partition(VIDEOS_PARTITIONS_NAME, difference.partition)


def _metadata(found: Reconciliation) -> Mapping[str, Any]:
    metadata: dict[str, Any] = {
        "uploads": found.uploads,
        "partitions": found.partitions,
        "videos": found.videos,
        "frames": found.frames,
        "vectors": found.vectors,
        "indexed_frames": found.indexed,
        "differences": len(found.differences),
    }
    if found.differences:
        metadata["what_differs"] = table(
            {
                "video": difference.video,
                "problem": difference.problem,
                "repair": difference.repair,
            }
            for difference in found.differences[:_MOST_DIFFERENCES_SHOWN]
        )
    return metadata
