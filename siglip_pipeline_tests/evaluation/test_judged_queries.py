"""Files of judged queries: what they may say, and what is said of those that do not fit."""

from pathlib import Path

import pytest

from siglip_pipeline.errors import JudgedQueriesError
from siglip_pipeline.evaluation.judged_queries import read_json_lines
from siglip_pipeline.hits import Moment
from siglip_pipeline.search import ImageTerm, MomentTerm, TextTerm
from siglip_pipeline_tests.evaluation.conftest import write_lines

GOOD = '{"query": "a red car", "relevant": [{"video": "a.mp4"}]}'


def test_every_kind_of_query_is_read(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "judged.jsonl",
        '{"query": "a car", "tags": ["cars"], "relevant":'
        ' [{"video": "a.mp4", "start_seconds": 1, "end_seconds": 4.5, "grade": 2}]}',
        "",
        '{"query": {"image": "red.png"}, "relevant": [{"video": "a.mp4"}], "videos": ["*.mp4"]}',
        '{"query": {"like": "b@1.mp4@12.5"}, "relevant": []}',
        r'{"query": "+\"snow\" -\"people\"", "relevant": []}',
        '{"query": {"text": "snow", "image": "red.png"}, "relevant": []}',
    )
    text, picture, moment, mix, both = read_json_lines(path)
    assert text.terms == (TextTerm("a car"),)
    assert (text.line, text.tags) == (1, ("cars",))
    [relevant] = text.relevant
    assert (relevant.start_seconds, relevant.end_seconds, relevant.grade) == (1, 4.5, 2)
    assert relevant.has_times
    assert picture.terms == (ImageTerm(tmp_path / "red.png"),), "beside the file"
    assert (picture.line, picture.videos) == (3, ("*.mp4",))
    assert not picture.relevant[0].has_times
    assert moment.own_moment == Moment(video="b@1.mp4", time_seconds=12.5)
    assert mix.terms == (TextTerm("snow"), TextTerm("people", -1.0))
    assert both.terms == (TextTerm("snow"), ImageTerm(tmp_path / "red.png"))
    assert both.own_moment is None
    assert MomentTerm("b@1.mp4", 12.5) in moment.terms


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'query': 1}", "line 2: no JSON .*; give one JSON object"),
        ("7", "line 2: 7: .*give a JSON object"),
        ('{"relevant": []}', "line 2: query is missing"),
        ('{"query": "x"}', "line 2: relevant is missing"),
        ('{"query": "  ", "relevant": []}', "line 2: the query text is empty"),
        ('{"query": {}, "relevant": []}', "line 2: the query is empty; give text, image, like"),
        ('{"query": {"like": "a.mp4"}, "relevant": []}', "line 2: 'a.mp4' is not VIDEO@SECONDS"),
        ('{"query": 7, "relevant": []}', "line 2: query=7"),
        (
            '{"quary": "x", "query": "x", "relevant": []}',
            "line 2: there is no field quary; allowed are query, relevant, tags, videos",
        ),
        (
            '{"query": "x", "relevant": [{"video": "a", "start": 1}]}',
            r"no field relevant\[0\].start; allowed are video, start_seconds, end_seconds, grade",
        ),
        (
            '{"query": {"txt": "x"}, "relevant": []}',
            "no field query.txt; allowed are text, image, like",
        ),
        ('{"query": "x", "relevant": [{}]}', r"line 2: relevant\[0\].video is missing"),
        (
            '{"query": "x", "relevant": [{"video": "a", "grade": 0}]}',
            r"line 2: relevant\[0\].grade=0: input should be greater than or equal to 1",
        ),
        (
            '{"query": "x", "relevant": [{"video": "a", "start_seconds": "1", "end_seconds": 2}]}',
            r"relevant\[0\].start_seconds='1': input should be a valid number",
        ),
        (
            '{"query": "x", "relevant": [{"video": "a", "start_seconds": 4, "end_seconds": 4}]}',
            "line 2: start_seconds=4 is not before end_seconds=4",
        ),
        (
            '{"query": "x", "relevant": [{"video": "a", "end_seconds": 4}]}',
            "line 2: a relevant moment needs both start_seconds and end_seconds, or neither",
        ),
        (
            '{"query": "x", "relevant": [{"video": "a", "start_seconds": 1, "end_seconds": NaN}]}',
            r"end_seconds=nan: input should be .*finite",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    path = write_lines(tmp_path / "judged.jsonl", GOOD, line)
    with pytest.raises(JudgedQueriesError, match=said):
        read_json_lines(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(JudgedQueriesError, match=r"absent\.jsonl cannot be read: No such file"):
        read_json_lines(tmp_path / "absent.jsonl")
    empty = write_lines(tmp_path / "empty.jsonl", "", "")
    with pytest.raises(JudgedQueriesError, match="holds no queries; give one JSON object a line"):
        read_json_lines(empty)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(GOOD.encode() + b'\n{"query": "caf\xe9"}')
    with pytest.raises(JudgedQueriesError, match="line 2: not UTF-8"):
        read_json_lines(latin)
