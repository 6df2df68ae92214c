"""Frames out of a container, in one pass, exactly as a full sequential decode gives them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.plan import DecodePlan, Step, plan_everything
from siglip_pipeline.video.probe import (
    MAX_PIXELS,
    PacketIndex,
    Scan,
    check_dimensions,
    open_container,
)
from siglip_pipeline.video.probe import demux as demux_packets
from siglip_pipeline.video.source import MediaSource


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedFrame:
    """One target, as the decoder gave it: not yet scaled, rotated or converted."""

    frame_index: int
    """Position in time order, from 0."""
    pts: int
    time_seconds: float
    """From the start of the stream."""
    frame: VideoFrame


@dataclass(slots=True)
class DecodeCounts:
    """What a decode did; filled while it runs."""

    packets_given: int = 0
    """Packets that the decoder was given; those it skipped by itself are among them."""
    frames_decoded: int = 0
    """Frames that came out, targets or not."""
    damaged_packets: int = 0
    """Packets that the decoder refused."""
    missing: list[int] = field(default_factory=list)
    """Targets that never came out, by position in time order."""
    full_passes: int = 0
    """Times that everything had to be decoded because a target did not come out as planned."""


def decode_frames(
    source: MediaSource,
    scan: Scan,
    plan: DecodePlan,
    *,
    counts: DecodeCounts | None = None,
    threads: int = 1,
    on_progress: Callable[[int], None] = lambda packets: None,
) -> Iterator[DecodedFrame]:
    """The planned frames, in time order.

    Packets that do not decode are counted and passed over. Targets that do not come out of the
    planned pass are looked for in a full one, which costs a second decode and keeps the promise.

    Args:
        source: the file that was scanned.
        scan: its packets.
        plan: what to decode.
        counts: filled with what was done.
        threads: decoder threads.
        on_progress: called with the number of packets seen so far.

    Raises:
        VideoError: the file cannot be opened any more, or its frames turn absurdly large.
    """
    counts = counts if counts is not None else DecodeCounts()
    targets = _Targets(scan, plan.target_N)
    run = _Pass(source, scan, counts, threads, on_progress)
    if scan.packets.timestamps_known:
        yield from targets.in_order(run.frames(plan))
    else:
        yield from targets.by_ordinal(run.frames(plan))
    missing = targets.missing()
    if missing.size and not (plan.steps_P == Step.TARGET).all():
        counts.full_passes += 1
        again = _Targets(scan, missing)
        full = _Pass(source, scan, DecodeCounts(), threads, on_progress)
        yield from again.in_order(full.frames(plan_everything(scan.packets, missing)))
        counts.frames_decoded += full.counts.frames_decoded
        counts.packets_given += full.counts.packets_given
        counts.damaged_packets = max(counts.damaged_packets, full.counts.damaged_packets)
        missing = again.missing()
    counts.missing = missing.tolist()


class _Targets:
    """Recognises the wanted frames among those that a decoder gives."""

    def __init__(self, scan: Scan, target_N: IntArray) -> None:
        self._scan = scan
        self._packets: PacketIndex = scan.packets
        pts = self._packets.pts_N[target_N].tolist()
        self._waiting = dict(zip(pts, target_N.tolist(), strict=True))

    def in_order(self, frames: Iterator[VideoFrame]) -> Iterator[DecodedFrame]:
        """Targets by their PTS."""
        for frame in frames:
            if frame.pts is not None and frame.pts in self._waiting:
                yield self._decoded(frame, frame.pts)

    def by_ordinal(self, frames: Iterator[VideoFrame]) -> Iterator[DecodedFrame]:
        """Targets by their place in the decoder's output, for streams without timestamps."""
        last = int(self._packets.pts_N.size) - 1
        for ordinal, frame in enumerate(frames):
            pts = int(self._packets.pts_N[min(ordinal, last)])
            if pts in self._waiting:
                yield self._decoded(frame, pts)

    def missing(self) -> IntArray:
        """Positions of targets that have not come out."""
        return np.array(sorted(self._waiting.values()), np.int64)

    def _decoded(self, frame: VideoFrame, pts: int) -> DecodedFrame:
        start_pts = int(self._packets.pts_N[0])
        return DecodedFrame(
            frame_index=self._waiting.pop(pts),
            pts=pts,
            time_seconds=float((pts - start_pts) * self._scan.time_base),
            frame=frame,
        )


class _Pass:
    """One pass over the packets with one decoder."""

    def __init__(
        self,
        source: MediaSource,
        scan: Scan,
        counts: DecodeCounts,
        threads: int,
        on_progress: Callable[[int], None],
    ) -> None:
        self._source = source
        self._scan = scan
        self.counts = counts
        self._threads = threads
        self._on_progress = on_progress

    def frames(self, plan: DecodePlan) -> Iterator[VideoFrame]:
        """Everything that comes out of the decoder when the plan is followed."""
        steps = plan.steps_P
        wanted = np.flatnonzero(steps)
        last = int(wanted[-1]) if wanted.size else -1
        # The decoder itself refuses larger pictures, before it allocates them.
        options = {"max_pixels": str(MAX_PIXELS)}
        with open_container(self._source, options=options) as container:
            stream = container.streams[self._scan.stream_index]
            assert isinstance(stream, VideoStream)
            context = stream.codec_context
            context.thread_count = self._threads
            skipped = False
            mode = None
            for ordinal, packet in enumerate(demux_packets(container, stream)):
                if ordinal > last:
                    break
                self._on_progress(ordinal)
                step = steps[ordinal]
                if step == Step.SKIP:
                    skipped = True
                    continue
                if skipped and self.counts.packets_given:
                    yield from self._give(stream, None)
                    context.flush_buffers()
                skipped = False
                if step != mode:
                    context.skip_frame = "DEFAULT" if step == Step.TARGET else "NONREF"
                    mode = step
                self.counts.packets_given += 1
                yield from self._give(stream, packet)
            yield from self._give(stream, None)

    def _give(
        self, stream: VideoStream, packet: "av.Packet[VideoStream] | None"
    ) -> Iterator[VideoFrame]:
        try:
            frames = stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            if packet is not None:
                self.counts.damaged_packets += 1
            return
        for frame in frames:
            check_dimensions(self._scan.video, frame.width, frame.height)
            self.counts.frames_decoded += 1
            yield frame
