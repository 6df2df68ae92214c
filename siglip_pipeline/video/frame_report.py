"""The report of a decoding child about one video. Parents import this, so it imports no av."""

import re
from dataclasses import dataclass
from typing import Any

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import VideoInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReport:
    """The result of decoding one video."""

    info: VideoInfo
    sampling: str
    """The :func:`frame_recipe`."""
    planned_frames: int
    """Frames that the sampling chose."""
    frames: int
    """Frames stored: fewer than planned if the file is damaged."""
    packets: int
    """Packets that the container's index lists."""
    damaged_packets: int
    """Packets that are missing or did not decode."""
    damaged_share: float
    """Share of the video that is lost, 0 to 1."""
    source_sha256: str
    decode_cpu_seconds: float
    """Total CPU time of the child for this video."""
    wall_seconds: float
    peak_memory_bytes: int
    """Peak resident memory of the child, up to the end of this video."""
    warnings: tuple[str, ...] = ()
    """Warnings of a video that is indexed nevertheless, as sentences without capital or full stop,
    such as ``a second video track is left out: …``."""


def read_report(video: str, value: Any) -> FrameReport:
    """Validate the report of a child, which is not trusted.

    Raises:
        VideoError: the report is invalid.
    """
    from pydantic import TypeAdapter, ValidationError  # children do not need it, and start faster

    try:
        report = TypeAdapter(FrameReport).validate_python(value)
        if report.info.video != video or not re.fullmatch("[0-9a-f]{64}", report.source_sha256):
            raise ValueError
    except (ValidationError, ValueError, ArithmeticError) as error:
        raise VideoError(
            video, "the decoder gave a report that makes no sense; the file is damaged"
        ) from error
    return report
