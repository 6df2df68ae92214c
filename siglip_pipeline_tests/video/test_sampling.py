"""Sampling policies as pure functions, over any timestamps."""

import pickle
import weakref
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_pipeline.errors import SettingsError
from siglip_pipeline.records import IntArray
from siglip_pipeline.video.frame_selection import select_frames
from siglip_pipeline.video.sampling import SCENE_MAX_GAP_SECONDS, Sampling, SceneSampler
from siglip_pipeline.video.shots import SHORTEST_SHOT_SECONDS, THRESHOLD
from siglip_pipeline_tests.video.test_shots import cuts_of

TIME_BASES = [Fraction(1, n) for n in (1, 25, 1000, 12_800, 90_000, 10**9)] + [
    Fraction(1001, 30_000)
]
SAMPLINGS = ["fps:1", "fps:0.5", "fps:30", "fps:1/60", "fps:7/3", "every:1", "every:9"]


@st.composite
def timestamps(draw: st.DrawFn) -> IntArray:
    start = draw(st.integers(-(2**40), 2**40))
    gaps = draw(st.lists(st.integers(1, 10**6), max_size=80))
    return start + np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)


def scenes_of(pts_N: IntArray, cuts_C: IntArray, time_base: Fraction) -> IntArray:
    """Positions of the samples of shots that begin at the first frame and at each of C cuts."""
    sampler = SceneSampler[int](time_base)
    chosen: list[int] = []
    for position, pts in enumerate(pts_N.tolist()):
        chosen += sampler.add(pts, position, begins_shot=position in cuts_C)
    return np.array(chosen + sampler.finish(), np.int64)


def check(chosen: IntArray, n: int) -> None:
    assert chosen.dtype == np.int64
    assert chosen.size > 0
    assert chosen[0] == 0
    assert chosen[-1] < n
    assert (np.diff(chosen) > 0).all()


@given(
    pts_N=timestamps(),
    time_base=st.sampled_from(TIME_BASES),
    last=st.integers(1, 10**6),
    text=st.sampled_from(SAMPLINGS),
)
def test_increasing_inside_and_never_empty(
    pts_N: IntArray, time_base: Fraction, last: int, text: str
) -> None:
    end_pts = int(pts_N[-1]) + last
    chosen = select_frames(Sampling.parse(text), pts_N, time_base=time_base, end_pts=end_pts)
    check(chosen, pts_N.size)


@given(
    pts_N=timestamps(),
    time_base=st.sampled_from(TIME_BASES),
    rate=st.fractions(Fraction(1, 100), 60, max_denominator=100),
)
def test_fps_takes_the_frames_on_screen_at_each_tick(
    pts_N: IntArray, time_base: Fraction, rate: Fraction
) -> None:
    """Compare with the definition, tick by tick, in exact arithmetic."""
    end_pts = int(pts_N[-1]) + 1
    ticks = min(500, int((end_pts - int(pts_N[0])) * time_base * rate) + 1)
    on_screen = {
        int(np.searchsorted(pts_N, int(pts_N[0]) + int(k / rate / time_base), side="right")) - 1
        for k in range(ticks)
        if k / rate < (end_pts - int(pts_N[0])) * time_base
    }
    chosen = select_frames(Sampling("fps", rate=rate), pts_N, time_base=time_base, end_pts=end_pts)
    if ticks < 500:
        assert chosen.tolist() == sorted(on_screen)
    else:
        assert on_screen <= set(chosen.tolist())


@pytest.mark.parametrize(
    ("start", "end"), [(0, 2**62), (0, 2**55), (-(2**54), 2**54), (2**61, 2**63 - 50)]
)
def test_a_timestamp_of_a_thousand_years_costs_nothing(start: int, end: int) -> None:
    """Products of timestamps and the rate are exact where 64 bits do not hold them."""
    pts_N = np.array([start, start + 40, end], np.int64)
    chosen = select_frames(
        Sampling.parse("fps:30"), pts_N, time_base=Fraction(1001, 1000), end_pts=end + 40
    )
    assert chosen.tolist() == [0, 1, 2]


