"""The terms of a mixed query, and their syntax: ``+"snow" -"people"^0.5``."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import check_text
from siglip_pipeline.search.query_pictures import Picture

_TERM = re.compile(
    r"""\s*(?P<sign>[+-])"(?P<text>(?:[^"\\]|\\.)*)"(?:\^(?P<weight>[^\s+"-]*))?(?=\s|[+-]"|$)""",
    re.DOTALL,
)
_IS_MIX = re.compile(r'\s*[+-]"')
_IS_SEQUENCE = re.compile(r"\s*\"(?:[^\"\\]|\\.)*\"\s+then\b", re.DOTALL)
_STEP = re.compile(r"\s*\"(?P<text>(?:[^\"\\]|\\.)*)\"(?:\s+(?P<then>then)(?=\s))?", re.DOTALL)
_WITHIN = re.compile(r"\s*(?:within\s+(?P<seconds>\d{1,6}(?:\.\d+)?)\s*s)?\s*")
_SEQUENCE = """e.g. "a red car stops" then "a person gets out" within 30s"""
WITHIN_SECONDS = 60.0
"""Longest time from one moment of a sequence to the next, where the query gives none."""
MAX_WITHIN_SECONDS = 3600.0
MAX_STEPS = 8
SEQUENCE_ALONE = (
    "a sequence is a query of its own: it cannot be mixed with other terms, proved or explained"
)
_EXAMPLE = """e.g. +"snow" -"people"^0.5"""


@dataclass(frozen=True, slots=True)
class TextTerm:
    """Words for what a moment shows; with a negative weight, for what it must not show."""

    text: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise QueryError("the query text is empty; say what to look for, e.g. 'a red car'")
        check_text(self.text)
        _check_weight(self.text, self.weight)


@dataclass(frozen=True, slots=True)
class ImageTerm:
    """A picture: a file, its bytes, or pixels."""

    image: Picture
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weight(self.name, self.weight)

    @property
    def name(self) -> str:
        """Return a name for messages and for the query of a result."""
        if isinstance(self.image, bytes):
            return f"{len(self.image)} bytes"
        if isinstance(self.image, Path):
            return str(self.image)
        height, width, _ = self.image.shape
        return f"{width} x {height} pixels"


@dataclass(frozen=True, slots=True)
class MomentTerm:
    """A moment of an indexed video: the stored frame nearest to ``seconds``."""

    video: str
    seconds: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_text(self.video)
        if not 0 <= self.seconds < math.inf:
            raise QueryError(f"seconds={self.seconds}: a time within a video is 0 s or later")
        _check_weight(self.video, self.weight)


@dataclass(frozen=True, slots=True)
class SequenceTerm:
    """Texts for moments of one video that follow each other; a query of its own, not of a mix."""

    texts: tuple[str, ...]
    within_seconds: float = WITHIN_SECONDS
    """Longest time from one moment to the next."""

    def __post_init__(self) -> None:
        for text in self.texts:
            TextTerm(text)
        if not 2 <= len(self.texts) <= MAX_STEPS:
            raise QueryError(f"a sequence has 2 to {MAX_STEPS} texts, not {len(self.texts)}")
        if not 0 < self.within_seconds <= MAX_WITHIN_SECONDS:
            raise QueryError(
                f"within {self.within_seconds:g}s: more than 0, at most {MAX_WITHIN_SECONDS:g} s"
            )

    @property
    def weight(self) -> float:
        """Return 1: a sequence has no weight."""
        return 1.0


QueryTerm = TextTerm | ImageTerm | MomentTerm | SequenceTerm


def _check_weight(what: str, weight: float) -> None:
    if not math.isfinite(weight) or weight == 0:
        raise QueryError(f"weight {weight} of {what!r}: any number but 0")


def check_terms(terms: Sequence[QueryTerm]) -> None:
    """Refuse terms that cannot be searched for.

    Raises:
        QueryError: no term has a positive weight.
    """
    if not any(term.weight > 0 for term in terms):
        raise QueryError(f"a query needs at least one term to look for, {_EXAMPLE}")


def parse_query(text: str) -> list[QueryTerm]:
    r"""Parse the text of a query.

    A text that begins with ``+"`` or ``-"`` is a mix: quoted texts, each with a sign, and with an
    optional ``^WEIGHT`` (default 1). In quotes, ``\"`` is a quotation mark and
    ``\\`` a backslash. Quoted texts with ``then`` between them are a sequence, which may end with
    ``within 30s``. Any other text is one term, as it is.

    >>> parse_query('+"snow" -"people"^0.5')
    [TextTerm(text='snow', weight=1.0), TextTerm(text='people', weight=-0.5)]
    >>> parse_query("a red-haired woman")
    [TextTerm(text='a red-haired woman', weight=1.0)]

    Raises:
        QueryError: an empty text, or a mix with a syntax error, which the message shows.
    """
    if _IS_SEQUENCE.match(text):
        return [_parse_sequence(text)]
    if not _IS_MIX.match(text):
        return [TextTerm(text)]
    terms: list[QueryTerm] = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TERM.match(text, position)
        if match is None:
            raise QueryError(
                f"the query cannot be read from {text[position:end].lstrip()!r} on: give quoted "
                f"texts with a sign each, {_EXAMPLE}"
            )
        weight = _weight(match["weight"], match["text"])
        words = re.sub(r"\\(.)", r"\1", match["text"], flags=re.DOTALL)
        terms.append(TextTerm(words, weight if match["sign"] == "+" else -weight))
        position = match.end()
    check_terms(terms)
    return terms


def _parse_sequence(text: str) -> SequenceTerm:
    texts, position, more = [], 0, True
    while more:
        step = _STEP.match(text, position)
        if step is None:
            raise QueryError(
                f"the sequence cannot be read from {text[position:].lstrip()!r} on: give a quoted "
                f"text after then, {_SEQUENCE}"
            )
        texts.append(re.sub(r"\\(.)", r"\1", step["text"], flags=re.DOTALL))
        position, more = step.end(), step["then"] is not None
    within = _WITHIN.fullmatch(text, position)
    if within is None:
        raise QueryError(
            f"the sequence cannot be read from {text[position:].lstrip()!r} on: it may end with "
            f"within SECONDSs, {_SEQUENCE}"
        )
    seconds = within["seconds"]
    return SequenceTerm(tuple(texts), float(seconds) if seconds else WITHIN_SECONDS)


def _weight(number: str | None, text: str) -> float:
    if number is None:
        return 1.0
    if not re.fullmatch(r"\d{1,6}(\.\d+)?|\.\d+", number) or float(number) == 0:
        raise QueryError(f"the weight ^{number} of {text!r} is not a number above 0, {_EXAMPLE}")
    return float(number)


def parse_moment(text: str) -> tuple[str, float]:
    """Split ``VIDEO@SECONDS``; the video's own name may hold an ``@``.

    Raises:
        QueryError: there is no ``@``, or what follows is not a time.
    """
    video, separator, seconds = text.rpartition("@")
    try:
        value = float(seconds)
    except ValueError:
        value = float("nan")
    if not separator or not video or not 0 <= value < float("inf"):
        raise QueryError(f"{text!r} is not VIDEO@SECONDS, e.g. holiday/beach.mp4@12.5")
    return video, value
