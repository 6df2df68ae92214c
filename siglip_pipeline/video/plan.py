"""Plan which packets the decoder gets, and which of them it decodes.

A target needs its group of pictures (GOP) from the key frame on, except frames to which no other
refers: the decoder recognises these by their headers, and skips them with ``skip_frame = NONREF``.
Groups without a target, and packets after the last target of a group, do not reach the decoder.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.packet_index import PacketIndex


class Step(IntEnum):
    """What to do with one packet."""

    SKIP = 0
    """Do not give it to the decoder: its group is not needed, or no frame refers to it."""
    REFERENCE = 1
    """Decode it if other frames refer to it."""
    TARGET = 2
    """Decode it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePlan:
    """One pass over the packets of a video."""

    steps_P: NDArray[np.uint8]
    """A :class:`Step` for each packet, in decoding order."""
    target_N: IntArray
    """Positions in time order of the frames that must come out."""
    neighbours: bool = False
    """The frames next to them come out as well."""


def plan_decode(
    packets: PacketIndex, target_N: IntArray, *, neighbours: bool = False
) -> DecodePlan:
    """Plan the cheapest single pass in which all targets come out exactly.

    Args:
        packets: the packets of the video.
        target_N: positions in time order, increasing.
        neighbours: also decode the frames before and after each target, by which interlaced frames
            are rebuilt.
    """
    if not packets.timestamps_known:
        return plan_everything(packets, target_N)
    steps = np.zeros(len(packets), np.uint8)
    starts = np.flatnonzero(packets.key_P)
    if starts.size == 0 or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    decoded_N = _with_neighbours(target_N, packets.pts_N.size) if neighbours else target_N
    target_P = packets.packet_N[decoded_N].astype(np.int64)
    group = np.searchsorted(starts, target_P, side="right") - 1
    for start, last in _spans(packets, starts, target_P, group):
        steps[start : last + 1] = np.where(
            packets.reference_P[start : last + 1], Step.REFERENCE, Step.SKIP
        )
    steps[target_P] = Step.TARGET
    return DecodePlan(steps_P=steps, target_N=target_N, neighbours=neighbours)


def _with_neighbours(target_N: IntArray, frames: int) -> IntArray:
    return np.unique(np.clip(target_N[:, None] + [-1, 0, 1], 0, frames - 1)).astype(np.int64)


def _spans(
    packets: PacketIndex, starts: IntArray, target_P: IntArray, group: IntArray
) -> list[tuple[int, int]]:
    """Return the first and the last needed packet of each needed group."""
    last_needed: dict[int, int] = {}
    for packet, g in zip(target_P.tolist(), group.tolist(), strict=True):
        last_needed[g] = max(last_needed.get(g, -1), packet)
        # A leading picture follows a key frame in the file, but is shown before it, and may refer
        # to the previous group (open GOP).
        if g > 0 and packets.pts_P[packet] < packets.pts_P[starts[g]]:
            last_needed[g - 1] = int(starts[g]) - 1
    return [(int(starts[g]), last) for g, last in sorted(last_needed.items())]


def plan_everything(packets: PacketIndex, target_N: IntArray) -> DecodePlan:
    """Plan to decode every packet: the fallback if frames cannot be predicted."""
    steps = np.full(len(packets), Step.TARGET, np.uint8)
    return DecodePlan(steps_P=steps, target_N=target_N, neighbours=True)


def plan_references(packets: PacketIndex) -> DecodePlan:
    """Plan to decode what other frames refer to, everywhere; all, if packets do not tell times."""
    if not packets.timestamps_known:
        return plan_everything(packets, np.empty(0, np.int64))
    steps = np.where(packets.reference_P, Step.REFERENCE, Step.SKIP).astype(np.uint8)
    return DecodePlan(steps_P=steps, target_N=np.empty(0, np.int64))