@pytest.mark.parametrize("end_pts", [-100, 0, 49, 50])
def test_the_last_frame_is_on_screen_though_the_stream_is_said_to_end_before(end_pts: int) -> None:
    pts_N = np.array([0, 25, 50], np.int64)
    chosen = select_frames(
        Sampling.parse("fps:1"), pts_N, time_base=Fraction(1, 25), end_pts=end_pts
    )
    assert chosen.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("end_pts", "expected"), [(-100, [0]), (24, [0]), (25, [0]), (26, [0, 1])])
def test_a_tick_at_the_very_end_takes_no_frame(end_pts: int, expected: list[int]) -> None:
    """The last frame lasts one unit if the stream is said to end before; its tick is at 25."""
    pts_N = np.array([0, 24], np.int64)
    chosen = select_frames(
        Sampling.parse("fps:1"), pts_N, time_base=Fraction(1, 25), end_pts=end_pts
    )
    assert chosen.tolist() == expected


def test_every_and_keyframes() -> None:
    pts_N = np.arange(10, dtype=np.int64)
    key_N = np.array([0, 0, 1, 0, 0, 1, 0, 0, 0, 1], bool)
    every = Sampling.parse("every:4")
    for sampling in (every, pickle.loads(pickle.dumps(every))):  # as children get it
        chosen = select_frames(sampling, pts_N, time_base=Fraction(1, 25), end_pts=10)
        assert chosen.tolist() == [0, 4, 8]
    chosen = select_frames(
        Sampling.parse("keyframes"), pts_N, time_base=Fraction(1, 25), end_pts=10, key_N=key_N
    )
    assert chosen.tolist() == [0, 2, 5, 9]  # the first frame, key frame or not


@pytest.mark.parametrize("text", ["fps:1", "every:2", "keyframes", "scenes"])
def test_of_no_frame_there_is_none_and_of_one_it_is_it(text: str) -> None:
    for pts_N in (np.array([], np.int64), np.array([7], np.int64)):
        key_N = np.zeros(pts_N.size, bool)
        chosen = select_frames(
            Sampling.parse(text), pts_N, time_base=Fraction(1), end_pts=8, key_N=key_N
        )
        assert chosen.tolist() == [0] * pts_N.size
        assert chosen.dtype == np.int64


def test_keyframes_must_be_known() -> None:
    with pytest.raises(ValueError, match="keyframes sampling needs key_N"):
        select_frames(Sampling.parse("keyframes"), np.arange(3), time_base=Fraction(1), end_pts=3)


@given(
    pts_N=timestamps(),
    time_base=st.sampled_from(TIME_BASES),
    scores=st.lists(st.floats(0, 255), min_size=81, max_size=81),
)
def test_scenes_hold_the_ends_of_each_shot_and_no_gap_is_too_long(
    pts_N: IntArray, time_base: Fraction, scores: list[float]
) -> None:
    scores_N = np.array(scores[: pts_N.size])
    cuts = np.array(cuts_of(scores_N, pts_N.tolist(), time_base), np.int64)
    starts = [int(pts_N[0]), *pts_N[cuts].tolist()]
    assert (scores_N[cuts] >= THRESHOLD).all()
    assert all(b - a >= SHORTEST_SHOT_SECONDS / time_base for a, b in pairwise(starts))
    chosen = scenes_of(pts_N, cuts, time_base)
    check(chosen, pts_N.size)
    assert {*cuts, *(cuts - 1), pts_N.size - 1} <= set(chosen.tolist())
    for a, b in pairwise(chosen.tolist()):
        # A longer gap is one between neighbouring frames, plus what is on screen for longest.
        longest = int(np.diff(pts_N[a : b + 1]).max())
        assert (int(pts_N[b]) - int(pts_N[a])) * time_base <= (
            SCENE_MAX_GAP_SECONDS + 2 * longest * time_base
        )


