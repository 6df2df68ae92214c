"""Moments whose scores belong together are one answer, whatever order they were found in."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_pipeline.store.grouping import (
    MomentGroup,
    MomentKey,
    Reach,
    ScoredMoment,
    group_moments,
)


def moment(video_id: int, number: int, score: float) -> ScoredMoment:
    return ScoredMoment(
        video=f"v{video_id}.mp4",
        video_id=video_id,
        moment=number,
        frame_index=100 * number,
        time_seconds=10 * number + 4,
        score=score,
        start_seconds=10 * number,
        end_seconds=10 * (number + 1),
    )


def collection(scores: list[list[float]]) -> list[ScoredMoment]:
    """All moments of videos with these scores."""
    return [
        moment(video_id, number, score)
        for video_id, of_video in enumerate(scores)
        for number, score in enumerate(of_video)
    ]


def reach_of(
    peak: ScoredMoment, moments: list[ScoredMoment], within: float, min_score: float = -2.0
) -> Reach:
    """What the database answers: as far as scores are high enough, whoever took them."""
    floor = max(peak.score - within, min_score)
    enough = {one.moment: one for one in moments if one.video_id == peak.video_id}
    enough = {number: one for number, one in enough.items() if one.score >= floor}
    first = last = peak.moment
    while first - 1 in enough:
        first -= 1
    while last + 1 in enough:
        last += 1
    return Reach(first, last, enough[first].start_seconds, enough[last].end_seconds)


def reaches(
    moments: list[ScoredMoment], within: float, min_score: float = -2.0
) -> dict[MomentKey, Reach]:
    return {
        one.key: reach_of(one, moments, within, min_score)
        for one in moments
        if one.score >= min_score
    }


def spans(groups: list[MomentGroup]) -> list[tuple[float, float]]:
    return [(group.reach.start_seconds, group.reach.end_seconds) for group in groups]


def test_neighbours_that_score_as_well_are_one_moment() -> None:
    moments = collection([[0.1, 0.30, 0.29, 0.31, 0.1], [0.2, 0.1]])
    result = group_moments(moments, reaches(moments, 0.02), k=2, within=0.02)
    first, second = result.groups
    assert first.peak.moment == 3
    assert first.reach == (1, 3, 10, 40)
    assert (second.peak.video, second.reach.start_seconds) == ("v1.mp4", 0)
    assert second.reach.end_seconds == 10
    assert not result.unknown


def test_a_dip_parts_them() -> None:
    moments = collection([[0.30, 0.1, 0.30]])
    result = group_moments(moments, reaches(moments, 0.05), k=5, within=0.05)
    assert spans(result.groups) == [(0, 10), (20, 30), (10, 20)]


def test_what_a_better_one_took_is_left_out() -> None:
    """The peak at 0.9 stops at 0.83; the one at 0.84 would go on over all of them."""
    moments = collection([[0.79, 0.84, 0.83, 0.87, 0.9]])
    result = group_moments(moments, reaches(moments, 0.05), k=5, within=0.05)
    assert spans(result.groups) == [(30, 50), (0, 30)]


def test_apart_means_every_moment_by_itself() -> None:
    moments = collection([[0.3, 0.3, 0.3]])
    result = group_moments(moments, {}, k=5, within=-1)
    assert [g.peak.moment for g in result.groups] == [0, 1, 2]
    assert not result.unknown


def test_what_is_not_known_is_asked_for() -> None:
    moments = collection([[0.1, 0.3, 0.2, 0.1], [0.25]])
    result = group_moments(moments, {}, k=2, within=0.05)
    assert result.groups == []
    assert [one.key for one in result.unknown] == [(0, 1), (1, 0), (0, 2)]
    known = {(0, 1): reach_of(moments[1], moments, 0.05)}
    result = group_moments(moments, known, k=2, within=0.05)
    assert spans(result.groups) == [(10, 20)]
    assert result.unknown[0].key == (1, 0)


def test_moments_under_the_least_score_are_neither_hits_nor_parts_of_one() -> None:
    moments = collection([[0.28, 0.30, 0.24]])
    result = group_moments(moments, reaches(moments, 0.1, 0.25), k=5, within=0.1, min_score=0.25)
    assert spans(result.groups) == [(0, 20)]
    assert result.below


def test_a_video_gives_only_so_many() -> None:
    moments = collection([[0.9, 0.1, 0.8, 0.1, 0.7], [0.2]])
    result = group_moments(moments, reaches(moments, 0.01), k=5, within=0.01, max_per_video=2)
    assert [g.peak.score for g in result.groups] == [0.9, 0.8, 0.2]


scores = st.lists(
    st.lists(st.integers(-10, 10).map(lambda n: n / 10), max_size=12), min_size=1, max_size=4
)


@settings(max_examples=300, deadline=None)
@given(scores, st.integers(-1, 8).map(lambda n: n / 10), st.integers(0, 2**32))
def test_groups_part_the_moments_and_belong_together(
    values: list[list[float]], within: float, seed: int
) -> None:
    everything = collection(values)
    known = {one.key: one for one in everything}
    all_reaches = reaches(everything, within) if within >= 0 else {}
    groups = group_moments(everything, all_reaches, k=1000, within=within).groups
    assert [g.peak.rank for g in groups] == sorted(g.peak.rank for g in groups)
    covered: list[MomentKey] = []
    for group in groups:
        first, last, start, end = group.reach
        assert (start, end) == (10 * first, 10 * (last + 1))
        assert first <= group.peak.moment <= last
        for number in range(first, last + 1):
            member = known[group.peak.video_id, number]
            assert group.peak.score - max(within, 0) - 1e-12 <= member.score <= group.peak.score
            covered.append(member.key)
    assert sorted(covered) == sorted(known), "each in exactly one group"
    random.Random(seed).shuffle(everything)
    assert group_moments(everything, all_reaches, k=1000, within=within).groups == groups


@settings(max_examples=200, deadline=None)
@given(scores, st.integers(0, 8).map(lambda n: n / 10), st.integers(1, 6))
def test_fewer_are_the_first_of_more_and_asking_step_by_step_ends_the_same(
    values: list[list[float]], within: float, k: int
) -> None:
    everything = collection(values)
    all_reaches = reaches(everything, within)
    whole = group_moments(everything, all_reaches, k=1000, within=within).groups[:k]
    peaks = sorted(everything, key=lambda one: one.rank)[: max(1, len(everything) // 2)]
    partly: dict[MomentKey, Reach] = {}
    for _ in range(100):
        result = group_moments(peaks, partly, k=k, within=within)
        if not result.unknown:
            break
        partly.update({one.key: all_reaches[one.key] for one in result.unknown})
    assert not result.unknown
    assert result.groups == whole[: len(result.groups)]
