"""What people read: timecodes and tables."""

from types import SimpleNamespace

import pytest

from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import Hit, Moment, QueryShown, player_path
from siglip_pipeline.search import parse_moment
from siglip_pipeline.terminal.console import FoldingTable, PlainConsole, hits_table, models_table
from siglip_pipeline.terminal.documents import ListedModel
from siglip_pipeline.terminal.progress import ProgressLines, StageCounts
from siglip_pipeline.text.timecode import timecode


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00.0"),
        (59.96, "1:00.0"),
        (61.25, "1:01.2"),
        (3599.99, "1:00:00.0"),
        (36_000, "10:00:00.0"),
    ],
)
def test_timecode(seconds: float, text: str) -> None:
    assert timecode(seconds) == text


def test_hits_are_rows_with_their_marks() -> None:
    hit = Hit(
        video="a.mp4",
        video_id=1,
        time_seconds=61.2,
        frame_index=3,
        score=0.5,
        probability=0.25,
        start_seconds=60,
        end_seconds=63,
        media_time_seconds=63.2,
    )
    table = hits_table("query", [hit, hit], mark={1: "right"})
    assert table.row_count == 2
    assert [next(iter(column.cells)) for column in table.columns] == [
        *("a.mp4", "1:03.2", "1:02.0 – 1:05.0", "0.500", "25.0%", "")
    ]
    assert list(table.columns[-1].cells) == ["", "right"]


def test_the_page_of_a_hit_is_that_of_its_own_frame() -> None:
    """Six digits, as `%g` writes, are a frame off after three hours, and seconds after 12 days."""
    assert player_path(7, 12.0) == "videos/7?t=12"
    assert player_path(7, 10811.467) == "videos/7?t=10811.467"
    assert player_path(7, 1_048_575.983) == "videos/7?t=1048575.983"


def test_hits_of_pictures_have_no_probability() -> None:
    """It was trained for texts; of pictures it is nearly always 100%."""
    assert [column.header for column in hits_table("", [], rates_text=False).columns] == [
        *("video", "at", "moment", "score")
    ]
    assert not QueryShown(image="a.jpg").rates_text
    assert not QueryShown(like=Moment(video="a.mp4", time_seconds=3)).rates_text
    assert QueryShown(text="a dog").rates_text
    assert QueryShown(vector="text").rates_text


def test_no_table_cuts_names(capsys: pytest.CaptureFixture[str]) -> None:
    name = "holiday/" + "0123456789" * 9 + ".mp4"
    table = FoldingTable()
    for column in ("video", "is in"):
        table.add_column(column)
    narrow = PlainConsole()
    narrow.width = 60
    for shown_table in (table, FoldingTable.of_facts()):
        shown_table.add_row(name, name)
        narrow.print(shown_table)
        folded = capsys.readouterr().out
        assert "…" not in folded
        assert folded.count("mp4") == 2


def test_facts_end_with_their_text(capsys: pytest.CaptureFixture[str]) -> None:
    """One long name in `status` made each line of it as long, where it was piped to a file."""
    facts = FoldingTable.of_facts()
    facts.add_row("frames", "829")
    facts.add_row("failed", "a" * 250 + " b")
    facts.add_row("refused", "")
    PlainConsole().print(facts)
    assert capsys.readouterr().out.splitlines() == [
        " frames   829",
        f" failed   {'a' * 250} b",
        " refused",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.mp4@12.5", ("a.mp4", 12.5)), ("me@home/b@c.mp4@0", ("me@home/b@c.mp4", 0.0))],
)
def test_moments_are_split_at_the_last_at_sign(text: str, expected: tuple[str, float]) -> None:
    assert parse_moment(text) == expected


@pytest.mark.parametrize("text", ["a.mp4", "@3", "a.mp4@", "a.mp4@x", "a@-1", "a@nan", "a@inf"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(QueryError, match="VIDEO@SECONDS"):
        parse_moment(text)


def test_keys_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    key = "google-siglip2-so400m-patch14-384-" + "0123456789abcdef" * 4
    model = ListedModel(
        name="/a/very/long/folder/of/models/" * 5,
        revision=None,
        key=key,
        dim=1152,
        active=True,
        generation=1,
        embedded=1,
        missing=0,
        failed=0,
        vectors=9,
    )
    PlainConsole().print(models_table([model]))
    assert key in capsys.readouterr().out
    narrow = PlainConsole()
    narrow.width = 60
    narrow.print(models_table([model]))
    folded = capsys.readouterr().out
    assert "…" not in folded
    column = [line.split("│")[3].strip() for line in folded.splitlines() if line.count("│") > 5]
    assert "".join(column) == key


def test_progress_without_a_terminal_is_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siglip_pipeline.terminal.progress.err", PlainConsole(stderr=True))
    counts = StageCounts(expected=12, known=12, decoded=5, embedded=3, failed=1)
    status = SimpleNamespace(is_index_current=False)
    lines = ProgressLines(seconds=3600)
    lines.show(counts, status)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    ProgressLines(seconds=0).show(counts, status)  # type: ignore[arg-type]
    assert capsys.readouterr().err == (
        "frames of 5 of 12 videos, vectors of 3, 1 failed; the index is not up to date yet\n"
    )
