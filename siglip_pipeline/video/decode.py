"""Frames out of a container, in one pass, exactly as a full sequential decode gives them."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Final

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.container import demux, open_container
from siglip_pipeline.video.plan import DecodePlan, Step, plan_everything
from siglip_pipeline.video.scan import MAX_PIXELS, Scan, check_dimensions
from siglip_pipeline.video.source import MediaSource

MAX_HELD_FRAMES: Final = 8
"""Frames with disordered timestamps that are kept until those before them have come."""


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
class PassCounts:
    """What one pass over the packets did."""

    packets_given: int = 0
    """Packets that the decoder was given; those it left out by itself are among them."""
    frames_decoded: int = 0
    """Frames that came out, targets or not."""
    damaged_packets: int = 0
    """Packets that the decoder refused."""


@dataclass(slots=True)
class DecodeCounts:
    """What a decode did, over all its passes; filled while it runs."""

    passes: list[PassCounts] = field(default_factory=list)
    full_passes: int = 0
    """Times that everything had to be decoded because a target did not come out as planned."""
    missing: list[int] = field(default_factory=list)
    """Targets that never came out, by position in time order."""

    @property
    def packets_given(self) -> int:
        """Packets that decoders were given, in all."""
        return sum(done.packets_given for done in self.passes)

    @property
    def frames_decoded(self) -> int:
        """Frames that came out, in all."""
        return sum(done.frames_decoded for done in self.passes)

    @property
    def damaged_packets(self) -> int:
        """Packets that the decoder refused. A second pass meets the same damage again."""
        return max((done.damaged_packets for done in self.passes), default=0)

    @property
    def damaged_share(self) -> float:
        """Share of the given packets that the decoder refused, 0 to 1."""
        shares = (done.damaged_packets / max(1, done.packets_given) for done in self.passes)
        return max(shares, default=0.0)


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

    Packets that do not decode are counted and passed over. When a target does not come out of the
    planned pass, decoding begins anew with everything, which costs more and keeps the promise.

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
    waiting = _Waiting(scan, plan.target_N)
    if scan.packets.timestamps_known and not (plan.steps_P == Step.TARGET).all():
        planned = _Pass(source, scan, counts, threads, on_progress)
        with contextlib.closing(planned.frames(plan)) as frames:
            for frame in frames:
                if waiting.is_wanted(frame):
                    if waiting.is_late(frame):
                        break  # an earlier target is missing: go on in a pass over everything
                    yield waiting.take(frame)
        if not len(waiting):
            return
        counts.full_passes += 1
    full = _Pass(source, scan, counts, threads, on_progress)
    yield from waiting.reordered(full.frames(plan_everything(scan.packets, waiting.target_N)))
    counts.missing = waiting.target_N.tolist()


class _Waiting:
    """The targets that have not come out yet."""

    def __init__(self, scan: Scan, target_N: IntArray) -> None:
        self._scan = scan
        pts = scan.packets.pts_N[target_N].tolist()
        # In time order, and so it stays: dicts keep the order of insertion.
        self._position_of_pts: dict[int, int] = dict(zip(pts, target_N.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._position_of_pts)

    @property
    def target_N(self) -> IntArray:
        """Their positions in time order."""
        return np.array(list(self._position_of_pts.values()), np.int64)

    def is_wanted(self, frame: VideoFrame) -> bool:
        """Whether this is a target that has not come out before."""
        return frame.pts in self._position_of_pts

    def is_late(self, frame: VideoFrame) -> bool:
        """Whether a target before this one is still missing."""
        return next(iter(self._position_of_pts)) != frame.pts

    def take(self, frame: VideoFrame) -> DecodedFrame:
        """The target that this frame is; it is no longer waited for."""
        pts = frame.pts
        assert pts is not None
        start_pts = int(self._scan.packets.pts_N[0])
        return DecodedFrame(
            frame_index=self._position_of_pts.pop(pts),
            pts=pts,
            time_seconds=float((pts - start_pts) * self._scan.time_base),
            frame=frame,
        )

    def reordered(self, frames: Iterator[VideoFrame]) -> Iterator[DecodedFrame]:
        """Targets among all frames of the video, in time order.

        A frame that comes before an earlier one is held back for a while. When too many are held,
        the earlier one is taken for lost.
        """
        held: dict[int, VideoFrame] = {}
        last_pts: int | None = None
        lost: dict[int, int] = {}
        for ordinal, frame in enumerate(frames):
            if not self._scan.packets.timestamps_known:
                pts_N = self._scan.packets.pts_N
                frame.pts = int(pts_N[min(ordinal, pts_N.size - 1)])
            pts = frame.pts
            if (
                pts is None
                or not self.is_wanted(frame)
                or (last_pts is not None and pts < last_pts)
            ):
                continue
            held[pts] = frame
            while held:
                first = next(iter(self._position_of_pts))
                if first in held:
                    last_pts = first
                    yield self.take(held.pop(first))
                elif len(held) > MAX_HELD_FRAMES:
                    lost[first] = self._position_of_pts.pop(first)
                else:
                    break
        for pts in sorted(held):
            for first in list(self._position_of_pts):
                if first >= pts:
                    break
                lost[first] = self._position_of_pts.pop(first)
            yield self.take(held[pts])
        self._position_of_pts.update(lost)


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
        self._counts = PassCounts()
        counts.passes.append(self._counts)
        self._threads = threads
        self._on_progress = on_progress

    def frames(self, plan: DecodePlan) -> Generator[VideoFrame, None, None]:
        """Everything that comes out of the decoder when the plan is followed."""
        steps = plan.steps_P
        # Looked for from the end: a list of all that is wanted would stay for the whole pass.
        last = len(steps) - 1 - int(np.argmax(steps[::-1] != Step.SKIP)) if steps.any() else -1
        # The decoder itself refuses larger pictures, before it allocates them.
        options = {"max_pixels": str(MAX_PIXELS)}
        with open_container(self._source, options=options) as container:
            stream = container.streams[self._scan.stream_index]
            assert isinstance(stream, VideoStream)
            context = stream.codec_context
            context.thread_count = self._threads
            if self._threads > 1:
                context.thread_type = (
                    "AUTO"  # by default only slices, of which most videos have one
                )
            skipped = False
            mode = None
            for ordinal, packet in enumerate(demux(container, stream)):
                if ordinal > last:
                    break
                self._on_progress(ordinal)
                step = steps[ordinal]
                if step == Step.SKIP:
                    skipped = True
                    continue
                # Within a group only packets that leave no trace are skipped.
                if skipped and packet.is_keyframe and self._counts.packets_given:
                    yield from self._give(stream, None)
                    context.flush_buffers()
                skipped = False
                if step != mode:
                    context.skip_frame = "DEFAULT" if step == Step.TARGET else "NONREF"
                    mode = step
                self._counts.packets_given += 1
                yield from self._give(stream, packet)
            yield from self._give(stream, None)

    def _give(
        self, stream: VideoStream, packet: "av.Packet[VideoStream] | None"
    ) -> Iterator[VideoFrame]:
        try:
            frames = stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            if packet is not None:
                self._counts.damaged_packets += 1
            return
        for frame in frames:
            check_dimensions(self._scan.video, frame.width, frame.height)
            self._counts.frames_decoded += 1
            yield frame
