"""The asset checks: of each partition right after it is made, and of the whole collection."""

from typing import Any

import dagster as dg

from siglip_pipeline.defs.metadata import table
from siglip_pipeline.defs.outcomes import CheckOutcome
from siglip_pipeline.defs.partitions import asset_key, videos_partitions
from siglip_pipeline.records import Stage
from siglip_pipeline.stages.frame_embedding import VectorsStored
from siglip_pipeline.stages.frame_sampling import FramesStored
from siglip_pipeline.stages.stage_results import NoFrames
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import IndexReport
from siglip_pipeline.store.live_index import live_index
from siglip_pipeline.store.vectors import NORM_TOLERANCE, VectorSummary
from siglip_pipeline.store.videos import VideoStore

DAMAGED_SHARE_LIMIT = 0.01
"""`little_damage` warns if more than this share of a video could not be decoded."""

MOST_FAILURES_SHOWN = 100

RETRY = dg.MetadataValue.url("/guess/retry_failed/playground")
"""Page of the UI that starts the job `retry_failed`; the UI finds the code location of a job."""


def _spec(asset: Stage, name: str, description: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        name, asset=asset_key(asset), description=description, partitions_def=videos_partitions
    )


FRAME_CHECKS = (
    _spec(
        Stage.FRAMES,
        "can_be_decoded",
        "The file gives frames; else the metadata say why.",
    ),
    _spec(Stage.FRAMES, "frames_match_plan", "Every frame that the sampling chose is stored."),
    _spec(
        Stage.FRAMES,
        "little_damage",
        f"At most {DAMAGED_SHARE_LIMIT:.0%} of the video could not be decoded.",
    ),
    _spec(
        Stage.FRAMES,
        "footage_is_whole",
        "Nothing of the file had to be left out, guessed or approximated.",
    ),
)

VECTOR_CHECKS = (
    _spec(Stage.VECTORS, "vectors_match_frames", "Every stored frame has one vector."),
    _spec(
        Stage.VECTORS,
        "unit_length",
        f"Every stored vector has length 1 to within {2 * NORM_TOLERANCE}; so none holds NaN or an "
        "infinite value.",
    ),
)


INDEX_CHECKS = (
    dg.AssetCheckSpec(
        "index_recall",
        asset=asset_key(Stage.INDEX),
        blocking=True,
        description="The live index had a recall@10 of at least SIGLIP_INDEX_MIN_RECALL.",
    ),
    dg.AssetCheckSpec(
        "every_vector_is_searchable",
        asset=asset_key(Stage.INDEX),
        description="The live index answers for every stored vector of its model.",
    ),
    dg.AssetCheckSpec(
        "no_video_failed",
        asset=asset_key(Stage.INDEX),
        description="No upload failed in its last attempt; the table shows each with its reason.",
    ),
)


def check_frames(result: FramesStored | NoFrames) -> list[CheckOutcome]:
    """Return the checks of one partition of ``video_frames``.

    A partition that was current has no plan: its stored frames count as planned. A file without
    frames fails `can_be_decoded` alone: nothing is wrong with frames that are not there.
    """
    if isinstance(result, NoFrames):
        why = {"reason": result.reason, "retry_all_that_failed": RETRY}
        failed, *others = (spec.name for spec in FRAME_CHECKS)
        return [
            CheckOutcome(name=failed, passed=False, metadata=why),
            *(CheckOutcome(name=name, passed=True, metadata={}) for name in others),
        ]
    planned = result.stored.frames if result.report is None else result.report.planned_frames
    return [
        CheckOutcome(name="can_be_decoded", passed=True, metadata={}),
        CheckOutcome(
            name="frames_match_plan",
            passed=result.stored.frames == planned,
            metadata={"planned": planned, "stored": result.stored.frames},
            severity=dg.AssetCheckSeverity.WARN,
        ),
        CheckOutcome(
            name="little_damage",
            passed=result.damaged_share <= DAMAGED_SHARE_LIMIT,
            metadata={"damaged_share": round(result.damaged_share, 4)},
            severity=dg.AssetCheckSeverity.WARN,
        ),
        CheckOutcome(
            name="footage_is_whole",
            passed=not result.stored.warnings,
            metadata={"warnings": [*result.stored.warnings]},
            severity=dg.AssetCheckSeverity.WARN,
        ),
    ]


def check_vectors(result: VectorsStored, summary: VectorSummary) -> list[CheckOutcome]:
    """Return the checks of one partition of ``frame_embeddings``.

    Args:
        result: what the stage reported.
        summary: what the database holds now.
    """
    shortest, longest = summary.shortest, summary.longest
    return [
        CheckOutcome(
            name="vectors_match_frames",
            passed=summary.vectors == result.frames,
            metadata={"frames": result.frames, "vectors": summary.vectors},
        ),
        CheckOutcome(
            name="unit_length",
            passed=abs(shortest - 1) <= 2 * NORM_TOLERANCE
            and abs(longest - 1) <= 2 * NORM_TOLERANCE,
            metadata={"shortest": shortest, "longest": longest},
        ),
    ]


def check_collection(
    database: Database, model_id: int, report: IndexReport
) -> list[dg.AssetCheckResult]:
    """Return the checks of the whole collection under one model, after its index was updated."""
    counts = VideoStore(database).counts(model_id)
    index = live_index(database, model_id)
    failures: dict[str, Any] = {}
    if counts.failures:
        failures["retry_all_that_failed"] = RETRY
        failures["failures"] = table(
            {"video": failure.video, "stage": failure.stage, "reason": failure.reason}
            for failure in counts.failures[:MOST_FAILURES_SHOWN]
        )
    return [
        dg.AssetCheckResult(
            check_name="index_recall",
            passed=report.outcome != "refused",
            metadata={"reason": report.reason},
        ),
        dg.AssetCheckResult(
            check_name="every_vector_is_searchable",
            # Without a live index nothing is searchable; index_recall reports that.
            passed=index is None or index.frames == counts.vectors,
            metadata={"vectors": counts.vectors, "searchable": index.frames if index else 0},
        ),
        dg.AssetCheckResult(
            check_name="no_video_failed",
            passed=counts.failed == 0,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"failed": counts.failed, **failures},
        ),
    ]
