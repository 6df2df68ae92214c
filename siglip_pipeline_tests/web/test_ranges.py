"""Which bytes a request asks for."""

import pytest

from siglip_pipeline.web.ranges import ByteRange, UnsatisfiableRangeError, parse_range

SIZE = 1000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-99", (0, 100)),
        ("bytes=990-", (990, 1000)),
        ("bytes=-10", (990, 1000)),
        ("bytes=-5000", (0, 1000)),
        ("bytes=0-5000", (0, 1000)),
        ("bytes=999-999", (999, 1000)),
        ("BYTES=5-6", (5, 7)),
        ("bytes= 5-6 ", (5, 7)),
        ("bytes=998-999", (998, 1000)),
        ("bytes=998-1000", (998, 1000)),
        ("bytes=0-0", (0, 1)),
        ("bytes=-1", (999, 1000)),
        ("bytes=-1000", (0, 1000)),
        ("bytes=0-" + "9" * 19, (0, 1000)),
        (None, None),
        ("", None),
        ("bytes=-", None),
        ("bytes=9-5", None),
        ("bytes=0-1,5-6", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=0-" + "9" * 20, None),
    ],
)
def test_ranges(header: str | None, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, SIZE) == (None if expected is None else ByteRange(*expected))


@pytest.mark.parametrize(
    "header", ["bytes=1000-", "bytes=1000-1000", "bytes=5000-6000", "bytes=-0"]
)
def test_ranges_outside_of_the_file(header: str) -> None:
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, SIZE)


def test_of_an_empty_file_there_is_no_part() -> None:
    assert parse_range(None, 0) is None
    for header in ("bytes=0-", "bytes=0-0", "bytes=-1"):
        with pytest.raises(UnsatisfiableRangeError):
            parse_range(header, 0)


def test_a_range_tells_its_length_and_where_it_lies() -> None:
    part = ByteRange(5, 8)
    assert len(part) == 3
    assert part.content_range(10) == "bytes 5-7/10"
