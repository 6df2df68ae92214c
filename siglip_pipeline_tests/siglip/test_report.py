"""Counting with a clock that the test holds."""

import pytest

from siglip_pipeline.defs.metadata import engine_metadata
from siglip_pipeline.siglip.engine_report import Meter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def batch(meter: Meter, frames: int, *, busy: float = 0.0) -> None:
    meter.batch(frames=frames, capacity=8, busy_seconds=busy, patches=30 * frames, padding=frames)


def test_an_estimate_of_the_time_left(clock: Clock) -> None:
    meter = Meter(clock=clock)
    assert meter.progress(100).seconds_left is None
    clock.now += 5
    batch(meter, 20)
    progress = meter.progress(100)
    assert progress.frames_per_second == 4
    assert progress.seconds_left == 20
    assert str(progress) == (
        "20 of 100 frames embedded, 0 videos done, 4.0 frames/s, about 20 s left"
    )
    assert str(meter.progress(None)) == "20 frames embedded, 0 videos done, 4.0 frames/s"
    assert meter.progress(10).seconds_left == 0, "more frames than were announced"


@pytest.mark.parametrize(
    ("total", "says"), [(20 + 4 * 600, "about 10 min left"), (20 + 4 * 7200, "about 2 h left")]
)
def test_long_estimates_are_not_in_seconds(total: int, says: str, clock: Clock) -> None:
    meter = Meter(clock=clock)
    clock.now += 5
    batch(meter, 20)
    assert says in str(meter.progress(total))


def test_shares(clock: Clock) -> None:
    meter = Meter(workers=2, clock=clock)
    clock.now += 1
    batch(meter, 8, busy=1.5)
    batch(meter, 4, busy=0.5)
    clock.now += 1
    meter.stop()
    clock.now += 50
    found = meter.report(
        batch_size=8,
        out_of_memory_count=1,
        device="a, b",
        device_name="c, d",
        dtype="bfloat16",
        peak_memory_bytes=7,
        decoder="2 threads",
        forward="eager",
        notes=(),
    )
    assert found.seconds == 2
    assert found.frames_per_second == 6
    assert found.model_busy_share == 0.5
    assert found.padding_share == pytest.approx(12 / (12 + 360))
    assert found.batch_fill_share == 0.75
    assert found.throughput[-1].seconds == 2
    assert engine_metadata(found)["device_name"] == "c, d"


@pytest.mark.parametrize("seconds", [3, 239, 240, 1000, 100_000])
def test_the_series_stays_short_and_keeps_every_frame(seconds: int, clock: Clock) -> None:
    meter = Meter(clock=clock)
    for _ in range(min(seconds, 2000)):
        clock.now += seconds / min(seconds, 2000)
        batch(meter, 2)
    meter.stop()
    series = meter.report(
        batch_size=8,
        out_of_memory_count=0,
        device="cpu",
        device_name="a CPU",
        dtype="float32",
        peak_memory_bytes=1,
        decoder="2 threads",
        forward="eager",
        notes=(),
    ).throughput
    assert len(series) <= 240
    begin, frames = 0.0, 0.0
    for point in series:
        frames += point.frames_per_second * (point.seconds - begin)
        begin = point.seconds
    # A frame that arrives at the last instant has no interval of its own yet.
    assert frames == pytest.approx(2 * min(seconds, 2000), abs=2.01)
    assert begin == pytest.approx(seconds)


def test_videos_are_counted_by_outcome(clock: Clock) -> None:
    meter = Meter(clock=clock)
    meter.video(failed=False)
    meter.video(failed=True)
    assert (meter.videos, meter.failed_videos) == (1, 1)
    assert meter.progress(None).videos == 2
