"""One pass over the packets of a video with one decoder."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import av
import av.error
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from siglip_pipeline.video.container import demux, open_container
from siglip_pipeline.video.plan import Step
from siglip_pipeline.video.scan import MAX_PIXELS, Scan, check_dimensions
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.timeline import MAX_REORDERED, UNKNOWN

RACING: Final = frozenset({"theora", "vp3", "vp4"})
"""Codecs that libavcodec 62 decodes wrongly now and then with several threads."""

_SKIP: Final = int(Step.SKIP)
_TARGET: Final = int(Step.TARGET)

_PREDICTED: Final = frozenset({PictureType.P, PictureType.B, PictureType.S, PictureType.SP})

_CARRIED: Final = ("new_extradata", "palette")
"""Side data for all packets that follow: of the first one of another sample description, and of a
palette. That packet may be skipped."""

MAX_PIXELS_IN_FLIGHT: Final = 8 * 3840 * 2160
"""Each decoder thread holds a frame of its own: eight of 4K, two of 8K."""


@dataclass(slots=True)
class PassCounts:
    """Counts of one pass over the packets."""

    packets_given: int = 0
    """Packets that the decoder was given, including those that it skipped."""
    frames_decoded: int = 0
    """Frames that came out, targets or not."""
    damaged_packets: int = 0
    """Packets that the decoder refused, and frames that it marked as corrupt."""


class Pass:
    """One pass over the packets with one decoder."""

    def __init__(
        self,
        source: MediaSource,
        scan: Scan,
        counts: PassCounts,
        threads: int,
        on_progress: Callable[[int], None],
    ) -> None:
        self._source = source
        self._scan = scan
        self._counts = counts
        pixels = max(1, scan.coded_width * scan.coded_height)
        is_racing = scan.one_thread or scan.codec in RACING
        most = 1 if is_racing else max(1, MAX_PIXELS_IN_FLIGHT // pixels)
        self.threads = min(threads, most)
        self._on_progress = on_progress
        self._aspects: list[tuple[int, Fraction | None]] = []
        self._entries: deque[int] = deque()
        """Times of key frames before which packets were skipped, until they come out."""

    def aspect_at(self, pts: int) -> Fraction | None:
        """Return the sample aspect ratio at a time that was decoded.

        A header applies from the key frame on that follows it.
        """
        return next((ratio for begin, ratio in reversed(self._aspects) if begin <= pts), None)

    def frames(
        self, steps: NDArray[np.uint8], *, flush: bool = True
    ) -> Generator[VideoFrame, None, None]:
        """Yield all frames that the decoder gives for these steps.

        Ends where packets were skipped before a frame that is no key frame, though the container
        says so (MP4 without a list of key frames, AVI that marks all), or that does not come out
        (H.264 that is refreshed in parts): what follows would be wrong.

        Args:
            steps: a :class:`Step` for each packet.
            flush: also yield the frames that the decoder holds after the last packet.
        """
        for frame in self._frames(steps, flush):
            if not self._is_entered(frame):
                return
            yield frame

    def _is_entered(self, frame: VideoFrame) -> bool:
        """Return whether the key frames before a frame are ones, and have come out."""
        while self._entries and frame.pts is not None and frame.pts >= self._entries[0]:
            if self._entries.popleft() != frame.pts or self._is_predicted(frame):
                return False
        return True

    def _is_predicted(self, frame: VideoFrame) -> bool:
        """Return whether a frame may refer to others, though its packet is called a key frame."""
        if frame.key_frame:
            return False
        if frame.pict_type == PictureType.NONE:
            # The decoder does not tell; a container that calls all packets key frames does neither.
            return not self._scan.is_intra_only and bool(self._scan.packets.key_P.all())
        # FFV1 calls all frames I, whose statistics go on from the one before.
        return frame.pict_type in _PREDICTED or self._scan.codec == "ffv1"

    def _frames(self, steps: NDArray[np.uint8], flush: bool) -> Generator[VideoFrame, None, None]:
        # Search from the end: a list of all wanted packets would stay in memory during the pass.
        last = len(steps) - 1 - int(np.argmax(steps[::-1] != Step.SKIP)) if steps.any() else -1
        step_of = steps.tobytes()  # numbers of numpy and of enumerations are slow
        # The decoder refuses larger pictures before it allocates them.
        options = {"max_pixels": str(MAX_PIXELS)}
        with open_container(self._source, options=options) as container:
            stream = container.streams[self._scan.stream_index]
            assert isinstance(stream, VideoStream)
            context = self._decoder(stream, options)
            skipped = False
            carried = {}
            mode = None
            key = 0
            for ordinal, packet in enumerate(demux(container, stream)):
                if ordinal > last:
                    break
                self._on_progress(ordinal)
                step = step_of[ordinal]
                for kind in _CARRIED:
                    if packet.has_sidedata(kind):
                        carried[kind] = packet.get_sidedata(kind)
                if step == _SKIP:
                    skipped = True
                    continue
                # Flush only at key frames: skips within a group have no effect on other frames.
                if skipped and packet.is_keyframe and self._counts.packets_given:
                    yield from self._give(context, None)
                    context.flush_buffers()
                if skipped:
                    for side_data in carried.values():
                        packet.set_sidedata(side_data)
                is_entry = skipped and packet.is_keyframe
                skipped = False
                if step != mode:
                    context.skip_frame = "DEFAULT" if step == _TARGET else "NONREF"
                    mode = step
                self._counts.packets_given += 1
                self._shift(packet, ordinal)
                if is_entry and packet.pts is not None and not packet.is_discard:
                    self._entries.append(packet.pts)
                if packet.is_keyframe:
                    key = ordinal
                yield from self._give(context, packet, key)
            if flush:
                yield from self._give(context, None)

    def _decoder(self, stream: VideoStream, options: dict[str, str]) -> VideoCodecContext:
        """Return the decoder of a stream, with its options and threads."""
        context = stream.codec_context
        if self._scan.decoder is not None:
            own = av.CodecContext.create(self._scan.decoder, "r")
            assert isinstance(own, VideoCodecContext)
            own.extradata, own.options = context.extradata, options
            context = own
        if self._scan.codec == "av1":
            # Threads share a frame: as fast, and without a frame's memory for each.
            context.options = {**options, "max_frame_delay": "1"}
        context.thread_count = self.threads
        if self.threads > 1:
            context.thread_type = "AUTO"  # by default only slices, of which most videos have one
        return context

    def _shift(self, packet: "av.Packet[VideoStream]", ordinal: int) -> None:
        """Move a packet to its place on the continuous time line."""
        shift_P = self._scan.packets.shift_P
        if shift_P is not None:
            shift = int(shift_P[ordinal])
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift

    def _give(
        self, context: VideoCodecContext, packet: "av.Packet[VideoStream] | None", key: int = 0
    ) -> Iterator[VideoFrame]:
        try:
            frames = context.decode(packet)
        except av.error.FFmpegError:
            if packet is not None:
                self._counts.damaged_packets += 1
            return
        if packet is not None:
            self._heed_aspect(context.sample_aspect_ratio, key)
        for frame in frames:
            check_dimensions(self._scan.video, frame.width, frame.height)
            if frame.is_corrupt:
                self._counts.damaged_packets += 1
                continue
            self._counts.frames_decoded += 1
            yield frame

    def _heed_aspect(self, ratio: Fraction | None, key: int) -> None:
        if self._aspects and self._aspects[-1][1] == ratio:
            return
        pts_P = self._scan.packets.pts_P
        later_P = pts_P[key : key + MAX_REORDERED]
        begin = int(later_P[later_P != UNKNOWN].min(initial=2**62))
        # A frame before the key frame may have its time, and comes first.
        is_repeated = bool((pts_P[max(0, key - MAX_REORDERED) : key] == begin).any())
        self._aspects.append((begin + is_repeated, ratio))
