"""Sizes, durations and times as people say them."""

from datetime import UTC, datetime, timedelta

import pytest

from siglip_pipeline.text.in_words import ago_in_words, duration_in_words, size_in_words


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9_960, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_234_567_890, "1.2 GB"),
        (45_600_000_000_000, "46 TB"),
        (9_876_543_000_000_000_000, "9,877 PB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size_in_words(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3599.6, "1 h"),
        (7500, "2 h 5 min"),
        (86_399, "1 day"),
        (100_000, "1 day 4 h"),
        (864_000, "10 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_in_words(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),  # another machine's clock is ahead
        (59, "just now"),
        (60, "1 minute ago"),
        (7300, "2 hours ago"),
        (86_399, "23 hours ago"),
        (86_400, "1 day ago"),
        (2_591_999, "29 days ago"),
        (2_592_000, "on 2026-01-31"),
    ],
)
def test_moments(seconds: float, text: str) -> None:
    now = datetime(2026, 3, 2, 12, tzinfo=UTC)
    assert ago_in_words(now - timedelta(seconds=seconds), now) == text
