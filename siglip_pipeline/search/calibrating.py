"""Choose the threshold of a standing query by judged moments, and say how precise it is."""

import json
import math
import operator
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import MAX_K, Hit, SearchFilter
from siglip_pipeline.search.service import SearchService
from siglip_pipeline.store.watches import Watch
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.text.json_form import DOCUMENTED, Rounded6

SHOWN = 20
"""Moments that a calibration shows: half of them above the threshold, where there are so many."""
_Z = 1.959964
"""Of a two-sided interval at 95%."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a person said of a moment."""

    video: str
    frame_index: int
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedMoment:
    """A moment that a person judged."""

    probability: float
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The threshold that judged moments ask for, and how precise it is on them."""

    __pydantic_config__ = DOCUMENTED

    min_probability: Rounded6
    judged: int
    fitting: int
    above: int
    """Judged moments that are at least as probable as the threshold."""
    right: int
    """Those among them that fit."""
    precision: Rounded6 | None
    """right / above; None if none is above."""
    low: Rounded6
    """Of the 95% interval by Wilson, on the answers that the threshold was chosen by."""
    high: Rounded6
    model_key: str
    """Of the probabilities: another model needs another threshold."""


def moments_around(service: SearchService, watch: Watch) -> list[Hit]:
    """Return the indexed moments whose probabilities are around a watch's threshold, best first.

    Raises:
        NothingIndexedError: no index has been published yet.
        QueryError: its globs match no video.
    """
    _, [query_D] = service.vectors_of_texts([watch.query])
    filter = SearchFilter(videos=watch.videos, min_probability=0.0)
    for k in (2 * SHOWN, 10 * SHOWN, MAX_K):
        found = service.by_vector(query_D, kind="text", k=k, filter=filter).hits
        hits = sorted(found, key=lambda hit: -hit.probability)
        above = sum(hit.probability >= watch.min_probability for hit in hits)
        if len(hits) < k or len(hits) >= above + SHOWN:
            break
    first = max(0, min(above - SHOWN // 2, len(hits) - SHOWN))
    return hits[first : first + SHOWN]


def calibrate(judged: Sequence[JudgedMoment], *, model_key: str) -> Calibration:
    """Return the threshold with the fewest mistakes; among equal ones the highest.

    Raises:
        QueryError: nothing was judged.
    """
    if not judged:
        raise QueryError("no moment was judged; answer at least one with yes or no")
    ordered = sorted(judged, key=lambda moment: -moment.probability)
    fits_N = np.array([moment.fits for moment in ordered])
    # With the first n accepted: those among them that do not fit, and the others that do.
    accepted_N = np.concatenate([[0], np.cumsum(~fits_N)])
    missed_N = fits_N.sum() - np.concatenate([[0], np.cumsum(fits_N)])
    probabilities = [1.0, *(moment.probability for moment in ordered)]
    # A threshold separates no equally probable moments.
    separable_N = np.array([*map(operator.gt, probabilities, probabilities[1:]), True])
    above = int(np.argmin(np.where(separable_N, accepted_N + missed_N, len(judged) + 1)))
    threshold = probabilities[above]
    if above < len(ordered):
        threshold = (threshold + probabilities[above + 1]) / 2
    above = sum(moment.probability >= threshold for moment in ordered)
    right = int(fits_N[:above].sum())
    low, high = wilson(right, above)
    return Calibration(
        min_probability=threshold,
        judged=len(ordered),
        fitting=int(fits_N.sum()),
        above=above,
        right=right,
        precision=right / above if above else None,
        low=low,
        high=high,
        model_key=model_key,
    )


def wilson(right: int, of: int) -> tuple[float, float]:
    """Return the 95% interval of a share by Wilson's score."""
    if of == 0:
        return 0.0, 1.0
    share, z2 = right / of, _Z * _Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return max(0.0, middle - half), min(1.0, middle + half)


def judge(answers: Iterable[tuple[str, Answer]], shown: Sequence[Hit]) -> list[JudgedMoment]:
    """Return the shown moments that were judged.

    Args:
        answers: each with a word for it in messages, such as ``line 3``.
        shown: what was asked about.

    Raises:
        QueryError: an answer is about a moment that is not shown, or was answered before.
    """
    known = {(hit.video, hit.frame_index): hit for hit in shown}
    judged: dict[tuple[str, int], JudgedMoment] = {}
    for which, answer in answers:
        place = (answer.video, answer.frame_index)
        moment = f"{which}: frame {answer.frame_index} of {answer.video!r}"
        if place not in known:
            raise QueryError(
                f"{moment} is none of the moments around the threshold; ask for them "
                "again, as the index or the threshold may have changed"
            )
        if place in judged:
            raise QueryError(f"{moment} was answered before; give one answer for each moment")
        judged[place] = JudgedMoment(probability=known[place].probability, fits=answer.fits)
    return [*judged.values()]


def read_answers(lines: Iterable[str]) -> Iterator[tuple[str, Answer]]:
    """Yield the answers of JSON Lines for :func:`judge`: moments, each with ``fits``.

    Raises:
        QueryError: a line is no such answer; names the line.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given: Any = json.loads(line)
            video, frame_index, fits = given["video"], given["frame_index"], given["fits"]
        except (ValueError, TypeError, KeyError) as error:
            raise QueryError(
                f"line {number}: give a JSON object with video, frame_index and fits "
                f"({type(error).__name__}: {error})"
            ) from error
        if not isinstance(video, str) or type(frame_index) is not int:
            raise QueryError(
                f"line {number}: video={video!r}, frame_index={frame_index!r}: give a text and a "
                "whole number"
            )
        if not isinstance(fits, bool):
            raise QueryError(f"line {number}: fits={fits!r} is neither true nor false")
        yield f"line {number}", Answer(video=video, frame_index=frame_index, fits=fits)


def command_of(name: str, answers: Iterable[Answer]) -> str:
    """Return the command that sets the threshold of a watch by these answers, for a shell."""
    lines = (
        json.dumps({"video": a.video, "frame_index": a.frame_index, "fits": a.fits})
        for a in answers
    )
    command = f"siglip-pipeline watch calibrate {shlex.quote(name)} --answers - <<'END'"
    return "\n".join((command, *lines, "END"))


def calibration_sentence(found: Calibration) -> str:
    """Return what a calibration found, in words."""
    if found.precision is None:
        return (
            f"Of {counted(found.judged, 'judged moment')} none fits well enough: the threshold "
            f"with the fewest mistakes is {found.min_probability:.1%}, above all of them."
        )
    fit = f"{found.right} {'fits' if found.right == 1 else 'fit'}"
    return (
        f"The threshold with the fewest mistakes is {found.min_probability:.1%}. Of "
        f"{counted(found.above, 'judged moment')} at or above it {fit}: precision "
        f"{found.precision:.0%}, 95% interval {found.low:.0%} to {found.high:.0%} on the answers "
        "it was chosen by; on other moments it may be less."
    )
