"""What a decoding child reports of one video. No av here: parents import it."""

import re
from dataclasses import dataclass
from typing import Any

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import VideoInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReport:
    """What came out of one video."""

    info: VideoInfo
    sampling: str
    """The :func:`frame_recipe`."""
    planned_frames: int
    """Frames that the sampling chose."""
    frames: int
    """Frames stored: fewer than planned where the file is damaged."""
    packets: int
    """Packets that should be there, by the container's own index."""
    damaged_packets: int
    """Packets that are missing or did not decode."""
    damaged_share: float
    """Share of the video that is lost, 0 to 1."""
    source_sha256: str
    source_fingerprint: str
    """``Upload.fingerprint`` at the time of reading."""
    decode_cpu_seconds: float
    """CPU time of the child for this video, everything included."""
    wall_seconds: float
    peak_memory_bytes: int
    """The child's resident memory at its largest, up to the end of this video."""
    warnings: tuple[str, ...] = ()
    """What people should know of a video that is indexed all the same; plain sentences without
    capital or full stop, such as ``a second video track is left out: …``."""


def read_report(video: str, value: Any) -> FrameReport:
    """The report of a child, which is not trusted to give what it should.

    Raises:
        VideoError: it makes no sense.
    """
    from pydantic import TypeAdapter, ValidationError  # here: children start faster without

    try:
        report = TypeAdapter(FrameReport).validate_python(value)
        if report.info.video != video or not re.fullmatch("[0-9a-f]{64}", report.source_sha256):
            raise ValueError
    except (ValidationError, ValueError, ArithmeticError) as error:
        raise VideoError(
            video, "the decoder gave a report that makes no sense; the file is damaged"
        ) from error
    return report
