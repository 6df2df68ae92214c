"""The assets: an upload becomes frames, frames become vectors, vectors become an index.

Bodies only orchestrate: the work is in `stages/` and `store/`, and runs without Dagster.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dagster as dg

from siglip_pipeline.defs.automation_conditions import FRAMES_CHANGED, VECTORS_CHANGED
from siglip_pipeline.defs.checks import (
    FRAME_CHECKS,
    INDEX_CHECKS,
    VECTOR_CHECKS,
    check_collection,
    check_frames,
    check_vectors,
)
from siglip_pipeline.defs.in_flight import partitions_that_wait
from siglip_pipeline.defs.metadata import (
    FRAME_COLUMNS,
    embedding_metadata,
    engine_metadata,
    frames_metadata,
    index_metadata,
    sampling_metadata,
)
from siglip_pipeline.defs.outcomes import PartitionOutcomes, retrying_temporary_errors
from siglip_pipeline.defs.partitions import (
    GROUP,
    KEY_PREFIX,
    asset_key,
    path_of_partition,
    videos_partitions,
)
from siglip_pipeline.defs.quality_check import QUALITY_CHECKS, check_quality
from siglip_pipeline.defs.queues import EMBEDDING_QUEUE, QUEUE_TAG
from siglip_pipeline.defs.resources import (
    DatabaseResource,
    FrameStoreResource,
    SiglipResource,
    UploadsResource,
    model_tags,
)
from siglip_pipeline.errors import VideoError
from siglip_pipeline.evaluation.promotion import QualityGate
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.identity import vectors_code_version
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.stages.frame_embedding import embed_videos
from siglip_pipeline.stages.frame_sampling import sample_videos
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.stages.freshness import Wanted, out_of_date
from siglip_pipeline.stages.run_names import EMBEDDINGS_PER_RUN, FRAMES_PER_RUN
from siglip_pipeline.stages.stage_results import NoFrames
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.recall import recall_history
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore

OWNERS = ["team:video-search"]
GPU_POOL = "gpu"

# Dagster marks a partition as out of date if its code version differs from these. Computing them
# loads no model and sends no request to the hub.
FRAMES_CODE_VERSION = FramesOptions.from_settings(Settings.load()).recipe
VECTORS_CODE_VERSION = vectors_code_version(ModelOptions.from_settings(Settings.load()))
MODEL_TAGS = model_tags()

# The schedule `daily_index` updates the index when no upload does.
INDEX_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=26))

uploads_asset = dg.AssetSpec(
    asset_key("uploads"),
    partitions_def=videos_partitions,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"video"},
    description=(
        "The files below `SIGLIP_UPLOADS`, one partition each. The sensor `new_uploads` reports a "
        "file when it first sees it and whenever it has changed. Only `video_frames` reads it."
    ),
)


class VideoBatchConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    force: bool = False
    """Process also videos whose result is current."""


@dg.asset(
    key_prefix=KEY_PREFIX,
    partitions_def=videos_partitions,
    deps=[uploads_asset],
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=FRAMES_PER_RUN),
    code_version=FRAMES_CODE_VERSION,
    check_specs=FRAME_CHECKS,
    metadata={"dagster/column_schema": FRAME_COLUMNS},
    group_name=GROUP,
    owners=OWNERS,
    kinds={"ffmpeg", "parquet"},
    output_required=False,
)
def video_frames(
    context: dg.AssetExecutionContext,
    config: VideoBatchConfig,
    uploads: UploadsResource,
    frame_store: FrameStoreResource,
    database: DatabaseResource,
) -> Iterator[dg.MaterializeResult[Any] | dg.Output[None]]:
    """Store the sampled frames of each video, as JPEGs in one Parquet file per video.

    The video is decoded once, in a child process with a time limit. `SIGLIP_SAMPLING` selects the
    frames. The partition of a file that cannot be decoded has no frames, and its check
    `can_be_decoded` fails with the reason. The partition fails only if storage or machine did.
    """
    outcomes = PartitionOutcomes(context)
    frames = frame_store.store()
    results = []
    began = time.monotonic()
    with retrying_temporary_errors(context), database.open() as db:
        for result in sample_videos(
            [*outcomes.key_of],
            uploads=uploads.store(),
            frame_store=frames,
            database=db,
            options=FramesOptions.from_settings(Settings.load()),
            force=config.force,
        ):
            results.append(result)
            key = outcomes.key_of[result.video]
            if isinstance(result, VideoError):
                outcomes.fail(key, result)
                continue
            if isinstance(result, NoFrames):
                context.log.warning(f"{key}: {result.reason}")
            outcomes.succeed(
                key,
                data_version=result.data_version,
                metadata=frames_metadata(result, frames),
                checks=check_frames(result),
            )
        totals = sampling_metadata(results, seconds=time.monotonic() - began)
        context.log_event(dg.AssetObservation(context.asset_key, metadata=totals))
    yield from outcomes.finish()


@dg.asset(
    key_prefix=KEY_PREFIX,
    partitions_def=videos_partitions,
    deps=[video_frames],
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=EMBEDDINGS_PER_RUN),
    automation_condition=FRAMES_CHANGED,
    code_version=VECTORS_CODE_VERSION,
    check_specs=VECTOR_CHECKS,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"pytorch", "postgres"},
    pool=GPU_POOL,
    op_tags={QUEUE_TAG: EMBEDDING_QUEUE, **MODEL_TAGS},
    output_required=False,
)
def frame_embeddings(
    context: dg.AssetExecutionContext,
    config: VideoBatchConfig,
    frame_store: FrameStoreResource,
    database: DatabaseResource,
    siglip: SiglipResource,
) -> Iterator[dg.MaterializeResult[Any] | dg.Output[None]]:
    """Embed every sampled frame with SigLIP 2, and store the vectors in Postgres with pgvector.

    One transaction per video replaces that video's vectors. The model loads once per run, and only
    if there is something to embed. A run takes a slot of the pool `gpu`. It also embeds the videos
    of runs that wait for the slot, and those of a backfill's next runs; these runs then find their
    vectors stored.
    """
    outcomes = PartitionOutcomes(context)
    settings = siglip.settings()

    def ahead() -> list[str]:
        last = outcomes.keys[-1]
        waiting = partitions_that_wait(context.instance, context.asset_key, after=last)
        return [path_of_partition(key) for key in waiting]

    with retrying_temporary_errors(context), database.open() as db:
        spec = siglip.spec()
        engine = siglip.engine(context.log.info)
        model_id = ModelStore(db).register(spec, table_limit=settings.frames_table_limit)
        vectors = VectorStore(db)
        for result in embed_videos(
            [*outcomes.key_of],
            frame_store=frame_store.store(),
            database=db,
            model_id=model_id,
            model_key=spec.key,
            engine=engine,
            force=config.force,
            ahead=ahead,
        ):
            key = outcomes.key_of.get(result.video)
            if key is None:
                context.log.debug(f"{result.video}: embedded ahead for a run that waits")
            elif isinstance(result, VideoError):
                outcomes.fail(key, result)
            else:
                summary = vectors.summary(model_id, result.video)
                page = settings.page_address(f"videos/{summary.video_id}")
                outcomes.succeed(
                    key,
                    data_version=result.data_version,
                    metadata=embedding_metadata(result, spec, model_id=model_id, page_address=page),
                    checks=check_vectors(result, summary),
                )
        if (report := engine.report) is not None:
            context.log_event(
                dg.AssetObservation(context.asset_key, metadata=engine_metadata(report))
            )
    yield from outcomes.finish()


@dg.asset(
    key_prefix=KEY_PREFIX,
    deps=[frame_embeddings],
    automation_condition=VECTORS_CHANGED,
    freshness_policy=INDEX_FRESHNESS,
    check_specs=(*INDEX_CHECKS, *QUALITY_CHECKS),
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres"},
    op_tags=MODEL_TAGS,
)
def similarity_index(
    context: dg.AssetExecutionContext, database: DatabaseResource, siglip: SiglipResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster looks for the bare class
    """Build the similarity index over the vectors of the model in `SIGLIP_MODEL_NAME`.

    A new generation is built beside the live one, and published only if its measured recall is at
    least `SIGLIP_INDEX_MIN_RECALL`. Small changes are searchable without a new generation.
    """
    settings = siglip.settings()
    options, gate = IndexOptions.from_settings(settings), QualityGate.from_settings(settings)
    with retrying_temporary_errors(context), database.open() as db:
        model_id = ModelStore(db).register(siglip.spec(), table_limit=options.table_limit)
        report = build_index(
            db,
            model_id,
            options=replace(options, promote_automatically=False) if gate else options,
            progress=context.log.info,
            texts=settings.recall_query_texts(),
            embed_texts=siglip.embed_texts,
        )
        history = recall_history(db, model_id)
        checks = check_collection(db, model_id, report)
        if gate is not None:
            checks.append(
                check_quality(db, model_id, gate, promoting=options.promote_automatically)
            )
        stale = out_of_date(db, Wanted.from_settings(settings))
    metadata = {
        **index_metadata(report, history),
        "videos_with_frames_out_of_date": len(stale.frames),
        "videos_with_vectors_out_of_date": len(stale.vectors),
    }
    return dg.MaterializeResult(metadata=metadata, check_results=checks)
