"""Say why a search does not show a moment: what hides it, and what would change that."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from siglip_pipeline.hits import ABOUT_VIDEOS, MAX_K, Hit, Moment, SearchFilter
from siglip_pipeline.search.query_vectors import QueryVectors
from siglip_pipeline.search.results import HitFinder
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.frame_rank import FrameRank, rank_frame
from siglip_pipeline.store.search.scope import allows_video
from siglip_pipeline.store.vectors import StoredVector, VectorStore
from siglip_pipeline.store.videos import VideoRow, VideoStore
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.text.json_form import DOCUMENTED, Rounded3, Rounded6
from siglip_pipeline.text.timecode import timecode

SAMPLED_SECONDS = 0.5
"""A moment counts as sampled if a stored frame is at most so far away."""
_EF_SEARCHES = (100, 200, 400, 800, 1000)

CauseName = Literal[
    "no_video",
    "failed",
    "not_indexed",
    "after_the_end",
    "not_sampled",
    "filtered",
    "improbable",
    "per_video",
    "missed_by_index",
    "outranked",
    "grouped",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One reason, and what would change it."""

    cause: CauseName
    text: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedFrame:
    """The stored frame nearest to the moment."""

    __pydantic_config__ = DOCUMENTED

    time_seconds: Rounded3
    media_time_seconds: Rounded3
    """What a player's clock shows there."""
    distance_seconds: Rounded3
    """From the moment that was asked about."""
    score: Rounded6
    """Cosine similarity with the query, by an exact comparison."""
    probability: Rounded6
    rank: int
    """Among all frames of the model, 1 for the best."""
    frames: int
    """Frames that were compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a search does not show a moment, or where it does."""

    __pydantic_config__ = DOCUMENTED

    video: str
    time_seconds: Rounded3
    model: str
    k: int
    """Hits that the search shows."""
    place: int | None
    """Place of the moment's hit among those hits, from 1; None if it is not shown."""
    causes: tuple[Cause, ...]
    """Why it is not shown, or not as a hit of its own; empty if it is."""
    frame: ExplainedFrame | None = None
    """None where no frame of the video has a vector."""
    hit: Hit | None = None
    """The hit that the moment belongs to, by an exact search without the filters that hide it."""
    exact_place: int | None = None
    """Place of that hit, by an exact search without the filters that hide it; None beyond 1000."""
    last_score: Rounded6 | None = None
    """What the last hit that the search shows ranks by: its score, or its rank_score."""
    gap: Rounded6 | None = None
    """How much more the moment would have to score to be shown; None if it scores enough."""


def explain_moment(
    database: Database,
    finder: HitFinder,
    model: ModelRow,
    vectors: QueryVectors,
    moment: Moment,
    *,
    k: int,
    filter: SearchFilter,
) -> Explanation:
    """Search as the user does, then exactly and without what hides the moment, and compare.

    Args:
        database: holds the vectors.
        finder: finds hits.
        model: the model that is searched.
        vectors: the query.
        moment: what was expected.
        k: the number of hits that the search shows.
        filter: of the search.

    Raises:
        ActiveModelChangedError: the model is not the active one any more.
        QueryError: the filter names an unknown video.
    """
    asked = Explanation(
        video=moment.video,
        time_seconds=moment.time_seconds,
        model=model.name,
        k=k,
        place=None,
        causes=(),
    )
    row = VideoStore(database).get(moment.video, model_id=model.model_id)
    near = VectorStore(database).nearest_frame(model.model_id, moment.video, moment.time_seconds)
    if row is None or near is None:
        return replace(asked, causes=(_without_vectors(moment, row),))
    place = (row.video_id, near.frame_index)
    ranked = rank_frame(database, model.model_id, place, vectors.query_QD)
    if ranked is None:  # replaced meanwhile
        return replace(asked, causes=(_without_vectors(moment, row),))
    return _Explainer(database, finder, model, vectors, moment, filter, k).explain(
        asked, row, near, ranked
    )


