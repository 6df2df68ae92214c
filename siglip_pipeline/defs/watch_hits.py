"""The asset `watch_hits`: new videos are matched with standing queries, and the hits are sent."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from siglip_pipeline.defs.assets import MODEL_TAGS, OWNERS, frame_embeddings
from siglip_pipeline.defs.automation_conditions import VECTORS_UNMATCHED
from siglip_pipeline.defs.metadata import table
from siglip_pipeline.defs.outcomes import (
    CheckOutcome,
    PartitionOutcomes,
    retrying_temporary_errors,
)
from siglip_pipeline.defs.partitions import (
    GROUP,
    KEY_PREFIX,
    asset_key,
    videos_partitions,
)
from siglip_pipeline.defs.resources import DatabaseResource, SiglipResource
from siglip_pipeline.errors import EmbeddingError, SearchError, StoreError, VideoError
from siglip_pipeline.search.watching import WatchMatcher
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.run_names import WATCHED_PER_RUN
from siglip_pipeline.stages.webhooks import send_due
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.store.watches import WatchHit, WatchStore
from siglip_pipeline.text.in_words import counted

_HITS_SHOWN = 50
_NOT_SENT = ("late", "failed")

WATCH_CHECKS = (
    dg.AssetCheckSpec(
        "hits_are_sent",
        asset=asset_key("watch_hits"),
        description="No message about a hit of the video has failed; one that is late is sent "
        "again later.",
        partitions_def=videos_partitions,
    ),
)


@dg.asset(
    key_prefix=KEY_PREFIX,
    partitions_def=videos_partitions,
    deps=[frame_embeddings],
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=WATCHED_PER_RUN),
    automation_condition=VECTORS_UNMATCHED,
    check_specs=WATCH_CHECKS,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres"},
    op_tags=MODEL_TAGS,
    output_required=False,
)
def watch_hits(
    context: dg.AssetExecutionContext, database: DatabaseResource, siglip: SiglipResource
) -> Iterator[dg.MaterializeResult[Any] | dg.Output[None]]:
    """Match each video with the standing queries of `siglip-pipeline watch`, and send new hits.

    A moment is recorded once per watch, also if another model finds it again; the webhook of the
    watch gets each recorded hit. A video that cannot be matched fails alone. The sensor
    `watch_messages` repeats what could not be sent.
    """
    outcomes = PartitionOutcomes(context)
    with retrying_temporary_errors(context), database.open() as db:
        model_id = ModelStore(db).register(siglip.spec())
        matcher = WatchMatcher(db, model_id, embed_texts=siglip.embed_texts)
        new: dict[str, int] = {}
        for video, key in outcomes.key_of.items():
            try:
                new[video] = matcher.match(video)
            except (StoreError, SearchError, EmbeddingError) as error:
                if error.retryable:
                    raise
                outcomes.fail(key, VideoError(video, f"it could not be matched: {error}"))
        sent = send_due(WatchStore(db), page_address=Settings.load().page_address)
        context.log.info(
            f"{counted(sum(new.values()), 'new hit')}; {counted(sent.sent, 'message')} sent, "
            f"{sent.failed} failed"
        )
        for video, new_hits in new.items():
            hits = _hits_of(db, video)
            outcomes.succeed(
                outcomes.key_of[video],
                data_version=f"{len(hits)}.{hits[0].hit_id if hits else 0}",
                metadata=_metadata(hits, new_hits),
                checks=[_check(hits)],
            )
    yield from outcomes.finish()


def _hits_of(database: Database, video: str) -> list[WatchHit]:
    row = VideoStore(database).get(video)
    return [] if row is None else WatchStore(database).of_video(row.video_id)


def _metadata(hits: list[WatchHit], new: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {"hits": len(hits), "new_hits": new}
    if hits:
        metadata["newest"] = table(
            {
                "watch": found.watch,
                "time_seconds": round(found.hit.time_seconds, 3),
                "probability": round(found.hit.probability, 4),
                "delivery": found.delivery,
            }
            for found in hits[:_HITS_SHOWN]
        )
    return metadata


def _check(hits: list[WatchHit]) -> CheckOutcome:
    unsent = [found for found in hits if found.delivery in _NOT_SENT]
    return CheckOutcome(
        name="hits_are_sent",
        passed=not unsent,
        metadata={
            "late": sum(found.delivery == "late" for found in unsent),
            "failed": sum(found.delivery == "failed" for found in unsent),
            "reasons": sorted({found.failure or "" for found in unsent}),
        },
        severity=dg.AssetCheckSeverity.WARN,
    )


@dg.sensor(
    name="watch_messages",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends the hits of `siglip-pipeline watch` whose message could not be sent before.",
)
def watch_messages(
    context: dg.SensorEvaluationContext, database: DatabaseResource
) -> dg.SkipReason:
    """Post the messages that are due."""
    with database.open() as db:
        done = send_due(WatchStore(db), page_address=Settings.load().page_address)
    return dg.SkipReason(f"{counted(done.sent, 'message')} sent, {done.failed} failed")
