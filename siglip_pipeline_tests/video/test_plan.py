"""Which packets are decoded, against the rule, one packet after the other."""

from dataclasses import replace

import numpy as np
import pytest

from siglip_pipeline.records import IntArray
from siglip_pipeline.video.packet_index import PacketIndex
from siglip_pipeline.video.plan import (
    DecodePlan,
    Step,
    plan_decode,
    plan_everything,
    plan_references,
)


def stream(pts: list[int] | IntArray, keys: list[int], *, references: str = "") -> PacketIndex:
    """Packets with these times in decoding order; ``-``: no frame refers to it."""
    pts_P = np.array(pts, np.int64)
    key_P = np.isin(np.arange(len(pts_P)), keys)
    packet_N = np.argsort(pts_P).astype(np.int32)
    return PacketIndex(
        pts_P=pts_P,
        key_P=key_P,
        reference_P=np.array([c != "-" for c in references.ljust(len(pts_P))], bool),
        packet_N=packet_N,
        key_N=key_P[packet_N],
        pts_N=pts_P[packet_N],
        end_pts=int(pts_P.max()) + 1,
        frame_duration=1,
        timestamps_known=True,
        vouched=True,
        expected=len(pts_P),
    )


def steps(plan: DecodePlan) -> str:
    return "".join("-rT"[step] for step in plan.steps_P)


@pytest.mark.parametrize(
    ("targets", "planned"),
    [
        ([], "--------"),
        ([0], "T-------"),
        ([3], "rrrT----"),
        ([4], "----T---"),
        ([0, 6], "T---rrT-"),
        ([1, 3, 7], "rTrTrrrT"),
    ],
)
def test_a_group_is_decoded_up_to_its_last_target(targets: list[int], planned: str) -> None:
    packets = stream([0, 1, 2, 3, 4, 5, 6, 7], [0, 4])
    plan = plan_decode(packets, np.array(targets, np.int64))
    assert steps(plan) == planned
    assert plan.target_N.tolist() == targets


def test_a_picture_that_leads_its_key_frame_needs_the_group_before() -> None:
    # In decoding order: key 0, 1, key 4 with 2 and 3 before it in time, 5.
    packets = stream([0, 1, 4, 2, 3, 5], [0, 2])
    assert steps(plan_decode(packets, np.array([3]))) == "rrrrT-"
    assert steps(plan_decode(packets, np.array([4]))) == "--T---", "the key frame itself does not"
    assert steps(plan_decode(packets, np.array([5]))) == "--rrrT"
    leading_first = stream([2, 0, 1, 3], [0])
    assert steps(plan_decode(leading_first, np.array([0]))) == "rT--", "there is none before"


def test_a_stream_that_begins_within_a_group_is_decoded_from_its_beginning() -> None:
    packets = stream([0, 1, 2, 3, 4], [2])
    assert steps(plan_decode(packets, np.array([1]))) == "rT---"
    assert steps(plan_decode(packets, np.array([3]))) == "--rT-"
    assert steps(plan_decode(stream([0, 1, 2], []), np.array([1]))) == "rT-"
    assert steps(plan_decode(stream([0, 2, 1], [1]), np.array([1]))) == "rrT", "it leads its key"


def test_what_nothing_refers_to_is_skipped_unless_it_is_a_target() -> None:
    packets = stream([0, 1, 2, 3, 4, 5], [0], references=" - -  ")
    assert steps(plan_decode(packets, np.array([3, 4]))) == "r-rTT-"
    assert steps(plan_references(packets)) == "r-r-rr"
    assert plan_references(packets).target_N.tolist() == []


@pytest.mark.parametrize("seed", range(20))
def test_any_stream_is_planned_by_the_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 60
    keys = sorted({0, *rng.choice(count, 6, replace=False).tolist()} - ({0} if seed % 2 else set()))
    # Packets are stored up to three places from where they are shown.
    pts = np.argsort(np.argsort(np.arange(count) + rng.uniform(0, 3, count)))
    marks = "".join(rng.choice([" ", "-"], count))
    packets = stream(pts, keys, references=marks)
    targets = np.sort(rng.choice(count, 7, replace=False))

    starts = sorted({0, *keys})
    group_of = [max(g for g, start in enumerate(starts) if start <= p) for p in range(count)]
    chosen = {int(packets.packet_N[target]) for target in targets}
    last = dict.fromkeys(range(len(starts)), -1)
    for packet in chosen:
        last[group_of[packet]] = max(last[group_of[packet]], packet)
    for packet in chosen:
        if (group := group_of[packet]) and pts[packet] < pts[starts[group]]:
            last[group - 1] = starts[group] - 1
    expected = "".join(
        "T" if p in chosen else "r" if p <= last[group_of[p]] and marks[p] == " " else "-"
        for p in range(count)
    )
    assert steps(plan_decode(packets, targets)) == expected


def test_without_timestamps_everything_is_decoded() -> None:
    packets = replace(stream([0, 1, 2], [0], references="---"), timestamps_known=False)
    targets = np.array([1])
    for plan in (plan_decode(packets, targets), plan_everything(packets, targets)):
        assert steps(plan) == "TTT"
        assert plan.target_N is targets
    assert steps(plan_references(packets)) == "TTT"
    assert plan_references(packets).target_N.tolist() == []
    assert plan_everything(packets, targets).steps_P.dtype == np.uint8
    assert [Step.SKIP, Step.REFERENCE, Step.TARGET] == [0, 1, 2]
