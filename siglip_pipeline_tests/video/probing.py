"""Properties of a video, from its packets and its first frame: nothing is extracted."""

from pathlib import Path

import numpy as np

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import VideoInfo
from siglip_pipeline.video.decode import decode_frames
from siglip_pipeline.video.frame_index import index_frames
from siglip_pipeline.video.plan import plan_decode
from siglip_pipeline.video.scan import nothing_decoded_reason
from siglip_pipeline.video.source import MediaSource


def probe(path: Path) -> VideoInfo:
    """The properties of a local file, turned as its first frame that decodes.

    Raises:
        VideoError: the video cannot be decoded, with the reason.
    """
    source = MediaSource(path.name, path=path)
    scanned = index_frames(source)
    # If the first frame is damaged, the nearest that is not comes in its place.
    for decoded in decode_frames(source, scanned, plan_decode(scanned.packets, np.array([0]))):
        return scanned.info(scanned.geometry(decoded.frame, decoded.sample_aspect_ratio))
    raise VideoError(source.video, nothing_decoded_reason(scanned))