def samples_of_a_shot(frames: int, late: int = 0, begins: int = 0) -> tuple[list[int], int]:
    """Samples of even footage, 25 frames a second, and how many frames were held at once.

    All but the first frame are late by a number of hundredths of a second.
    """

    class Frame:
        pass

    sampler = SceneSampler[tuple[int, Frame]](Fraction(1, 100))
    held = weakref.WeakSet[Frame]()
    chosen: list[int] = []
    most = 0
    for number in range(frames):
        held.add(frame := Frame())
        pts = begins + 4 * number + (late if number else 0)
        chosen += [n for n, _ in sampler.add(pts, (number, frame), begins_shot=False)]
        del frame
        most = max(most, len(held))
    return chosen + [n for n, _ in sampler.finish()], most


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 10, 24, 37, 100, 250, 251, 252, 300, 366, 400, 401])
def test_a_shot_of_up_to_sixteen_seconds_is_its_ends_and_middle(frames: int) -> None:
    chosen, held = samples_of_a_shot(frames)
    if frames < 3:
        assert chosen == [*range(frames)]
        return
    first, middle, last = chosen
    assert (first, last) == (0, frames - 1)
    assert abs(2 * middle - last) <= max(1, last / 9 + 1)
    assert held <= 6, "memory is that of a few frames"


@pytest.mark.parametrize("begins", [-70_000, 70_000])
@pytest.mark.parametrize("frames", [37, 300, 500])
def test_when_a_shot_begins_makes_no_difference(frames: int, begins: int) -> None:
    assert samples_of_a_shot(frames, begins=begins) == samples_of_a_shot(frames)


@pytest.mark.parametrize("late", [1, 2, 3])
def test_memory_is_that_of_a_few_frames_at_uneven_times(late: int) -> None:
    """No frame comes exactly when twice the time of another one has passed."""
    assert samples_of_a_shot(400, late)[1] <= 6


@pytest.mark.parametrize("frames", [402, 500, 750, 1001, 2500, 5000])
def test_a_long_shot_has_a_sample_every_eight_to_ten_seconds(frames: int) -> None:
    chosen, held = samples_of_a_shot(frames)
    assert (chosen[0], chosen[-1]) == (0, frames - 1)
    gaps = np.diff(chosen)
    assert gaps.max() <= 250
    assert gaps[:-2].min() >= 200
    assert gaps[-2:].sum() > 100
    assert held <= 6


@pytest.mark.parametrize(
    ("frames", "seconds"), [(9, [0, 8, 16]), (10, [0, 10, 14, 18]), (16, [0, 10, 20, 24, 30])]
)
def test_a_gap_of_exactly_ten_seconds_is_allowed(frames: int, seconds: list[int]) -> None:
    """A frame every two seconds."""
    pts_N = np.arange(0, 2 * frames, 2, dtype=np.int64)
    chosen = select_frames(
        Sampling.parse("scenes"), pts_N, time_base=Fraction(1), end_pts=2 * frames
    )
    assert pts_N[chosen].tolist() == seconds


def test_scenes_of_even_footage() -> None:
    pts_N = np.arange(0, 3000, dtype=np.int64)  # 25 a second: two minutes
    chosen = scenes_of(pts_N, np.array([100, 1600]), Fraction(1, 25))
    first, middle, *ends = chosen[:4].tolist()
    assert [first, *ends] == [0, 99, 100]
    assert 43 <= middle <= 56
    assert {1599, 1600, 2999} <= set(chosen.tolist())
    assert np.diff(chosen).max() <= 251


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("fps:1", "fps:1"),
        (" FPS:1.0 ", "fps:1"),
        ("fps:0.5", "fps:1/2"),
        ("fps:.25", "fps:1/4"),
        ("fps:30000/1001", "fps:30000/1001"),
        ("fps:1000", "fps:1000"),
        ("every:1", "every:1"),
        ("every:007", "every:7"),
        ("keyframes", "keyframes"),
        ("Scenes", "scenes"),
    ],
)
def test_text_and_back(text: str, canonical: str) -> None:
    sampling = Sampling.parse(text)
    assert str(sampling) == canonical
    assert Sampling.parse(canonical) == sampling


@pytest.mark.parametrize(
    "text",
    [
        *("", "fps", "fps:", "fps:0", "fps:-1", "fps:1/0", "fps:nan", "fps:inf", "fps:1e3"),
        *("fps:1001", "every:0", "every:1.5", "every:-3", "every:", "keyframes:2", "scenes:"),
        *("hourly", "days:7", "seconds:7"),
    ],
)
def test_what_is_not_a_sampling(text: str) -> None:
    with pytest.raises(SettingsError, match="SIGLIP_SAMPLING"):
        Sampling.parse(text)
