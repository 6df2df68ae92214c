"""Find sequences: moments of one video, one after the other, each for a text of its own.

One search of the index per text gives anchors: the best moments for that text. For each text the
moments around the anchors of the others are scored exactly, and joined: the moments of a sequence
follow each other, and the best frame of each comes at most ``within_seconds`` after the one before.
So the best of all sequences that hold an anchor are found. More anchors are read only until there
are ``k`` sequences.

Shapes: T texts.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from siglip_pipeline.hits import APART, MAX_K, Hit, SearchFilter, SearchRequest
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search.probability import probability_of, score_of
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.moment_scores import ScoredMoment, Stretch, score_moments
from siglip_pipeline.store.search.moment_search import MomentSearch

_ANCHORS = 4
"""Anchors per text and requested hit, at first."""
_MOMENT = 1e-6
"""Seconds by which a stretch includes its end."""


@dataclass(frozen=True, slots=True)
class _Chain:
    """The best sequence from a moment on."""

    score: float
    """Sum over its moments."""
    moments: tuple[ScoredMoment, ...]


def find_sequences(
    database: Database,
    moments: MomentSearch,
    model: ModelRow,
    texts_TD: FloatArray,
    *,
    within_seconds: float,
    k: int,
    filter: SearchFilter,
    min_probability: float,
    must_be_active: bool = True,
) -> tuple[Hit, ...]:
    """Return the ``k`` best sequences, at most one for each first moment; best first.

    Args:
        database: holds the vectors.
        moments: searches the index.
        model: the model of the vectors.
        texts_TD: the unit vectors of the texts, in order.
        within_seconds: longest time from one best frame to the next.
        k: the largest number of hits.
        filter: what may be found; ``max_per_video`` counts sequences.
        min_probability: of each moment for its text.
        must_be_active: search no model but the active one.

    Returns:
        Hits from the start of the first moment to the end of the last one; the score is the mean,
        the probability the product of those of the ``steps``.

    Raises:
        ActiveModelChangedError: the model is not the active one any more.
    """
    anchors = min(MAX_K, _ANCHORS * max(k, 10))
    least = score_of(min_probability, model)
    while True:
        requests = [_anchor_request(text_D, anchors, filter, least) for text_D in texts_TD]
        found = [
            moments.search(model, request, must_be_active=must_be_active) for request in requests
        ]
        videos = {hit.video_id: hit for hits in found for hit in hits}
        stretches_T = [_stretches(found, text, within_seconds) for text in range(len(texts_TD))]
        scored = [
            score_moments(database, model.model_id, where, text_D, time_range=filter.time_range)
            for where, text_D in zip(stretches_T, texts_TD, strict=True)
        ]
        best = _best(_chains(scored, within_seconds, least), videos, k, filter.max_per_video)
        # Where a text has fewer moments than were asked for, all sequences are known.
        known = any(len(hits) < anchors for hits in found)
        if known or anchors == MAX_K or len(best) == k:
            return tuple(_hit(chain, videos, model) for chain in best)
        anchors = min(MAX_K, 4 * anchors)


def _anchor_request(
    text_D: FloatArray, anchors: int, filter: SearchFilter, least: float
) -> SearchRequest:
    """Return the search for the best moments of one text, each by itself."""
    return SearchRequest(
        query_QD=text_D[None],
        k=anchors,
        filter=replace(filter, max_per_video=None, min_probability=None),
        within=APART,
        min_score=least,
    )


def _stretches(found: Sequence[Sequence[Hit]], number: int, within_seconds: float) -> list[Stretch]:
    """Return where the moments for one text can lie, in a sequence that holds an anchor.

    Args:
        found: the anchors of each text.
        number: of the text.
        within_seconds: longest time from one best frame to the next.

    Returns:
        Stretches that do not overlap.
    """
    spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for other, hits in enumerate(found):
        reach = (number - other) * within_seconds
        for hit in hits:
            # Half-open: a moment may begin at the end itself.
            start, end = hit.time_seconds + min(0.0, reach), hit.time_seconds + max(0.0, reach)
            spans[hit.video_id].append((start, end + _MOMENT))
    stretches = []
    for video_id, of_video in spans.items():
        of_video.sort()
        start, end = of_video[0]
        for next_start, next_end in of_video[1:]:
            if next_start > end:
                stretches.append(Stretch(video_id=video_id, start_seconds=start, end_seconds=end))
                start = next_start
            end = max(end, next_end)
        stretches.append(Stretch(video_id=video_id, start_seconds=start, end_seconds=end))
    return stretches


def _chains(
    scored_T: Sequence[Sequence[ScoredMoment]], within_seconds: float, least: float
) -> Iterator[_Chain]:
    """Yield the best sequence from each first moment, by working back from the last text."""
    videos = {moment.video_id for moment in scored_T[0]}
    by_video: list[dict[int, list[ScoredMoment]]] = []
    for scored in scored_T:
        groups: dict[int, list[ScoredMoment]] = defaultdict(list)
        for moment in sorted(scored, key=lambda m: m.time_seconds):
            if moment.score >= least:
                groups[moment.video_id].append(moment)
        by_video.append(groups)
    for video_id in videos:
        following = [_Chain(moment.score, (moment,)) for moment in by_video[-1].get(video_id, [])]
        for groups in reversed(by_video[:-1]):
            following = _prepended(groups.get(video_id, []), following, within_seconds)
        yield from following


def _prepended(
    moments: Sequence[ScoredMoment], chains: Sequence[_Chain], within_seconds: float
) -> list[_Chain]:
    """Return for each moment the best chain that follows it in time, with the moment before it."""
    times = [chain.moments[0].time_seconds for chain in chains]
    longer = []
    for moment in moments:
        first = bisect_left(times, moment.time_seconds)
        last = bisect_right(times, moment.time_seconds + within_seconds)
        after = [c for c in chains[first:last] if c.moments[0].moment > moment.moment]
        best = max(after, key=lambda chain: chain.score, default=None)
        if best is not None:
            longer.append(_Chain(moment.score + best.score, (moment, *best.moments)))
    return longer


def _best(
    chains: Iterable[_Chain], videos: Mapping[int, Hit], k: int, max_per_video: int | None
) -> list[_Chain]:
    """Return the best chains; ties by path, then frame."""
    kept: list[_Chain] = []
    of_video: dict[int, int] = defaultdict(int)
    for chain in sorted(
        chains,
        key=lambda c: (-c.score, videos[c.moments[0].video_id].video, c.moments[0].frame_index),
    ):
        video_id = chain.moments[0].video_id
        if max_per_video is None or of_video[video_id] < max_per_video:
            of_video[video_id] += 1
            kept.append(chain)
        if len(kept) == k:
            break
    return kept


def _hit(chain: _Chain, videos: Mapping[int, Hit], model: ModelRow) -> Hit:
    known = videos[chain.moments[0].video_id]
    steps = tuple(
        Hit(
            video=known.video,
            video_id=moment.video_id,
            time_seconds=moment.time_seconds,
            frame_index=moment.frame_index,
            score=moment.score,
            probability=probability_of(moment.score, model),
            start_seconds=moment.start_seconds,
            end_seconds=moment.end_seconds,
            media_time_seconds=moment.time_seconds + known.media_offset_seconds,
        )
        for moment in chain.moments
    )
    return replace(
        steps[0],
        score=chain.score / len(steps),
        probability=prod(step.probability for step in steps),
        end_seconds=steps[-1].end_seconds,
        steps=steps,
    )
