"""The metadata of each asset in the Dagster UI: numbers, tables and thumbnails.

Dagster plots every number of an asset over its events. A partition's only number is its row count,
because a line from one video to the next has no meaning. Totals and rates belong to a run.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from siglip_pipeline.defs.throughput_plot import throughput_plot
from siglip_pipeline.records import ModelSpec
from siglip_pipeline.siglip.engine_report import EngineReport
from siglip_pipeline.stages.frame_embedding import VectorsStored
from siglip_pipeline.stages.frame_sampling import FramesOutcome, FramesStored
from siglip_pipeline.stages.stage_results import NoFrames
from siglip_pipeline.store.index.recall import PastCheck, RecallCase
from siglip_pipeline.store.index.recall.plot import recall_plot
from siglip_pipeline.store.index.similarity_index import IndexReport
from siglip_pipeline.video.frame_file import SCHEMA
from siglip_pipeline.video.frame_store import FrameStore

FRAME_COLUMNS = dg.TableSchema(
    columns=[
        dg.TableColumn(
            column.name,
            str(column.type),
            constraints=dg.TableColumnConstraints(nullable=column.nullable),
        )
        for column in SCHEMA
    ]
)
"""Columns of the Parquet file that holds the frames of a video."""

# Base64 makes four bytes of three: the picture takes less than 60 KB in the event.
_PICTURE_BYTES = 44_000


def _inline_picture(data: bytes, *, media_type: str = "image/jpeg") -> dg.MarkdownMetadataValue:
    """Return a small picture as Markdown that contains its bytes."""
    encoded = base64.b64encode(data).decode("ascii")
    return dg.MetadataValue.md(f"![](data:{media_type};base64,{encoded})")


def frames_metadata(result: FramesStored | NoFrames, frame_store: FrameStore) -> Mapping[str, Any]:
    """Return the metadata of one partition of ``video_frames``."""
    if isinstance(result, NoFrames):
        kept = result.kept.frames if result.kept else 0
        return {"dagster/row_count": kept, "no_new_frames": result.reason}
    info = result.stored.info
    metadata: dict[str, Any] = {
        "dagster/row_count": result.stored.frames,
        "dagster/uri": frame_store.address(result.video),
        "duration": f"{info.duration_seconds:,.1f} s",
        "codec": info.codec,
        "resolution": f"{info.width}x{info.height}",
        "sampling": result.stored.sampling,
        "source_sha256": result.stored.source_sha256,
        "damaged": f"{result.damaged_share:.2%}",
        "warnings": [*result.stored.warnings],
        "contact_sheet": _inline_picture(
            frame_store.contact_sheet(result.video, max_bytes=_PICTURE_BYTES)
        ),
    }
    return metadata | _origin(result)


def sampling_metadata(results: Iterable[FramesOutcome], *, seconds: float) -> Mapping[str, Any]:
    """Return the metadata of one run of ``video_frames``: totals and rates.

    Args:
        results: one per video.
        seconds: duration of the work.
    """
    videos = [*results]
    stored = [result for result in videos if isinstance(result, FramesStored)]
    decoded = [result for result in stored if result.report is not None]
    length = sum(result.stored.info.duration_seconds for result in decoded)
    cpu = sum(result.report.decode_cpu_seconds for result in decoded if result.report is not None)
    return {
        "videos": len(videos),
        "failed_videos": len(videos) - len(stored),
        "reused_videos": len(stored) - len(decoded),
        "frames": sum(result.stored.frames for result in decoded),
        "seconds": round(seconds, 2),
        "decode_cpu_seconds": round(cpu, 2),
        "video_seconds_per_second": round(length / max(seconds, 1e-6), 1),
    }


def _origin(result: FramesStored | VectorsStored) -> dict[str, Any]:
    """Return metadata that says why a result was not made now."""
    if isinstance(result, VectorsStored) and result.without_frames is not None:
        return {"no_frames": result.without_frames}
    is_new = result.report is not None if isinstance(result, FramesStored) else result.written
    source = {} if result.reused_from is None else {"reused_from": result.reused_from}
    return {"reused": not is_new or bool(source), **source}


def embedding_metadata(
    result: VectorsStored, spec: ModelSpec, *, model_id: int, page_address: str
) -> Mapping[str, Any]:
    """Return the metadata of one partition of ``frame_embeddings``.

    Args:
        model_id: whose table holds the vectors.
        page_address: of the video's page in the search service.
    """
    return {
        "search_page": dg.MetadataValue.url(page_address),
        "dagster/row_count": result.vectors,
        "dagster/table_name": f"frames_{model_id}",
        "dimensions": str(spec.dim),
        "model": spec.name,
        "model_key": result.model_key,
        **_origin(result),
    }


def engine_metadata(report: EngineReport) -> Mapping[str, Any]:
    """Return the metadata of one run of ``frame_embeddings``: throughput and use of the device."""
    metadata: dict[str, Any] = {
        "frames": report.frames,
        "videos": report.videos,
        "failed_videos": report.failed_videos,
        "seconds": round(report.seconds, 2),
        "frames_per_second": round(report.frames_per_second, 2),
        "model_busy_share": round(report.model_busy_share, 4),
        "padding_share": round(report.padding_share, 4),
        "batch_fill_share": round(report.batch_fill_share, 4),
        "batch_size": report.batch_size,
        "out_of_memory_count": report.out_of_memory_count,
        "device": report.device,
        "device_name": report.device_name,
        "model_workers": report.model_workers,
        "dtype": report.dtype,
        "decoder": report.decoder,
        "forward": report.forward,
        "notes": "; ".join(report.notes) or None,
        "peak_memory_mib": round(report.peak_memory_bytes / 2**20),
        "throughput": table(
            {
                "seconds": round(point.seconds, 2),
                "frames_per_second": round(point.frames_per_second, 2),
            }
            for point in report.throughput
        ),
        "throughput_plot": _inline_picture(
            throughput_plot(report.throughput), media_type="image/png"
        ),
    }
    return {key: value for key, value in metadata.items() if value is not None}


def index_metadata(report: IndexReport, history: Sequence[PastCheck]) -> Mapping[str, Any]:
    """Return the metadata of ``similarity_index``: its outcome and its recall check."""
    metadata: dict[str, Any] = {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in report.to_json().items()
        if value is not None
    }
    metadata["recall_history"] = table(
        {
            "checked_at": past.checked_at.isoformat(timespec="seconds"),
            "generation": past.generation,
            "kind": past.kind,
            "purpose": past.purpose,
            "passed": past.passed,
            "recall_at_10": round(past.recall_at_10, 4),
        }
        for past in history
    )
    if (recall := report.recall) is not None:
        metadata["recall_cases"] = table(_case_row(case) for case in recall.cases)
        metadata["recall_against_latency"] = _inline_picture(
            recall_plot(recall), media_type="image/png"
        )
        metadata["plan"] = dg.MetadataValue.md(f"```\n{recall.plan}\n```")
        metadata["uses_index"] = recall.uses_index
        metadata["ef_search"] = recall.ef_search
        metadata["check_seconds"] = round(recall.seconds, 2)
    return {key: value for key, value in metadata.items() if value is not None}


def _case_row(case: RecallCase) -> dict[str, Any]:
    return {
        "queries": f"{case.queries} {case.modality}",
        "share_of_videos": case.share,
        "searched": case.searched,
        "recall_at_1": round(case.recall_at_1, 4),
        "recall_at_10": round(case.recall_at_10, 4),
        "interval": f"{case.low:.4f} – {case.high:.4f}",
        "recall_at_100": None if case.recall_at_100 is None else round(case.recall_at_100, 4),
        "queries_at_100": case.queries_at_100,
        "rows_share": round(case.rows_share, 4),
        "p50_ms": round(1000 * case.p50_seconds, 2),
        "p99_ms": round(1000 * case.p99_seconds, 2),
    }


def table(rows: Iterable[Mapping[str, Any]]) -> dg.TableMetadataValue | None:
    """Return rows as a table; None for no rows, which Dagster cannot show."""
    records = [dg.TableRecord(dict(row)) for row in rows]
    return dg.MetadataValue.table(records) if records else None