@dataclass(frozen=True, slots=True)
class _Explainer:
    database: Database
    finder: HitFinder
    model: ModelRow
    vectors: QueryVectors
    moment: Moment
    filter: SearchFilter
    k: int

    def explain(
        self, asked: Explanation, row: VideoRow, near: StoredVector, ranked: FrameRank
    ) -> Explanation:
        shown = self._find(self.filter, self.k)
        place = self._place(shown, near)
        hiding = self._hiding_filters(near)
        # The moment among all hits, without what hides it.
        free = replace(
            self.filter, min_probability=0.0, max_per_video=None, **dict.fromkeys(hiding)
        )
        all_hits = self._find(free, MAX_K, exact=True)
        exact_place = self._place(all_hits, near)
        hit = all_hits[exact_place - 1] if exact_place else None
        frame = self._frame(row, near, ranked)
        last, gap = None, None
        if len(shown) == self.k:
            last, own = _compared(shown[-1], hit, ranked)
            gap = None if place else max(0.0, last - own)
        causes = [*_unsampled(self.moment, row, near)]
        if place is None:
            causes += self._hidden(hiding, frame, hit, all_hits, exact_place)
            causes += self._missed(near, exact_place, gap)
        causes += _grouped(hit, near) if hit and (place or not causes) else []
        return replace(
            asked,
            place=place,
            causes=tuple(causes),
            frame=frame,
            hit=hit,
            exact_place=exact_place,
            last_score=last,
            gap=gap or None,
        )

    def _find(
        self, filter: SearchFilter, k: int, *, exact: bool = False, ef_search: int | None = None
    ) -> Sequence[Hit]:
        return self.finder.find(
            self.model, self.vectors, k, filter, exact=exact, ef_search=ef_search
        )

    def _place(self, hits: Sequence[Hit], near: StoredVector) -> int | None:
        """Return the place of the hit that holds the frame."""
        for place, hit in enumerate(hits, 1):
            holds = hit.start_seconds <= near.time_seconds < hit.end_seconds
            if hit.video == self.moment.video and holds:
                return place
        return None

    def _hiding_filters(self, near: StoredVector) -> list[str]:
        """Return the names of the filter's fields that exclude the moment."""
        hiding = []
        for name in ABOUT_VIDEOS:
            value = getattr(self.filter, name)
            alone = SearchFilter(**{name: value})
            if value is not None and not allows_video(
                self.database, self.model.model_id, alone, self.moment.video
            ):
                hiding.append(name)
        start, end = self.filter.from_seconds, self.filter.to_seconds
        if start is not None and near.time_seconds < start:
            hiding.append("from_seconds")
        if end is not None and near.time_seconds >= end:
            hiding.append("to_seconds")
        return hiding

    def _frame(self, row: VideoRow, near: StoredVector, ranked: FrameRank) -> ExplainedFrame:
        as_hit = Hit(
            video=row.video,
            video_id=row.video_id,
            time_seconds=near.time_seconds,
            frame_index=near.frame_index,
            score=ranked.score,
            probability=0.0,
            start_seconds=near.time_seconds,
            end_seconds=near.time_seconds,
            media_time_seconds=near.time_seconds + row.media_offset_seconds,
        )
        return ExplainedFrame(
            time_seconds=near.time_seconds,
            media_time_seconds=as_hit.media_time_seconds,
            distance_seconds=abs(near.time_seconds - self.moment.time_seconds),
            score=ranked.score,
            probability=self.finder.rated(self.model, self.vectors, as_hit).probability,
            rank=ranked.rank,
            frames=ranked.frames,
        )

    def _hidden(
        self,
        hiding: Sequence[str],
        frame: ExplainedFrame,
        hit: Hit | None,
        all_hits: Sequence[Hit],
        exact_place: int | None,
    ) -> list[Cause]:
        """Return the filters that hide the moment."""
        causes = [
            Cause(
                cause="filtered",
                text=f"The filter {name}={_value(getattr(self.filter, name))} excludes it.",
                remedy=f"Search without {name}.",
            )
            for name in hiding
        ]
        least = self.finder.least_probability(self.filter)
        best = hit.probability if hit else frame.probability
        if best < least:
            causes.append(
                Cause(
                    cause="improbable",
                    text=f"Its probability is {best:.1%}, and hits below {least:.1%} are hidden.",
                    remedy=f"Search with min_probability={max(0.0, best - 0.0005):.3f} or less, or "
                    "say it in other words.",
                )
            )
        most = self.filter.max_per_video
        before = sum(
            other.video == self.moment.video for other in all_hits[: (exact_place or 1) - 1]
        )
        if most is not None and exact_place and before >= most:
            causes.append(
                Cause(
                    cause="per_video",
                    text=f"{counted(before, 'better hit')} of the same video: a search shows at "
                    f"most {most} of one video.",
                    remedy=f"Search with max_per_video={before + 1}.",
                )
            )
        return causes

    def _missed(
        self, near: StoredVector, exact_place: int | None, gap: float | None
    ) -> list[Cause]:
        """Return whether the index missed the moment, or other hits are better."""
        if self._place(self._find(self.filter, self.k, exact=True), near):
            return [self._missed_by_index(near)]
        if not gap:
            return []
        return [
            Cause(
                cause="outranked",
                text=f"It is hit {exact_place or f'beyond {MAX_K}'}, and the search shows "
                f"{self.k}: it scores {gap:.4f} less than the last of them.",
                remedy=f"Ask for k={exact_place} hits, or say it in other words."
                if exact_place
                else "Say it in other words, or narrow the search with a filter.",
            )
        ]

    def _missed_by_index(self, near: StoredVector) -> Cause:
        for ef_search in _EF_SEARCHES:
            if self._place(self._find(self.filter, self.k, ef_search=ef_search), near):
                remedy = f"An ef_search of {ef_search} finds it"
                break
        else:
            remedy = "A higher ef_search does not find it"
        return Cause(
            cause="missed_by_index",
            text="An exact search shows it: the index missed it.",
            remedy=f"{remedy}. Build the index again with a higher SIGLIP_INDEX_MIN_RECALL, or "
            "with SIGLIP_INDEX_KIND=exact.",
        )


