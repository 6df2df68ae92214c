"""Queries as people write them."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_pipeline.errors import QueryError
from siglip_pipeline.search import (
    ImageTerm,
    MomentTerm,
    SequenceTerm,
    TextTerm,
    parse_moment,
    parse_query,
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a red car", [TextTerm("a red car")]),
        ("a red-haired woman - not 'old'", [TextTerm("a red-haired woman - not 'old'")]),
        ('a "quoted" word', [TextTerm('a "quoted" word')]),
        ("+1 dog", [TextTerm("+1 dog")]),
        ('+"snow"', [TextTerm("snow")]),
        ('+"snow" -"people"', [TextTerm("snow"), TextTerm("people", -1)]),
        ('  -"people"^0.5+"deep snow"^2 ', [TextTerm("people", -0.5), TextTerm("deep snow", 2)]),
        (r'+"a \"b\" \\ c"', [TextTerm('a "b" \\ c')]),
        ('+"a"^.25', [TextTerm("a", 0.25)]),
    ],
)
def test_texts_and_mixes(text: str, parts: list[TextTerm]) -> None:
    assert parse_query(text) == parts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ('+""', "empty"),
        ('-"people"', "at least one term to look for"),
        ('+"snow" people', "cannot be read from 'people'"),
        ('+"snow', r"cannot be read from '\+\"snow' on"),
        ('+"snow"x', r"cannot be read from '\+\"snow\"x' on"),
        ('+"snow"^', "weight"),
        ('+"snow"^0', "not a number above 0"),
        ('+"snow"^1e5', "weight"),
        ('+"snow"^two', r"\^two"),
    ],
)
def test_faults_are_shown(text: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        parse_query(text)


weights = st.integers(1, 10**6).map(lambda n: n / 1000)
texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30
).filter(lambda text: text.strip() != "")
parts = st.builds(
    lambda text, weight, negative: TextTerm(text, -weight if negative else weight),
    texts,
    weights,
    st.booleans(),
)


def _format_query(terms: Sequence[TextTerm]) -> str:
    """Return the text that ``parse_query`` reads as these parts; weights to six digits."""
    written = []
    for term in terms:
        quoted = term.text.replace("\\", "\\\\").replace('"', '\\"')
        size = f"{abs(term.weight):.6f}".rstrip("0").rstrip(".")
        boost = "" if size == "1" else f"^{size}"
        written.append(f'{"+" if term.weight > 0 else "-"}"{quoted}"{boost}')
    return " ".join(written)


@settings(max_examples=300)
@given(st.lists(parts, min_size=1, max_size=5))
def test_what_is_written_is_read_back(mix: list[TextTerm]) -> None:
    mix = [TextTerm("first"), *mix]
    assert parse_query(_format_query(mix)) == mix


@settings(max_examples=500)
@given(st.text(alphabet='+-"\\^. ab12', max_size=25))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read = parse_query(text)
    except QueryError:
        return
    assert any(term.weight > 0 for term in read)
    for term in read:
        assert isinstance(term, TextTerm)
        assert term.text.strip()
        assert math.isfinite(term.weight)


def test_a_sequence_is_read() -> None:
    assert parse_query('"a car" then "a dog"') == [SequenceTerm(("a car", "a dog"))]
    [three] = parse_query(r' "a \"b\"" then "c"  then "d" within 2.5 s ')
    assert three == SequenceTerm(('a "b"', "c", "d"), 2.5)
    assert parse_query('"a car" and then') == [TextTerm('"a car" and then')], "used as it is"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"a" then b', "cannot be read from 'b' on: give a quoted text after then"),
        ('"a" then "b" then', "cannot be read from 'then' on"),
        ('"a" then "b" within 5m', "cannot be read from 'within 5m' on: it may end with within"),
        ('"a" then "b" within 0s', "within 0s: more than 0, at most 3600 s"),
        ('"a" then " "', "the query text is empty"),
        (" then ".join('"a"' for _ in range(9)), "a sequence has 2 to 8 texts, not 9"),
    ],
)
def test_a_sequence_with_a_mistake_is_refused(text: str, said: str) -> None:
    with pytest.raises(QueryError) as refused:
        parse_query(text)
    assert said in str(refused.value)


def test_how_long_a_sequence_may_be() -> None:
    assert SequenceTerm(("a", "b")).within_seconds == 60
    assert SequenceTerm(tuple("abcdefgh"), 3600).weight == 1
    assert SequenceTerm(("a", "b"), 1e-3).within_seconds == 1e-3
    with pytest.raises(QueryError, match="a sequence has 2 to 8 texts, not 1"):
        SequenceTerm(("a",))
    for seconds in (-1, 3600.5, math.nan):
        with pytest.raises(QueryError, match="more than 0, at most 3600 s"):
            SequenceTerm(("a", "b"), seconds)


def test_a_picture_is_named_by_what_is_known_of_it() -> None:
    assert ImageTerm(b"12345").name == "5 bytes"
    assert ImageTerm(Path("a/b.jpg")).name == "a/b.jpg"
    assert ImageTerm(np.zeros((3, 5, 3), np.uint8)).name == "5 x 3 pixels"


@pytest.mark.parametrize("weight", [0.0, -0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "term",
    [
        partial(TextTerm, "snow"),
        partial(MomentTerm, "a.mp4", 1),
        partial(ImageTerm, b"picture"),
    ],
)
def test_weights_that_mean_nothing(term: Callable[[float], object], weight: float) -> None:
    with pytest.raises(QueryError, match=f"weight {weight} of .*: any number but 0"):
        term(weight)
    term(-1e-3)


# Infinity as it is read, which is not the object `math.inf`.
@pytest.mark.parametrize("seconds", [-0.001, math.nan, float("inf")])
def test_moments_at_times_that_no_video_has(seconds: float) -> None:
    with pytest.raises(QueryError, match="a time within a video is 0 s or later"):
        MomentTerm("a.mp4", seconds)
    MomentTerm("a.mp4", 0)


def test_moments() -> None:
    assert parse_moment("a.mp4@0") == ("a.mp4", 0.0)
    assert parse_moment("me@home/b.mp4@12.5") == ("me@home/b.mp4", 12.5)
    for wrong in ("b.mp4", "@3", "b.mp4@", "b.mp4@-1", "b.mp4@inf", "b.mp4@nan"):
        with pytest.raises(QueryError, match="VIDEO@SECONDS"):
            parse_moment(wrong)
