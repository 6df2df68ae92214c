"""What people see of each asset in the Dagster UI: numbers that plot, tables, thumbnails."""

import base64
from collections.abc import Mapping
from typing import Any

import dagster as dg

from siglip_pipeline.records import ModelSpec
from siglip_pipeline.siglip.report import EngineReport
from siglip_pipeline.stages import FramesStored, VectorsStored
from siglip_pipeline.store.index import IndexReport
from siglip_pipeline.video.frame_store import FrameStore


def inline_picture(data: bytes, *, media_type: str = "image/jpeg") -> dg.MarkdownMetadataValue:
    """A small picture inside the event itself."""
    encoded = base64.b64encode(data).decode("ascii")
    return dg.MetadataValue.md(f"![](data:{media_type};base64,{encoded})")


def frames_metadata(result: FramesStored, frame_store: FrameStore) -> Mapping[str, Any]:
    """Metadata of one partition of ``video_frames``."""
    info = result.stored.info
    metadata: dict[str, Any] = {
        "frames": result.stored.frames,
        "duration_seconds": info.duration_seconds,
        "codec": info.codec,
        "resolution": f"{info.width}x{info.height}",
        "sampling": result.stored.sampling,
        "source_sha256": result.stored.source_sha256,
        "reused": result.report is None,
        "contact_sheet": inline_picture(frame_store.contact_sheet(result.video)),
    }
    if (report := result.report) is not None:
        metadata["damaged_share"] = report.damaged_share
        metadata["damaged_packets"] = report.damaged_packets
        metadata["decode_cpu_seconds"] = report.decode_cpu_seconds
        metadata["video_seconds_per_second"] = info.duration_seconds / max(
            report.wall_seconds, 1e-6
        )
    return metadata


def embedding_metadata(result: VectorsStored, spec: ModelSpec) -> Mapping[str, Any]:
    """Metadata of one partition of ``frame_embeddings``."""
    return {
        "vectors": result.vectors,
        "dim": spec.dim,
        "model": spec.name,
        "model_key": result.model_key,
        "reused": not result.written,
    }


def engine_metadata(report: EngineReport) -> Mapping[str, Any]:
    """Metadata of one run of ``frame_embeddings``: how the device was used."""
    return {
        "frames": report.frames,
        "videos": report.videos,
        "failed_videos": report.failed_videos,
        "seconds": report.seconds,
        "frames_per_second": report.frames_per_second,
        "model_busy_share": report.model_busy_share,
        "padding_share": report.padding_share,
        "batch_fill_share": report.batch_fill_share,
        "batch_size": report.batch_size,
        "out_of_memory_count": report.out_of_memory_count,
        "device": report.device,
        "devices": report.devices,
        "dtype": report.dtype,
        "peak_memory_mib": report.peak_memory_bytes / 2**20,
        "throughput": dg.MetadataValue.table(
            records=[
                dg.TableRecord(
                    {
                        "seconds": round(point.seconds, 2),
                        "frames_per_second": round(point.frames_per_second, 2),
                    }
                )
                for point in report.throughput
            ]
        )
        if report.throughput
        else None,
    }


def index_metadata(report: IndexReport) -> Mapping[str, Any]:
    """Metadata of ``similarity_index``."""
    return {key: value for key, value in report.to_json().items() if value is not None}
