"""Judged queries: what people look for, and the moments that answer it, as JSON Lines.

    {"query": "a red car", "relevant": [{"video": "a.mp4", "start_seconds": 1, "end_seconds": 4}]}

docs/quality.md describes the form.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from pydantic_core import ErrorDetails

from siglip_pipeline.errors import JudgedQueriesError, QueryError
from siglip_pipeline.hits import Moment, check_text
from siglip_pipeline.search.query_terms import (
    ImageTerm,
    MomentTerm,
    QueryTerm,
    TextTerm,
    parse_moment,
    parse_query,
)

_Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelevantMoment:
    """A moment that answers a query; without times the whole video does."""

    video: str
    """Path below the uploads."""
    start_seconds: float = 0.0
    end_seconds: float = math.inf
    grade: int = 1
    """How well it answers: 1 or more."""

    @property
    def has_times(self) -> bool:
        """Return whether a part of the video is meant."""
        return self.end_seconds < math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedQuery:
    """A query and what answers it."""

    line: int
    """Where it was read; identifies the query."""
    label: str
    """The query in words, for tables."""
    terms: tuple[QueryTerm, ...]
    relevant: tuple[RelevantMoment, ...] = ()
    """Empty: nothing in the collection answers it."""
    tags: tuple[str, ...] = ()
    videos: tuple[str, ...] | None = None
    """Search only these, as :class:`.SearchFilter` reads them; None: all."""

    @property
    def own_moment(self) -> Moment | None:
        """Return the moment that is the query: finding it again proves nothing."""
        if len(self.terms) == 1 and isinstance(term := self.terms[0], MomentTerm):
            return Moment(video=term.video, time_seconds=term.seconds)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedQueries:
    """The queries of one file."""

    name: str
    """Of the file."""
    queries: tuple[JudgedQuery, ...]
    metrics: tuple[str, ...] = ()
    """Metrics that the publishers of the file report, beside the usual ones."""

    @property
    def digest(self) -> str:
        """Return a hash of what is asked and judged, by which results compare."""
        asked = [(q.label, q.relevant, q.videos) for q in self.queries]
        return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _QueryForm(_Form):
    text: StrictStr | None = None
    image: StrictStr | None = None
    like: StrictStr | None = None


class _RelevantForm(_Form):
    video: Annotated[StrictStr, Field(min_length=1)]
    start_seconds: _Seconds | None = None
    end_seconds: _Seconds | None = None
    grade: Annotated[StrictInt, Field(ge=1, le=1000)] = 1


class _JudgedForm(_Form):
    query: StrictStr | _QueryForm
    relevant: tuple[_RelevantForm, ...]
    tags: tuple[StrictStr, ...] = ()
    videos: tuple[StrictStr, ...] | None = None


def read_json_lines(path: Path) -> tuple[JudgedQuery, ...]:
    """Return the judged queries of a file, in its order; empty lines are skipped.

    Raises:
        JudgedQueriesError: the file cannot be read, or a line does not fit; names the line, what is
            wrong with it, and what is allowed.
    """
    queries = tuple(_judged(path, number, document) for number, document in json_documents(path))
    if not queries:
        raise JudgedQueriesError(f"{path} holds no queries; give one JSON object a line")
    return queries


def json_documents(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the line number and the JSON of each line that is not empty."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise wrong(path, number, f"no JSON ({error}); give one JSON object") from error


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        JudgedQueriesError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise JudgedQueriesError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise wrong(path, line, f"not UTF-8 ({error.reason}); save the file as UTF-8") from error


def wrong(path: Path, line: int | None, what: str) -> JudgedQueriesError:
    """Return an error about a line of a file, or about the whole file."""
    place = "" if line is None else f", line {line}"
    return JudgedQueriesError(f"{path}{place}: {what}")


def text_query(
    path: Path,
    line: int,
    text: str,
    relevant: Sequence[RelevantMoment],
    *,
    videos: Sequence[str] | None = None,
) -> JudgedQuery:
    """Return a judged text, which is used as it is.

    Raises:
        JudgedQueriesError: the text is empty, or a moment ends before it starts.
    """
    for moment in relevant:
        if not 0 <= moment.start_seconds < moment.end_seconds:
            raise wrong(
                path,
                line,
                f"the moment {moment.start_seconds:g} to {moment.end_seconds:g} s of "
                f"{moment.video!r}: its start must be before its end",
            )
    try:
        terms = (TextTerm(text),)
    except QueryError as error:
        raise wrong(path, line, str(error)) from error
    return JudgedQuery(
        line=line,
        label=text,
        terms=terms,
        relevant=tuple(relevant),
        videos=None if videos is None else tuple(videos),
    )


def _judged(path: Path, line: int, document: Any) -> JudgedQuery:
    try:
        form = _JudgedForm.model_validate(document)
        terms = _terms(form.query, path.parent)
        for video in form.videos or ():
            check_text(video)
    except ValidationError as error:
        # A query that is an object is also reported as no text: the deepest error says more.
        deepest = max(error.errors(), key=lambda found: len(found["loc"]))
        raise wrong(path, line, _in_words(deepest)) from error
    except QueryError as error:
        raise wrong(path, line, str(error)) from error
    return JudgedQuery(
        line=line,
        label=form.query if isinstance(form.query, str) else _label(form.query),
        terms=terms,
        relevant=tuple(_relevant(path, line, moment) for moment in form.relevant),
        tags=form.tags,
        videos=form.videos,
    )


def _relevant(path: Path, line: int, form: _RelevantForm) -> RelevantMoment:
    if (form.start_seconds is None) != (form.end_seconds is None):
        raise wrong(
            path, line, "a relevant moment needs both start_seconds and end_seconds, or neither"
        )
    if form.start_seconds is None or form.end_seconds is None:
        return RelevantMoment(video=form.video, grade=form.grade)
    if not form.start_seconds < form.end_seconds:
        raise wrong(
            path,
            line,
            f"start_seconds={form.start_seconds:g} is not before end_seconds={form.end_seconds:g}",
        )
    return RelevantMoment(
        video=form.video,
        start_seconds=form.start_seconds,
        end_seconds=form.end_seconds,
        grade=form.grade,
    )


def _terms(query: str | _QueryForm, folder: Path) -> tuple[QueryTerm, ...]:
    if isinstance(query, str):
        return tuple(parse_query(query))
    terms: list[QueryTerm] = []
    if query.text is not None:
        terms += parse_query(query.text)
    if query.image is not None:
        terms.append(ImageTerm(folder / query.image))
    if query.like is not None:
        terms.append(MomentTerm(*parse_moment(query.like)))
    if not terms:
        raise QueryError("the query is empty; give text, image, like, or several of them")
    return tuple(terms)


def _label(query: _QueryForm) -> str:
    given = (query.text, query.image, query.like and f"like {query.like}")
    return " + ".join(part for part in given if part)


_FIELDS = {
    "query": ", ".join(_QueryForm.model_fields),
    "relevant": ", ".join(_RelevantForm.model_fields),
    "": ", ".join(_JudgedForm.model_fields),
}


def _in_words(error: ErrorDetails) -> str:
    """Return an error of pydantic as a sentence that says what is allowed."""
    place = [part for part in error["loc"] if part not in ("str", "_QueryForm")]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    where = where.lstrip(".")
    if error["type"] == "extra_forbidden":
        parent = str(place[0]) if len(place) > 1 else ""
        return f"there is no field {where}; allowed are {_FIELDS[parent]}"
    if error["type"] == "missing":
        return f"{where} is missing"
    given = repr(error["input"])
    given = given if len(given) <= 60 else f"{given[:60]}…"
    what = error["msg"][:1].lower() + error["msg"][1:]
    return f"{where}={given}: {what}" if where else f"{given}: give a JSON object, not this"
