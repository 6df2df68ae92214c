"""Decode the planned frames in one pass, exactly as a full sequential decode gives them."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

import numpy as np
from av.video.frame import VideoFrame

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.decoder_pass import Pass, PassCounts
from siglip_pipeline.video.deinterlace import deinterlaced
from siglip_pipeline.video.plan import DecodePlan, Step, plan_decode, plan_everything
from siglip_pipeline.video.scan import Scan
from siglip_pipeline.video.source import MediaSource

MAX_HELD_FRAMES: Final = 8
"""Frames with disordered timestamps that are kept until earlier ones have come out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedFrame:
    """One target as the decoder gave it: not scaled, rotated or converted."""

    frame_index: int
    """Position in time order, from 0."""
    pts: int
    time_seconds: float
    """From the start of the stream."""
    frame: VideoFrame
    sample_aspect_ratio: Fraction | None
    """The stream's sample aspect ratio at this frame."""

    @classmethod
    def of(cls, frame: VideoFrame, frame_index: int, decoding: Pass, scan: Scan) -> "DecodedFrame":
        """Return a frame that came out of a pass, with what the scan says of its position."""
        pts = int(scan.packets.pts_N[frame_index])
        return cls(
            frame_index=frame_index,
            pts=pts,
            time_seconds=float((pts - int(scan.packets.pts_N[0])) * scan.time_base),
            frame=frame,
            sample_aspect_ratio=decoding.aspect_at(pts),
        )


@dataclass(slots=True)
class DecodeCounts:
    """Counts of a decode over all its passes, updated while it runs."""

    passes: list[PassCounts] = field(default_factory=list)
    full_passes: int = 0
    """Passes that decoded everything because a target did not come out as planned."""
    missing: list[int] = field(default_factory=list)
    """Positions in time order of targets that never came out, replaced or not."""
    lost_share: float | None = None
    """Share of all frames that do not come out, 0 to 1, if a pass has looked for them."""

    def begin(self) -> PassCounts:
        """Add the counts of a new pass, and return them."""
        self.passes.append(PassCounts())
        return self.passes[-1]

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
        """Packets that the decoder refused, and frames that it marked as corrupt."""
        return self.passes[-1].damaged_packets if self.passes else 0

    @property
    def damaged_share(self) -> float:
        """Share of the given packets that are damaged, 0 to 1.

        It is that of the last pass: one before it broke off at the first damage, and a pass over
        everything meets all of it.
        """
        return self.damaged_packets / max(1, self.passes[-1].packets_given) if self.passes else 0.0


def decode_frames(
    source: MediaSource,
    scan: Scan,
    plan: DecodePlan,
    *,
    counts: DecodeCounts | None = None,
    threads: int = 1,
    deinterlace: bool = False,
    on_progress: Callable[[int], None] = lambda packets: None,
) -> Iterator[DecodedFrame]:
    """Yield the planned frames, in time order.

    An interlaced frame is rebuilt by those next to it. Where the plan leaves these out, the pass
    ends, and another one decodes them.

    Packets that do not decode are counted and skipped. If a target does not come out of the planned
    pass, a second pass decodes everything to find which frames come out, and a third one takes
    them. A lost target is replaced by the nearest frame within half the distance to the next
    target.

    Args:
        source: the file that was scanned.
        scan: its packets.
        plan: what to decode.
        counts: updated while decoding.
        threads: decoder threads.
        deinterlace: rebuild frames that are interlaced.
        on_progress: called with the number of packets seen so far.

    Raises:
        VideoError: the file cannot be opened any more, or a frame is too large.
    """
    counts = counts if counts is not None else DecodeCounts()
    waiting = _Waiting(scan, plan.target_N)

    def planned(plan: DecodePlan) -> Generator[DecodedFrame, None, bool]:
        """Yield targets until one is missing; return True at one that needs its neighbours."""
        decoding = Pass(source, scan, counts.begin(), threads, on_progress)
        frames = timed(decoding.frames(plan.steps_P), scan)
        if deinterlace and plan.neighbours:
            frames = deinterlaced(frames, waiting.is_wanted, waiting.follows)
        with contextlib.closing(frames):
            for frame in filter(waiting.is_wanted, frames):
                if waiting.is_late(frame):
                    break  # an earlier target is missing: continue with a full pass
                if deinterlace and frame.interlaced_frame and not plan.neighbours:
                    return True
                yield waiting.take(frame, decoding)
        return False

    if scan.packets.timestamps_known and not (plan.steps_P == Step.TARGET).all():
        if (yield from planned(plan)):
            yield from planned(plan_decode(scan.packets, waiting.target_N, neighbours=True))
        if not len(waiting):
            return
        counts.full_passes += 1
        everything = plan_everything(scan.packets, waiting.target_N)
        look = Pass(source, scan, counts.begin(), threads, on_progress)
        found = {frame.pts for frame in timed(look.frames(everything.steps_P), scan)}
        decodable_N = np.flatnonzero([pts in found for pts in scan.packets.pts_N.tolist()])
        counts.lost_share = 1 - decodable_N.size / scan.packets.pts_N.size
        counts.missing = waiting.replace_lost(decodable_N, plan.target_N)
        if not len(waiting):
            return
    full = Pass(source, scan, counts.begin(), threads, on_progress)
    frames = timed(full.frames(plan_everything(scan.packets, waiting.target_N).steps_P), scan)
    if deinterlace:
        frames = deinterlaced(frames, waiting.is_wanted)
    yield from waiting.reordered(frames, full)
    counts.missing += waiting.target_N.tolist()


