"""The daily look at everything: do uploads, partitions, frames, vectors and index agree?"""

from typing import Any

import dagster as dg

from siglip_pipeline.defs.assets import OWNERS, similarity_index
from siglip_pipeline.defs.in_flight import partitions_in_flight
from siglip_pipeline.defs.outcomes import retrying_what_heals
from siglip_pipeline.defs.partitions import (
    GROUP,
    KEY_PREFIX,
    PART,
    VIDEOS_PARTITIONS_NAME,
    asset_key,
    partition_key,
    path_of_partition,
)
from siglip_pipeline.defs.resources import DatabaseResource, FrameStoreResource, UploadsResource
from siglip_pipeline.reconcile import reconcile

PLACES_AGREE = "places_agree"
_MOST_DIFFERENCES_SHOWN = 200


class ReconciliationConfig(dg.Config):
    """Choices for one run, in the launchpad."""

    verify_frames: bool = False
    """Read every stored picture against its checksum, after a disk was in trouble, say."""


@dg.asset(
    key_prefix=KEY_PREFIX,
    deps=[similarity_index],
    check_specs=[
        dg.AssetCheckSpec(
            PLACES_AGREE,
            asset=asset_key("reconciliation"),
            description="Uploads, partitions, frames, vectors and the index agree, video by video.",
        )
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
    """How many uploads, partitions, frames and vectors there are, and where they disagree.

    Everything else reacts to changes; this counts. A video that a reaction missed is taken up
    again by `new_uploads`, a partition without upload and result is removed, the rest is listed.
    """
    existing = context.instance.get_dynamic_partitions(VIDEOS_PARTITIONS_NAME)
    busy = partitions_in_flight(context.instance, existing)
    if busy is None:
        context.log.info("a backfill goes on: nothing is repaired now, only counted")
        busy = frozenset(existing)
    with retrying_what_heals(context), database.open() as db:
        found = reconcile(
            uploads=uploads.store(),
            frame_store=frame_store.store(),
            database=db,
            partitions=[path_of_partition(key) for key in existing],
            busy={path_of_partition(key) for key in busy},
            part=PART,
            verify_frames=config.verify_frames,
        )
    for difference in found.differences:
        context.log.warning(
            f"{difference.video or 'collection'}: {difference.problem} ({difference.repair})"
        )
        if difference.repair == "partition removed":
            context.instance.delete_dynamic_partition(
                VIDEOS_PARTITIONS_NAME, partition_key(difference.video)
            )
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
        metadata["what_differs"] = dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "video": difference.video,
                        "problem": difference.problem,
                        "repair": difference.repair,
                    }
                )
                for difference in found.differences[:_MOST_DIFFERENCES_SHOWN]
            ]
        )
    return dg.MaterializeResult(
        metadata=metadata,
        check_results=[
            dg.AssetCheckResult(
                check_name=PLACES_AGREE,
                passed=not found.differences,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"differences": len(found.differences)},
            )
        ],
    )
