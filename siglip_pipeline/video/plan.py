"""Which packets the decoder has to see, and how much of each it has to do.

A target needs its group of pictures (GOP) from the key frame on, without the frames that nothing
refers to; the decoder tells those by their headers and leaves them out when asked
(``skip_frame = NONREF``). Whole groups without a target, and everything after the last target of a
group, are never given to the decoder.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.scan import PacketIndex


class Step(IntEnum):
    """What to do with one packet."""

    SKIP = 0
    """Do not give it to the decoder: its group is not needed, or nothing refers to it."""
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


def plan_decode(packets: PacketIndex, target_N: IntArray) -> DecodePlan:
    """Plan the cheapest single pass in which all targets come out exactly.

    Args:
        packets: what the container holds.
        target_N: positions in time order, increasing.
    """
    if not packets.timestamps_known:
        return plan_everything(packets, target_N)
    steps = np.zeros(len(packets), np.uint8)
    starts = np.flatnonzero(packets.key_P)
    if starts.size == 0 or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    ends = np.append(starts[1:], len(packets))
    target_P = packets.packet_N[target_N].astype(np.int64)
    group = np.searchsorted(starts, target_P, side="right") - 1
    for start, end, last in _spans(packets, starts, ends, target_P, group):
        del end
        steps[start : last + 1] = np.where(
            packets.reference_P[start : last + 1], Step.REFERENCE, Step.SKIP
        )
    steps[target_P] = Step.TARGET
    return DecodePlan(steps_P=steps, target_N=target_N)


def _spans(
    packets: PacketIndex, starts: IntArray, ends: IntArray, target_P: IntArray, group: IntArray
) -> list[tuple[int, int, int]]:
    """For each group that is needed: its first packet, its end, and its last needed packet."""
    last_needed: dict[int, int] = {}
    for packet, g in zip(target_P.tolist(), group.tolist(), strict=True):
        last_needed[g] = max(last_needed.get(g, -1), packet)
        # A leading picture is shown before the key frame that it follows in the file, and may
        # refer to the group before (open GOP).
        if g > 0 and packets.pts_P[packet] < packets.pts_P[starts[g]]:
            last_needed[g - 1] = int(ends[g - 1]) - 1
    return [(int(starts[g]), int(ends[g]), last) for g, last in sorted(last_needed.items())]


def plan_everything(packets: PacketIndex, target_N: IntArray) -> DecodePlan:
    """Decode every packet: the fallback where frames cannot be foretold."""
    return DecodePlan(steps_P=np.full(len(packets), Step.TARGET, np.uint8), target_N=target_N)
