"""Which segments make two videos copies, at the edges of each rule."""

from collections.abc import Sequence

import numpy as np
import pytest

from siglip_pipeline.similarity.alignment import Segment
from siglip_pipeline.similarity.copy_decision import (
    DecidedSegment,
    FrameWeights,
    decide_copies,
)


def video(
    weights: Sequence[float], *, spread: Sequence[float] | float = 1, seconds: float | None = None
) -> FrameWeights:
    return FrameWeights(
        length_seconds=len(weights) if seconds is None else seconds,
        weights_N=np.array(weights, np.float32),
        spread_N=np.broadcast_to(np.array(spread, np.float32), len(weights)),
    )


def segment(
    rows: Sequence[int], columns: Sequence[int], *, different: float = 2, cosine: float = 0.97
) -> Segment:
    return Segment(
        rows=np.array(rows),
        columns=np.array(columns),
        start_a=float(rows[0]),
        end_a=float(rows[-1] + 1),
        start_b=float(columns[0]),
        end_b=float(columns[-1] + 1),
        speed=1,
        cosine=cosine,
        different=different,
    )


def decide(
    a: FrameWeights, b: FrameWeights, found: Segment, weak: Sequence[Segment] = ()
) -> DecidedSegment | None:
    """What is published of a single segment."""
    decided = [*decide_copies(a, b, [found], weak)]
    assert len(decided) <= 1
    return decided[0] if decided else None


@pytest.mark.parametrize(("last", "covered", "duplicate"), [(4, 0.5, True), (3, 0.4, False)])
def test_a_copy_covers_half_of_the_shorter_video(
    last: int, covered: float, duplicate: bool
) -> None:
    """Frames between two matches are covered too; the longer video does not matter."""
    short, long = video([1] * 10), video([1] * 99)
    for a, b, shared in (
        (short, long, segment([0, last], [50, 60])),
        (long, short, segment([50, 60], [0, last])),
    ):
        decided = decide(a, b, shared)
        assert decided is not None
        assert decided.segment is shared
        assert decided.duplicate == duplicate
        assert decided.covered == pytest.approx(covered)


def test_of_two_videos_of_one_length_the_first_is_covered() -> None:
    decided = decide(video([1] * 4), video([1] * 10, seconds=4), segment([1, 3], [0, 1]))
    assert decided is not None
    assert decided.covered == 0.75


def test_frames_that_are_shown_long_or_often_cover_little() -> None:
    weights, spread = [1, 0.5, 0.5, 1], [1, 1, 1, 4]
    decided = decide(video(weights, spread=spread), video([1] * 99), segment([2, 3], [7, 8]))
    assert decided is not None
    assert decided.covered == pytest.approx((0.5 + 0.25) / (1 + 0.5 + 0.5 + 0.25))


@pytest.mark.parametrize(
    ("rows", "columns", "cosine", "copies"),
    [
        ((0, 7), (1, 8), 0.97, True),
        ((0, 7), (1, 8), 0.969, False),
        ((0, 6), (0, 9), 0.99, False),  # 0.7 of the first
        ((0, 9), (0, 6), 0.99, False),  # 0.7 of the second
    ],
)
def test_a_still_covers_most_of_both_videos(
    rows: tuple[int, int], columns: tuple[int, int], cosine: float, copies: bool
) -> None:
    still = segment(rows, columns, different=1.99, cosine=cosine)
    decided = decide(video([1] * 10), video([1] * 10, seconds=11), still)
    assert (decided is not None) == copies, "a still that proves nothing is not published"
    assert decided is None or decided.duplicate


def test_the_worst_of_several_stills_decides() -> None:
    stills = [
        segment([0, 4], [0, 4], different=1, cosine=0.99),
        segment([5, 9], [5, 9], different=1, cosine=0.96),
    ]
    assert [*decide_copies(video([1] * 10), video([1] * 10), stills)] == []


@pytest.mark.parametrize(("spread", "published"), [(10, True), (10.1, False)])
def test_what_more_than_ten_videos_have_is_published_of_copies_alone(
    spread: float, published: bool
) -> None:
    common = [1.0] * 8 + [spread] * 2
    ident = segment([8, 9], [0, 1], different=9)
    decided = decide(video([1] * 10, spread=common), video([1] * 99), ident)
    assert (decided is not None) == published
    whole = segment([8, 9], [0, 1], different=9)
    decided = decide(video([1] * 10, spread=spread, seconds=10), video([1] * 2), whole)
    assert decided is not None
    assert decided.duplicate


def test_a_single_frame_is_no_evidence() -> None:
    assert decide(video([1]), video([1] * 9), segment([0], [4], different=5)) is None
    assert decide(video([1] * 2), video([1] * 9), segment([0, 1], [4, 5], different=5)) is not None


def test_weaker_matches_count_only_where_they_show_a_copy() -> None:
    a, b = video([1] * 10), video([1] * 99)
    strong, crop = segment([0, 1], [0, 1]), segment([0, 8], [40, 48])
    decided = decide(a, b, strong, [crop])
    assert decided is not None
    assert decided.segment is crop
    assert decided.duplicate
    assert decided.covered == pytest.approx(0.9)
    for kept in (decide(a, b, strong, [segment([0, 3], [40, 43])]), decide(a, b, strong)):
        assert kept is not None
        assert kept.segment is strong
        assert not kept.duplicate
    copy = segment([0, 9], [0, 9])
    decided = decide(a, b, copy, [crop])
    assert decided is not None
    assert decided.segment is copy, "what proves a copy by itself needs no weaker matches"
