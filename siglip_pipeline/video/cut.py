"""Cut a section of a video into a new file: H.264 in MP4, upright, without sound."""

from collections.abc import Callable
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from av.container import OutputContainer

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.container import write_mp4
from siglip_pipeline.video.decode import decode_frames
from siglip_pipeline.video.frame_index import index_frames
from siglip_pipeline.video.picture import PictureMaker
from siglip_pipeline.video.plan import plan_decode
from siglip_pipeline.video.scan import nothing_decoded_reason
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.stills import is_picture

TIME_BASE = Fraction(1, 90_000)


def cut(
    source: MediaSource,
    start_seconds: float,
    end_seconds: float,
    target: BinaryIO,
    *,
    longest_side: int | None = None,
    on_progress: Callable[[int], None] = lambda permille: None,
) -> int:
    """Write the frames on screen in [start, end) to ``target``; return their number.

    They are encoded again, so the clip begins at the exact frame instead of the key frame before
    it. ``on_progress`` gets the thousandths that are done.

    Raises:
        VideoError: the source is a picture, or none of these frames can be decoded.
    """
    if is_picture(source):
        raise VideoError(source.video, "it is a picture, which has no clips")
    scanned = index_frames(source, on_progress=lambda packets: on_progress(0))
    pts_N = scanned.packets.pts_N
    times_N = (pts_N - pts_N[0]) * float(scanned.time_base)
    # The frame that is on screen at the start began before it.
    first = max(0, int(np.searchsorted(times_N, start_seconds, side="right")) - 1)
    last = max(first + 1, int(np.searchsorted(times_N, end_seconds, side="left")))
    pictures = PictureMaker(longest_side=longest_side, codec=scanned.codec)
    written = 0

    def note(packets: int) -> None:
        on_progress(1000 * written // (last - first))

    with write_mp4(target) as output:
        encoder = _Encoder(output)
        plan = plan_decode(scanned.packets, np.arange(first, last, dtype=np.int64))
        for decoded in decode_frames(source, scanned, plan, deinterlace=True, on_progress=note):
            geometry = scanned.geometry(decoded.frame, decoded.sample_aspect_ratio)
            encoder.add(pictures.rgb(decoded.frame, geometry), decoded.time_seconds)
            written += 1
        if not written:
            raise VideoError(source.video, nothing_decoded_reason(scanned))
        encoder.finish()
    return written


class _Encoder:
    """Encodes pictures as H.264; the first sets the size, and the time zero."""

    def __init__(self, output: OutputContainer) -> None:
        self._output = output
        self._stream: av.VideoStream | None = None
        self._begin_seconds = 0.0

    def add(self, pixels_HWC: RgbArray, time_seconds: float) -> None:
        """Encode a picture [H, W, 3]; call in time order."""
        if self._stream is None:
            self._stream = self._add_stream(*pixels_HWC.shape[:2])
            self._begin_seconds = time_seconds
        stream = self._stream
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels_HWC[: stream.height, : stream.width]), format="rgb24"
        )
        frame.pts = round((time_seconds - self._begin_seconds) / TIME_BASE)
        frame.time_base = TIME_BASE
        self._output.mux(stream.encode(frame))

    def finish(self) -> None:
        """Write the frames that the encoder holds."""
        if self._stream is not None:
            self._output.mux(self._stream.encode(None))

    def _add_stream(self, height: int, width: int) -> av.VideoStream:
        options = {"crf": "20", "preset": "veryfast"}
        stream = self._output.add_stream("libx264", rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        # 4:2:0 has one chroma sample for two by two pixels.
        stream.width, stream.height = width - width % 2, height - height % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        return stream
