"""Probe a video: read its properties from its packets and its first frame."""

from pathlib import Path

import numpy as np

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import VideoInfo
from siglip_pipeline.video.decode import decode_frames
from siglip_pipeline.video.frame_index import index_frames
from siglip_pipeline.video.plan import plan_decode
from siglip_pipeline.video.scan import nothing_decoded_reason
from siglip_pipeline.video.source import MediaSource


def probe(source: MediaSource | str | Path, video: str | None = None) -> VideoInfo:
    """Return the properties of a video. Its first frame that decodes holds its orientation.

    Args:
        source: the video, or the path of a local file.
        video: path below UPLOADS, for messages; by default the file's name.

    Raises:
        VideoError: the video cannot be decoded, with the reason.
    """
    if not isinstance(source, MediaSource):
        source = MediaSource(video or Path(source).name, path=Path(source))
    scanned = index_frames(source)
    # If the first frame is damaged, the nearest that is not comes in its place.
    for decoded in decode_frames(source, scanned, plan_decode(scanned.packets, np.array([0]))):
        return scanned.info(scanned.geometry(decoded.frame, decoded.sample_aspect_ratio))
    raise VideoError(source.video, nothing_decoded_reason(scanned))