def timed(frames: Iterator[VideoFrame], scan: Scan) -> Generator[VideoFrame, None, None]:
    """Yield the frames; if timestamps are unknown, set them from the index by order."""
    pts_N = scan.packets.pts_N
    for ordinal, frame in enumerate(frames):
        if not scan.packets.timestamps_known:
            frame.pts = int(pts_N[min(ordinal, pts_N.size - 1)])
        yield frame


class _Waiting:
    """The targets that have not come out yet."""

    def __init__(self, scan: Scan, target_N: IntArray) -> None:
        self._scan = scan
        pts = scan.packets.pts_N[target_N].tolist()
        # In time order, which dicts keep.
        self._position_of_pts: dict[int, int] = dict(zip(pts, target_N.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._position_of_pts)

    @property
    def target_N(self) -> IntArray:
        """Their positions in time order."""
        return np.array(list(self._position_of_pts.values()), np.int64)

    def is_wanted(self, frame: VideoFrame) -> bool:
        """Return whether this frame is a target that has not come out yet."""
        return frame.pts in self._position_of_pts

    def is_late(self, frame: VideoFrame) -> bool:
        """Return whether an earlier target has not come out yet."""
        return next(iter(self._position_of_pts)) != frame.pts

    def follows(self, first: VideoFrame | None, second: VideoFrame | None) -> bool:
        """Return whether no frame of the video lies between two; None is outside of it."""
        pts_N = self._scan.packets.pts_N
        at = -1 if first is None else int(np.searchsorted(pts_N, first.pts or 0))
        then = pts_N.size if second is None else int(np.searchsorted(pts_N, second.pts or 0))
        return then - at == 1

    def replace_lost(self, decodable_N: IntArray, all_N: IntArray) -> list[int]:
        """Replace targets that do not decode by neighbours; return the replaced targets.

        A neighbour lies within half the distance to the next target on its side.
        """
        pts_N = self._scan.packets.pts_N
        lost = sorted({*self._position_of_pts.values()} - {*decodable_N.tolist()})
        positions = set(self._position_of_pts.values()) - set(lost)
        for position in lost:
            place = int(np.searchsorted(all_N, position))
            pts = int(pts_N[position])
            low = int(pts_N[all_N[place - 1]]) if place else None
            high = int(pts_N[all_N[place + 1]]) if place + 1 < all_N.size else None
            if decodable_N.size:
                other = int(decodable_N[np.argmin(np.abs(pts_N[decodable_N] - pts))])
                bound = low if other < position else high
                if bound is None or 2 * abs(int(pts_N[other]) - pts) <= abs(bound - pts):
                    positions.add(other)
        positions -= set(all_N.tolist()) - set(self._position_of_pts.values())
        self._position_of_pts = {int(pts_N[n]): n for n in sorted(positions)}
        return lost

    def take(self, frame: VideoFrame, decoding: Pass) -> DecodedFrame:
        """Return the frame as its target, and remove the target from the waiting ones."""
        assert frame.pts is not None
        return DecodedFrame.of(frame, self._position_of_pts.pop(frame.pts), decoding, self._scan)

    def reordered(self, frames: Iterator[VideoFrame], decoding: Pass) -> Iterator[DecodedFrame]:
        """Yield the targets among all frames of the video, in time order.

        A frame that comes out before an earlier target is held. If too many are held, the earlier
        target counts as lost.
        """
        held: dict[int, VideoFrame] = {}
        last_pts: int | None = None
        lost: dict[int, int] = {}
        for frame in frames:
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
                    yield self.take(held.pop(first), decoding)
                elif len(held) > MAX_HELD_FRAMES:
                    lost[first] = self._position_of_pts.pop(first)
                else:
                    break
        for pts in sorted(held):
            for first in list(self._position_of_pts):
                if first >= pts:
                    break
                lost[first] = self._position_of_pts.pop(first)
            yield self.take(held[pts], decoding)
        self._position_of_pts.update(lost)