def _compared(last: Hit, hit: Hit | None, ranked: FrameRank) -> tuple[float, float]:
    """Return what the last hit that is shown ranks by, and what the moment does."""
    if hit is not None and hit.rank_score is not None:
        return last.ranked_by, hit.ranked_by
    # Not among the hits that SIGLIP_RANKING orders: each of them scores more.
    return last.score, ranked.score if hit is None else hit.score


def _without_vectors(moment: Moment, row: VideoRow | None) -> Cause:
    """Return why a video has no vectors."""
    if row is None:
        return Cause(
            cause="no_video",
            text=f"No upload is called {moment.video!r}.",
            remedy="Give its path below SIGLIP_UPLOADS, as the page lists it under /videos.",
        )
    if row.state == "failed":
        return Cause(
            cause="failed",
            text=f"{row.stage} failed for this video: {row.reason}",
            remedy="Repair the cause, then run `siglip-pipeline materialize --failed`.",
        )
    return Cause(
        cause="not_indexed",
        text="The video is known but has no vectors under the model that searches use yet.",
        remedy="Run `siglip-pipeline materialize --all-missing`, or wait for Dagster.",
    )


def _unsampled(moment: Moment, row: VideoRow, near: StoredVector) -> list[Cause]:
    """Return whether the moment was not sampled."""
    distance = abs(near.time_seconds - moment.time_seconds)
    if distance <= SAMPLED_SECONDS:
        return []
    length = row.duration_seconds
    if length is not None and moment.time_seconds > length:
        return [
            Cause(
                cause="after_the_end",
                text=f"The video is {timecode(length)} long.",
                remedy="Ask about an earlier moment.",
            )
        ]
    sampling = row.sampling or ""
    rate = re.fullmatch(r"fps:([\d.]+)", sampling)
    denser = f"fps:{2 * float(rate[1]):g}" if rate else "fps:2"
    return [
        Cause(
            cause="not_sampled",
            text=f"The nearest stored frame is at {timecode(near.time_seconds)}, {distance:.1f} s "
            f"away: the video was sampled by {sampling}.",
            remedy=f"Set SIGLIP_SAMPLING={denser} and run `siglip-pipeline materialize --stale`.",
        )
    ]


def _grouped(hit: Hit, near: StoredVector) -> list[Cause]:
    """Return whether the moment is part of a hit whose best frame is another one."""
    if hit.frame_index == near.frame_index:
        return []
    return [
        Cause(
            cause="grouped",
            text=f"It is part of the hit {timecode(hit.start_seconds)} – "
            f"{timecode(hit.end_seconds)}, which is shown by its best frame at "
            f"{timecode(hit.time_seconds)}.",
            remedy="Open that hit: neighbouring moments that score nearly as well are one hit.",
        )
    ]


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
