"""Thresholds of standing queries: the moments that are shown, the answers, and what they give."""

import json
from typing import Any

import pytest

from siglip_pipeline.errors import QueryError
from siglip_pipeline.search import Hit, SearchFilter, SearchOptions, SearchResult, SearchService
from siglip_pipeline.search.calibrating import (
    Answer,
    JudgedMoment,
    calibrate,
    command_of,
    judge,
    moments_around,
    read_answers,
    wilson,
)
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.watches import Watch, WatchStore
from siglip_pipeline_tests.search.test_service import MadeTexts
from siglip_pipeline_tests.search.test_watching import QUERY
from siglip_pipeline_tests.store import made


def judged(text: str) -> list[JudgedMoment]:
    """Judged moments: ``0.9+`` fits, ``0.8-`` does not."""
    return [
        JudgedMoment(probability=float(word[:-1]), fits=word.endswith("+")) for word in text.split()
    ]


@pytest.mark.parametrize(
    ("answers", "threshold", "above", "right"),
    [
        ("0.9+ 0.8+ 0.4- 0.2-", 0.6, 2, 2),
        ("0.4- 0.9+ 0.2- 0.8+", 0.6, 2, 2),  # in any order
        ("0.9+ 0.8- 0.6+ 0.4+ 0.2-", 0.3, 4, 3),
        ("0.9+ 0.8- 0.6+", 0.85, 1, 1),  # one mistake either way: the stricter one
        ("0.9+ 0.7+", 0.7, 2, 2),
        ("0.9- 0.7-", 0.95, 0, 0),
        ("0.5+ 0.5- 0.5- 0.5-", 0.75, 0, 0),  # equal ones are on one side
        ("0.9+ 0.5- 0.5+ 0.5+ 0.2-", 0.35, 4, 3),
        ("1.0+ 1.0-", 1.0, 2, 1),
    ],
)
def test_the_threshold_makes_the_fewest_mistakes(
    answers: str, threshold: float, above: int, right: int
) -> None:
    found = calibrate(judged(answers), model_key="m")
    assert found.min_probability == pytest.approx(threshold)
    assert (found.above, found.right) == (above, right)
    assert found.precision == (None if above == 0 else right / above)
    assert (found.low, found.high) == wilson(right, above)


def test_the_interval_is_wilsons() -> None:
    # Newcombe 1998, table I.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(QueryError, match="no moment was judged"):
        calibrate([], model_key="m")


def test_the_moments_around_the_threshold_are_shown(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.collection(database, videos=20)
    build_index(database, 1, options=made.index_options(index_min_recall=0.0))
    service = SearchService(
        database, SearchOptions.from_settings(made.settings()), embedder=MadeTexts()
    )
    store = WatchStore(database)
    every = service.by_text(QUERY, k=1000, filter=SearchFilter(min_probability=0.0)).hits
    assert len(every) > 40
    asked: list[int] = []
    search = SearchService.by_vector

    def by_vector(*given: Any, k: int, **options: Any) -> SearchResult:
        asked.append(k)
        return search(*given, k=k, **options)

    monkeypatch.setattr(SearchService, "by_vector", by_vector)
    for above in (0, 3, 20, len(every)):
        least = 1.0 if above == 0 else every[above - 1].probability
        watch: Watch = store.add(f"{above}", QUERY, min_probability=least)
        asked.clear()
        shown = moments_around(service, watch)
        assert asked == ([40] if above < 40 else [40, 200]), "no more hits than decide"
        first = max(0, min(above - 10, len(every) - 20))
        assert [h.score for h in shown] == [h.score for h in every[first : first + 20]]


def test_answers_are_read_and_what_is_none_is_named() -> None:
    [hit] = [
        Hit(
            video="a.mp4",
            video_id=1,
            time_seconds=1,
            frame_index=25,
            score=0.1,
            probability=0.4,
            start_seconds=0,
            end_seconds=2,
            media_time_seconds=1,
        )
    ]
    line = '{"video": "a.mp4", "frame_index": 25, "fits": true}'
    assert judge(read_answers([line, "\n"]), [hit]) == [JudgedMoment(probability=0.4, fits=True)]
    for wrong, said in (
        ("{", "line 2: give a JSON object"),
        ("[]", "line 2: give a JSON object"),
        (line.replace("true", '"yes"'), "line 2: fits='yes' is neither true nor false"),
        (line.replace('"a.mp4"', "[]"), r"line 2: video=\[\], frame_index=25: give a text"),
        (line.replace("25", "true"), "line 2: video='a.mp4', frame_index=True: give a text"),
        (line, "line 2: frame 25 of 'a.mp4' was answered before; give one answer"),
        (line.replace("25", "26"), "line 2: frame 26 of 'a.mp4' is none of the moments around"),
    ):
        with pytest.raises(QueryError, match=said):
            judge(read_answers([line, wrong]), [hit])


def test_the_command_holds_the_answers() -> None:
    answers = [
        Answer(video="a \u202e'END'\n.mp4", frame_index=25, fits=True),
        Answer(video="b.mp4", frame_index=0, fits=False),
    ]
    first, *lines, last = command_of("it's $(gate)", answers).split("\n")
    assert first == """siglip-pipeline watch calibrate 'it'"'"'s $(gate)' --answers - <<'END'"""
    assert [answer for _, answer in read_answers(lines)] == answers
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert last == "END"
    assert json.loads(lines[1]) == {"video": "b.mp4", "frame_index": 0, "fits": False}
