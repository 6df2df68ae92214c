"""The index of a container's video packets: which frames they hold, in time order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.timeline import UNKNOWN, time_line

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketIndex:
    """The video packets of a container in decoding order (P), and its frames in time order (N)."""

    pts_P: IntArray
    key_P: BoolArray
    shift_P: IntArray | None = None
    """Shift of each packet's timestamps that makes the time line continuous; None for no shift."""
    restarts: int = 0
    """How often the timestamps restart."""
    reference_P: BoolArray
    """False for packets to which no other refers (AV1 only: decoders of other codecs skip them)."""
    packet_N: NDArray[np.int32]
    """The packet of each frame; 32 bits hold ``scan.MAX_PACKETS``, in half the memory."""
    key_N: BoolArray
    """Which frames are key frames."""
    pts_N: IntArray
    """Strictly increasing."""
    end_pts: int
    """End of the last frame."""
    frame_duration: int
    """Duration of one frame at the header's rate, in units of the time base; at least 1."""
    timestamps_known: bool
    """False if packets lack timestamps; frames are then numbered in order."""
    vouched: bool
    """False if decoding may give other frames than the packets list: fields, hidden frames, frames
    without their references. :func:`.index_frames` verifies it."""
    expected: int
    """Packets that the container's index lists; more than there are if the file was cut off."""

    def __len__(self) -> int:
        return int(self.pts_P.size)


def build_index(
    pts_P: IntArray,
    *,
    dts_P: IntArray,
    key_P: BoolArray,
    discard_P: BoolArray,
    reference_P: BoolArray,
    last_duration: int,
    frame_duration: int,
    max_pause: int,
    is_plain: bool,
    expected: int,
) -> PacketIndex:
    """Index packets on one continuous time line, in time order.

    Packets that an edit list removes are not frames, unless it removes all. Of packets with the
    same PTS the first one counts. If a packet has no PTS, frames are numbered in the order in which
    the decoder gives them, one ``frame_duration`` each.
    """
    known_P = pts_P != UNKNOWN
    line = None
    if known_P.any():
        line = time_line(
            np.where(discard_P, UNKNOWN, pts_P) if not discard_P.all() else pts_P,
            dts_P,
            key_P,
            frame_duration=frame_duration,
            max_pause=max_pause,
        )
    if line is not None:
        pts_P = np.where(known_P, pts_P + line.shift_P, UNKNOWN)
    if known_P.all():
        shown = np.flatnonzero(~discard_P) if not discard_P.all() else np.arange(pts_P.size)
        pts_N, first = np.unique(pts_P[shown], return_index=True)
        packet_N = shown[first]
        is_plain = is_plain and _is_plain(pts_P, key_P) and packet_N.size == shown.size
    else:
        packet_N = np.arange(pts_P.size)
        pts_N = packet_N * frame_duration
        last_duration = frame_duration
        is_plain = False
    if last_duration <= 0:
        last_duration = int(np.median(np.diff(pts_N))) if pts_N.size > 1 else frame_duration
    return PacketIndex(
        pts_P=pts_P,
        key_P=key_P,
        shift_P=None if line is None else line.shift_P,
        restarts=0 if line is None else line.restarts,
        reference_P=reference_P,
        packet_N=packet_N.astype(np.int32),
        key_N=key_P[packet_N],
        pts_N=pts_N.astype(np.int64),
        end_pts=int(pts_N[-1]) + last_duration,
        frame_duration=frame_duration,
        timestamps_known=bool(known_P.all()),
        vouched=is_plain,
        expected=expected,
    )


def _is_plain(pts_P: IntArray, key_P: BoolArray) -> bool:
    """Return whether the first packet is a key frame, and no frame is shown before it."""
    keys = np.flatnonzero(key_P)
    if keys.size == 0 or keys[0] != 0:
        return False
    end = int(keys[1]) if keys.size > 1 else pts_P.size
    return bool(pts_P[0] == pts_P[:end].min())
