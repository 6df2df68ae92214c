"""Match videos with standing queries, and choose the threshold of one by judged moments.

A watch is matched with the vectors of a video alone, so a new video is matched before an index
covers it. Texts are embedded as they are, whatever SIGLIP_RANKING says.
"""

import json
import logging
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

import numpy as np

from siglip_pipeline.errors import QueryError, WatchError
from siglip_pipeline.hits import MAX_K, Hit, SearchFilter, SearchRequest
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search.probability import score_of
from siglip_pipeline.search.query_terms import TextTerm
from siglip_pipeline.search.query_vectors import text_within
from siglip_pipeline.search.service import SearchService
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.search.globs import glob_regex, is_glob
from siglip_pipeline.store.search.video_hits import embedded_video, hits_in_video
from siglip_pipeline.store.watches import Watch, WatchStore
from siglip_pipeline.text.json_form import DOCUMENTED, Rounded6

_log = logging.getLogger(__name__)

SHOWN = 20
"""Moments that a calibration shows: half of them above the threshold, where there are so many."""
_MOST_NAME = 100
_Z = 1.959964
"""Of a two-sided interval at 95%."""

EmbedTexts = Callable[[Sequence[str]], FloatArray]


def check_watch(
    name: str, query: str, *, min_probability: float, videos: Sequence[str] | None
) -> None:
    """Refuse a standing query that cannot be matched.

    Raises:
        WatchError: the name cannot be used.
        QueryError: the text is empty, or a limit cannot be used.
    """
    if not name.strip() or len(name) > _MOST_NAME or not name.isprintable() or "/" in name:
        raise WatchError(
            f"{name[:_MOST_NAME]!r} is no name for a watch; give 1 to {_MOST_NAME} printable "
            "characters without /"
        )
    TextTerm(query)
    SearchFilter(videos=None if videos is None else tuple(videos), min_probability=min_probability)


def match_video(
    database: Database,
    model_id: int,
    video: str,
    watches: Iterable[Watch],
    *,
    embed_texts: EmbedTexts,
) -> int:
    """Record the moments of a video that fit standing queries; return how many are new.

    Args:
        database: holds the vectors and the watches.
        model_id: the model of the vectors.
        video: path below UPLOADS.
        watches: the standing queries.
        embed_texts: the text tower of that model, for a watch without a vector of it.
    """
    model, store = ModelStore(database).get(model_id), WatchStore(database)
    found = embedded_video(database, model_id, video)
    if found is None:
        return 0
    new = 0
    for watch in watches:
        if not covers(watch.videos, video):
            continue
        query_D = watch.embedding_D
        if query_D is None or watch.model_key != model.key:
            [query_D] = embed_texts([watch.query])
            store.set_vector(watch.watch_id, model.key, query_D)
        request = SearchRequest(
            query_QD=query_D[None],
            k=MAX_K,
            within=text_within(model),
            min_score=score_of(watch.min_probability, model),
        )
        hits = hits_in_video(database, model, found, request)
        if len(hits) == MAX_K:
            _log.warning(
                f"{video}: only the best {MAX_K} moments for the watch {watch.name!r} count; "
                "raise its threshold with `siglip-pipeline watch calibrate`"
            )
        new += store.record(
            watch,
            found.video_id,
            hits,
            source_sha256=found.source_sha256,
            model_key=model.key,
        )
    return new


def covers(videos: Sequence[str] | None, video: str) -> bool:
    """Return whether a path is among paths and globs as a search reads them, in any form."""
    path = normalize("NFC", video)
    return videos is None or any(
        path == given
        or (is_glob(given) and re.fullmatch(glob_regex(given), path, re.DOTALL) is not None)
        for given in (normalize("NFC", pattern) for pattern in videos)
    )


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
    found = service.by_vector(
        query_D,
        kind="text",
        k=MAX_K,
        filter=SearchFilter(videos=watch.videos, min_probability=0.0),
    ).hits
    hits = sorted(found, key=lambda hit: -hit.probability)
    above = sum(hit.probability >= watch.min_probability for hit in hits)
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


def read_answers(lines: Iterable[str], shown: Sequence[Hit]) -> list[JudgedMoment]:
    """Return the judged moments of JSON Lines: the shown moments, each with ``fits``.

    Raises:
        QueryError: a line is no such answer, or about a moment that is not shown or has been
            answered before; names the line.
    """
    known = {(hit.video, hit.frame_index): hit for hit in shown}
    judged = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            answer: Any = json.loads(line)
            place, fits = (answer["video"], answer["frame_index"]), answer["fits"]
        except (ValueError, TypeError, KeyError) as error:
            raise QueryError(
                f"line {number}: give a JSON object with video, frame_index and fits "
                f"({type(error).__name__}: {error})"
            ) from error
        if not isinstance(fits, bool):
            raise QueryError(f"line {number}: fits={fits!r} is neither true nor false")
        if place not in known:
            raise QueryError(
                f"line {number}: frame {place[1]} of {place[0]!r} is none of the {len(shown)} "
                "moments that `watch calibrate --json` shows"
            )
        if place in judged:
            raise QueryError(
                f"line {number}: frame {place[1]} of {place[0]!r} was answered before; give one "
                "line for each moment"
            )
        judged[place] = JudgedMoment(probability=known[place].probability, fits=fits)
    return [*judged.values()]
