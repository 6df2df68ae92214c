"""Index the frames of a video: from its packets, or by decoding if packets are not enough.

A packet is not always a frame. A field can have its own packet, a frame whose references are
missing does not come out, and some packets have no time. If there is a sign of this, the first
packets are decoded as a trial; if the result differs from the prediction, all packets are decoded.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from av.video.frame import PictureType

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.decoder_pass import Pass, PassCounts
from siglip_pipeline.video.packet_index import PacketIndex
from siglip_pipeline.video.plan import Step
from siglip_pipeline.video.scan import FIELD_CODED, Scan, scan
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.timeline import MAX_REORDERED

TRIAL_PACKETS: Final = 24
MAX_TRIAL_PACKETS: Final = 600

FIELD_SHARE: Final = 0.75
"""Of a frame's duration: two packets that are closer may be its fields."""


def index_frames(
    source: MediaSource, *, on_progress: Callable[[int], None] = lambda packets: None
) -> Scan:
    """Scan a video, and verify that its index lists the frames that a decode gives.

    Raises:
        VideoError: as :func:`.scan`.
    """
    scanned = scan(source, on_progress=on_progress)
    packets = scanned.packets
    if packets.vouched:
        return scanned
    if scanned.codec in FIELD_CODED and _changes_to_fields(packets.pts_N):
        scanned = dataclasses.replace(scanned, one_thread=True)
    elif packets.timestamps_known or (packets.pts_P == packets.pts_P[0]).all():
        tried = _tried(source, scanned, on_progress)
        if tried is not None:
            return dataclasses.replace(scanned, packets=tried)
    return dataclasses.replace(scanned, packets=_decoded(source, scanned, on_progress))


def _tried(
    source: MediaSource, scanned: Scan, on_progress: Callable[[int], None]
) -> PacketIndex | None:
    """Return the index without frames lost at the beginning; None if packets are not enough."""
    packets = scanned.packets
    keys = np.flatnonzero(packets.key_P)
    first_key = int(keys[0]) if keys.size else 0
    size = min(len(packets), first_key + TRIAL_PACKETS, MAX_TRIAL_PACKETS)
    if (repeated := _first_repeated(packets)) is not None:
        # Two fields with one time, or two frames: the trial has to tell.
        size = min(len(packets), max(size, repeated + MAX_REORDERED))
        if size > MAX_TRIAL_PACKETS:
            return None
    steps = np.full(size, Step.TARGET, np.uint8)
    counts = PassCounts()
    trial = Pass(source, scanned, counts, 1, on_progress)
    flush = size == len(packets) or not packets.timestamps_known
    pts = [frame.pts for frame in trial.frames(steps, flush=flush)]
    if not packets.timestamps_known:  # frames are numbered by order: expect one per packet
        return packets if len(pts) == size else None
    known = [value for value in pts if value is not None]
    if not known or len(known) < len(pts) or len({*known}) < len(known):
        return None
    foretold = packets.pts_N[packets.pts_N <= max(known)]
    first = int(np.searchsorted(packets.pts_N, min(known)))
    if set(foretold[first:].tolist()) != set(known):
        return packets if counts.damaged_packets else None
    if known != sorted(known):  # decoders give frames in the order in which they are shown
        return dataclasses.replace(packets, timestamps_known=False)
    return dataclasses.replace(
        packets,
        packet_N=packets.packet_N[first:],
        key_N=packets.key_N[first:],
        pts_N=packets.pts_N[first:],
    )


def _changes_to_fields(pts_N: IntArray) -> bool:
    """Return whether packets follow each other faster somewhere than at the beginning."""
    between = np.diff(pts_N)
    usual = np.median(between[:TRIAL_PACKETS]) if between.size else 0
    return bool((between < FIELD_SHARE * usual).any())


def _first_repeated(packets: PacketIndex) -> int | None:
    """Return the first packet with the time of one before it; None if all differ."""
    times, firsts = np.unique(packets.pts_P, return_index=True)
    if times.size == len(packets):
        return None
    repeated_P = np.ones(len(packets), np.bool_)
    repeated_P[firsts] = False
    return int(np.argmax(repeated_P))


def _decoded(source: MediaSource, scanned: Scan, on_progress: Callable[[int], None]) -> PacketIndex:
    """Decode everything, and return the index of the frames that come out."""
    packets = scanned.packets
    steps = np.full(len(packets), Step.TARGET, np.uint8)
    everything = Pass(source, scanned, PassCounts(), 1, on_progress)
    pts: list[int | None] = []
    dts: list[int | None] = []
    keys: list[bool] = []
    for frame in everything.frames(steps):
        pts.append(frame.pts)
        dts.append(frame.dts)
        keys.append(frame.key_frame or frame.pict_type == PictureType.I)
    if not pts:
        return packets
    if _falls_back(pts) and (np.diff(packets.pts_P) > 0).all():
        # Decoding times that pass for presentation times, as in AVI: a frame is shown when it comes
        # out, as the ffmpeg program has it. Its own time is that at which its packet was there.
        pts = dts
    pts_N = increasing(pts, packets.frame_duration)
    return dataclasses.replace(
        packets,
        packet_N=np.zeros(len(pts), np.int32),
        key_N=np.array(keys, np.bool_),
        pts_N=pts_N,
        end_pts=int(pts_N[-1]) + packets.frame_duration,
        timestamps_known=False,
    )


def _falls_back(pts: Sequence[int | None]) -> bool:
    """Return whether a frame has an earlier time than one that is shown before it."""
    known = [value for value in pts if value is not None]
    return known != sorted(known)


def increasing(pts: Sequence[int | None], frame_duration: int) -> IntArray:
    """Return strictly increasing times of frames, in the order of the frames.

    A time that is unknown or falls back is replaced by one after the frame before it. Between two
    known times, replacements are spaced evenly if frames of the usual duration do not fit.
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
            if step < 1:  # no room before it: move it after them
                step, value = 1, last + waiting + 1
            times += [last + step * n for n in range(1, waiting + 1)]
        else:
            times += [value - frame_duration * n for n in range(waiting, 0, -1)]
        times.append(value)
        waiting = 0
    last = times[-1] if times else -frame_duration
    usual = int(np.median(np.diff(times))) if len(times) > 2 else frame_duration
    times += [last + min(usual, frame_duration) * n for n in range(1, waiting)]
    return np.array(times, np.int64)
