"""Cut a section of a video into a new file: H.264 and AAC in MP4, upright."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import BinaryIO, Final

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import OutputContainer

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.container import write_mp4
from siglip_pipeline.video.cut_report import CutReport
from siglip_pipeline.video.decode import decode_frames
from siglip_pipeline.video.frame_index import index_frames
from siglip_pipeline.video.picture import PictureMaker
from siglip_pipeline.video.plan import plan_decode
from siglip_pipeline.video.scan import Scan, nothing_decoded_reason
from siglip_pipeline.video.sound import LAYOUT, RATE, SAMPLE_FORMAT, Samples, Sound, read_sound
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.stills import is_picture

TIME_BASE: Final = Fraction(1, 90_000)


def cut(
    source: MediaSource,
    start_seconds: float,
    end_seconds: float,
    target: BinaryIO,
    *,
    longest_side: int | None = None,
    on_progress: Callable[[int], None] = lambda permille: None,
) -> CutReport:
    """Write the frames on screen in [start, end) to ``target``, with their sound.

    Both are encoded again, so the clip begins at the exact frame instead of the key frame before
    it. ``on_progress`` gets the thousandths that are done.

    Raises:
        VideoError: the source is a picture, or none of these frames can be decoded.
    """
    if is_picture(source):
        raise VideoError(source.video, "it is a picture, which has no clips")
    scanned = index_frames(source, on_progress=lambda packets: on_progress(0))
    first, last = _frames_between(scanned, start_seconds, end_seconds)
    pictures = PictureMaker(longest_side=longest_side, codec=scanned.codec)
    written = 0

    def note(packets: int = 0) -> None:
        on_progress(1000 * written // (last - first))

    with write_mp4(target) as output:
        encoder = None
        plan = plan_decode(scanned.packets, np.arange(first, last, dtype=np.int64))
        for decoded in decode_frames(source, scanned, plan, deinterlace=True, on_progress=note):
            geometry = scanned.geometry(decoded.frame, decoded.sample_aspect_ratio)
            pixels_HWC = pictures.rgb(decoded.frame, geometry)
            seconds = float(decoded.pts * scanned.time_base)
            if encoder is None:
                end = _end_seconds(scanned, last)
                sound = read_sound(source, scanned, seconds, end, on_progress=note)
                encoder = _Encoder(output, sound, seconds, *pixels_HWC.shape[:2])
            encoder.add(pixels_HWC, seconds)
            written += 1
        if encoder is None:
            raise VideoError(source.video, nothing_decoded_reason(scanned))
        encoder.finish()
    return CutReport(frames=written, silent_because=sound.failure)


def _frames_between(scanned: Scan, start_seconds: float, end_seconds: float) -> tuple[int, int]:
    """Return the positions of the frames on screen in [start, end): at least one."""
    pts_N = scanned.packets.pts_N
    times_N = (pts_N - pts_N[0]) * float(scanned.time_base)
    # The frame that is on screen at the start began before it.
    first = max(0, int(np.searchsorted(times_N, start_seconds, side="right")) - 1)
    return first, max(first + 1, int(np.searchsorted(times_N, end_seconds, side="left")))


def _end_seconds(scanned: Scan, last: int) -> float:
    """Return when the last frame before a position ends, by the timestamps."""
    packets = scanned.packets
    end_pts = int(packets.pts_N[last]) if last < packets.pts_N.size else packets.end_pts
    return float(end_pts * scanned.time_base)


class _Encoder:
    """Encodes pictures as H.264 and sound as AAC, in turn.

    Args:
        output: a new file.
        sound: of the same section.
        begin_seconds: of the first picture.
        height: of the first picture; others are cut to it.
        width: likewise.
    """

    def __init__(
        self, output: OutputContainer, sound: Sound, begin_seconds: float, height: int, width: int
    ) -> None:
        self._output = output
        self._begin_seconds = begin_seconds
        self._pictures = self._add_pictures(height, width)
        self._pieces: Iterator[Samples] = sound.pieces or iter(())
        if sound.pieces is not None:  # all streams are known before anything is written
            self._sound = output.add_stream("aac", rate=RATE, layout=LAYOUT)
        self._samples = 0

    def add(self, pixels_HWC: RgbArray, seconds: float) -> None:
        """Encode a picture [H, W, 3]; call in time order."""
        stream = self._pictures
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels_HWC[: stream.height, : stream.width]), format="rgb24"
        )
        frame.pts = round((seconds - self._begin_seconds) / TIME_BASE)
        frame.time_base = TIME_BASE
        self._output.mux(stream.encode(frame))
        self._add_sound(until=round((seconds - self._begin_seconds) * RATE))

    def finish(self) -> None:
        """Write what the encoders hold."""
        self._output.mux(self._pictures.encode(None))
        self._add_sound(until=None)

    def _add_sound(self, *, until: int | None) -> None:
        """Encode the samples up to a position, or all, so that players find both side by side."""
        while until is None or self._samples < until:
            samples = next(self._pieces, None)
            if samples is None:
                break
            frame = AudioFrame.from_ndarray(samples, format=SAMPLE_FORMAT, layout=LAYOUT)
            frame.sample_rate, frame.pts, frame.time_base = RATE, self._samples, Fraction(1, RATE)
            self._output.mux(self._sound.encode(frame))
            self._samples += samples.shape[1]
        if until is None and self._samples:
            self._output.mux(self._sound.encode(None))

    def _add_pictures(self, height: int, width: int) -> av.VideoStream:
        options = {"crf": "20", "preset": "veryfast"}
        stream = self._output.add_stream("libx264", rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        # 4:2:0 has one chroma sample for two by two pixels.
        stream.width, stream.height = width - width % 2, height - height % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        return stream
