"""Moments whose scores belong together are one answer, whatever order they were found in."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_pipeline.store.grouping import MomentKey, ScoredMoment, group_moments


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


def collection(scores: list[list[float]]) -> dict[MomentKey, ScoredMoment | None]:
    """Everything known: moments of each video, and that there are none after the last."""
    known: dict[MomentKey, ScoredMoment | None] = {}
    for video_id, of_video in enumerate(scores):
        for number, score in enumerate(of_video):
            known[video_id, number] = moment(video_id, number, score)
        known[video_id, len(of_video)] = None
    return known


def found(known: dict[MomentKey, ScoredMoment | None]) -> list[ScoredMoment]:
    return [one for one in known.values() if one is not None]


def test_neighbours_that_score_as_well_are_one_moment() -> None:
    known = collection([[0.1, 0.30, 0.29, 0.31, 0.1], [0.2, 0.1]])
    result = group_moments(found(known), known, k=2, within=0.02)
    first, second = result.groups
    assert (first.peak.moment, first.start_seconds, first.end_seconds) == (3, 10, 40)
    assert first.moments == 3
    assert (second.peak.video, second.start_seconds, second.end_seconds) == ("v1.mp4", 0, 10)
    assert not result.unknown


def test_a_dip_parts_them() -> None:
    known = collection([[0.30, 0.1, 0.30]])
    result = group_moments(found(known), known, k=5, within=0.05)
    assert [(g.start_seconds, g.end_seconds) for g in result.groups] == [
        (0, 10),
        (20, 30),
        (10, 20),
    ]


def test_apart_means_every_moment_by_itself() -> None:
    known = collection([[0.3, 0.3, 0.3]])
    result = group_moments(found(known), {}, k=5, within=-1)
    assert [g.peak.moment for g in result.groups] == [0, 1, 2]
    assert not result.unknown


def test_what_is_not_known_is_asked_for() -> None:
    known = collection([[0.1, 0.3, 0.3, 0.1]])
    partly = {key: one for key, one in known.items() if key in ((0, 1), (0, 2))}
    result = group_moments(found(partly), partly, k=1, within=0.05)
    assert result.unknown == {(0, 0), (0, 3)}


def test_moments_under_the_least_score_are_neither_hits_nor_parts_of_one() -> None:
    known = collection([[0.28, 0.30, 0.24]])
    result = group_moments(found(known), known, k=5, within=0.1, min_score=0.25)
    assert [(g.start_seconds, g.end_seconds) for g in result.groups] == [(0, 20)]
    assert result.below


def test_a_video_gives_only_so_many() -> None:
    known = collection([[0.9, 0.1, 0.8, 0.1, 0.7], [0.2]])
    result = group_moments(found(known), known, k=5, within=0.01, max_per_video=2)
    assert [g.peak.score for g in result.groups] == [0.9, 0.8, 0.2]


scores = st.lists(
    st.lists(st.integers(-10, 10).map(lambda n: n / 10), max_size=12), min_size=1, max_size=4
)


@settings(max_examples=300, deadline=None)
@given(scores, st.integers(-1, 8).map(lambda n: n / 10), st.integers(0, 2**32))
def test_groups_part_the_moments_and_belong_together(
    values: list[list[float]], within: float, seed: int
) -> None:
    known = collection(values)
    everything = found(known)
    groups = group_moments(everything, known, k=1000, within=within).groups
    assert [g.peak.rank for g in groups] == sorted(g.peak.rank for g in groups)
    covered: list[MomentKey] = []
    for group in groups:
        first, last = int(group.start_seconds) // 10, int(group.end_seconds) // 10 - 1
        assert group.moments == last - first + 1, "contiguous"
        assert first <= group.peak.moment <= last
        for number in range(first, last + 1):
            member = known[group.peak.video_id, number]
            assert member is not None
            assert group.peak.score - max(within, 0) - 1e-12 <= member.score <= group.peak.score
            covered.append(member.key)
    assert sorted(covered) == sorted(one.key for one in everything), "each in exactly one group"
    random.Random(seed).shuffle(everything)
    assert group_moments(everything, known, k=1000, within=within).groups == groups


@settings(max_examples=200, deadline=None)
@given(scores, st.integers(0, 8).map(lambda n: n / 10), st.integers(1, 6))
def test_fewer_are_the_first_of_more_and_asking_step_by_step_ends_the_same(
    values: list[list[float]], within: float, k: int
) -> None:
    known = collection(values)
    everything = found(known)
    whole = group_moments(everything, known, k=1000, within=within).groups[:k]
    peaks = sorted(everything, key=lambda one: one.rank)[: max(1, len(everything) // 2)]
    partly: dict[MomentKey, ScoredMoment | None] = {one.key: one for one in peaks}
    for _ in range(100):
        result = group_moments(peaks, partly, k=k, within=within)
        if not result.unknown:
            break
        partly.update({key: known.get(key) for key in result.unknown})
    assert not result.unknown
    assert result.groups == whole[: len(result.groups)]
