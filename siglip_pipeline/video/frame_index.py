"""The frames of a video: foretold by its packets, or by decoding where packets do not tell.

A packet is not a frame. Fields come in packets of their own, frames without the ones that they
refer to do not come out, and some packets have no time. So where anything hints at that, the first
packets are decoded for a trial; if what comes out is not what was foretold, all are.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from av.video.frame import PictureType

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.decoder_pass import Pass, PassCounts
from siglip_pipeline.video.plan import Step
from siglip_pipeline.video.scan import PacketIndex, Scan, scan
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.timeline import MAX_REORDERED

TRIAL_PACKETS: Final = 24
MAX_TRIAL_PACKETS: Final = 600


def index_frames(
    source: MediaSource, *, on_progress: Callable[[int], None] = lambda packets: None
) -> Scan:
    """Scan a video, and make sure that its frames are those that will come out.

    Raises:
        VideoError: as :func:`.scan`.
    """
    scanned = scan(source, on_progress=on_progress)
    packets = scanned.packets
    if packets.vouched:
        return scanned
    if packets.timestamps_known or (packets.pts_P == packets.pts_P[0]).all():
        tried = _tried(source, scanned, on_progress)
        if tried is not None:
            return dataclasses.replace(scanned, packets=tried)
    return dataclasses.replace(scanned, packets=_decoded(source, scanned, on_progress))


def _tried(
    source: MediaSource, scanned: Scan, on_progress: Callable[[int], None]
) -> PacketIndex | None:
    """The index without what is lost before the first frame; None if packets do not tell."""
    packets = scanned.packets
    keys = np.flatnonzero(packets.key_P)
    first_key = int(keys[0]) if keys.size else 0
    size = min(len(packets), first_key + TRIAL_PACKETS, MAX_TRIAL_PACKETS)
    steps = np.full(size, Step.TARGET, np.uint8)
    counts = PassCounts()
    trial = Pass(source, scanned, counts, 1, on_progress)
    pts = [frame.pts for frame in trial.frames(steps, flush=size == len(packets))]
    if not packets.timestamps_known:
        # Numbered by order: as many frames as packets, less those that the decoder still holds.
        held = 0 if size == len(packets) else MAX_REORDERED
        return packets if size - held <= len(pts) <= size else None
    known = [value for value in pts if value is not None]
    if not known or len(known) < len(pts):
        return None
    foretold = packets.pts_N[packets.pts_N <= max(known)]
    first = int(np.searchsorted(packets.pts_N, min(known)))
    if set(foretold[first:].tolist()) != set(known):
        return packets if counts.damaged_packets else None
    return dataclasses.replace(
        packets,
        packet_N=packets.packet_N[first:],
        key_N=packets.key_N[first:],
        pts_N=packets.pts_N[first:],
    )


def _decoded(source: MediaSource, scanned: Scan, on_progress: Callable[[int], None]) -> PacketIndex:
    """The index of the frames that come out when everything is decoded."""
    packets = scanned.packets
    steps = np.full(len(packets), Step.TARGET, np.uint8)
    everything = Pass(source, scanned, PassCounts(), 1, on_progress)
    pts: list[int | None] = []
    keys: list[bool] = []
    for frame in everything.frames(steps):
        pts.append(frame.pts)
        keys.append(frame.key_frame or frame.pict_type == PictureType.I)
    if not pts:
        return packets
    pts_N = increasing(pts, packets.frame_duration)
    return dataclasses.replace(
        packets,
        packet_N=np.zeros(len(pts), np.int32),
        key_N=np.array(keys, np.bool_),
        pts_N=pts_N,
        end_pts=int(pts_N[-1]) + packets.frame_duration,
        timestamps_known=False,
    )


def increasing(pts: Sequence[int | None], frame_duration: int) -> IntArray:
    """Times of frames in their order: those that are unknown or fall back follow the one before.

    Between two known times, unknown ones are spread evenly where frames of the usual duration do
    not fit.
    """
    times: list[int] = []
    waiting = 0
    for value in [*pts, None]:
        if value is None or (times and value <= times[-1]):
            waiting += 1
            continue
        if times:
            last = times[-1]
            step = min(frame_duration, (value - last) // (waiting + 1))
            if step < 1:  # no room: it comes after them
                step, value = 1, last + waiting + 1
            times += [last + step * n for n in range(1, waiting + 1)]
        else:
            times += [value - frame_duration * n for n in range(waiting, 0, -1)]
        times.append(value)
        waiting = 0
    last = times[-1] if times else -frame_duration
    times += [last + frame_duration * n for n in range(1, waiting)]
    return np.array(times, np.int64)
