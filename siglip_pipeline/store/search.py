"""Search: the moments nearest to a query vector, whatever kind the live index is of.

Shapes: Q vectors of one query, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import psycopg

from siglip_pipeline.errors import NothingIndexedError, QueryError, StoreError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import generations
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.grouping import MomentGroup
from siglip_pipeline.store.index_kinds import Generation, Scope
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search_run import TIMES_BEYOND, Question, SearchRun, answer_at_once

K_MAX = 1000
APART = -1.0
"""For ``within``: every moment of the index is a hit of its own."""
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHit:
    """A moment that answers a query, by its best frame."""

    video: str
    video_id: int
    frame_index: int
    time_seconds: float
    score: float
    """Cosine similarity with the query, in [-1, 1]; with the nearest of several vectors."""
    moment_start_seconds: float
    moment_end_seconds: float


class ActiveModelChangedError(Exception):
    """Another model has been promoted since the query was embedded: embed it again."""


class MomentSearch:
    """Searches one database. Thread-safe; keep one for many searches.

    It remembers which generation was live, and asks about that one in the same breath as whether it
    still is: most searches without filters are one question to the server.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._live: dict[int, Generation] = {}

    def search(
        self,
        model: ModelRow,
        query: FloatArray,
        *,
        k: int,
        videos: Sequence[str] | None = None,
        time_range: tuple[float, float] | None = None,
        uploaded_after: datetime | None = None,
        uploaded_before: datetime | None = None,
        ef_search: int | None = None,
        max_per_video: int | None = None,
        min_score: float = -2.0,
        within: float = APART,
        must_be_active: bool = False,
    ) -> list[FrameHit]:
        """The ``k`` moments nearest to a query, one hit each; fewer only when there are fewer.

        Args:
            model: the model that the query was embedded with.
            query: unit vector [D], or several [Q, D]: a moment scores what the nearest says.
            k: at most 1000.
            videos: paths and globs to search in; None: all.
            time_range: seconds within the video, half-open.
            uploaded_after: the upload was modified at this time or later.
            uploaded_before: … before this time.
            ef_search: how hard to look; None: what the index's recall was measured with.
            max_per_video: at most so many moments of one video.
            min_score: moments that score less are no hits.
            within: neighbouring moments whose scores differ by at most this are one hit, see
                :mod:`~siglip_pipeline.store.grouping`.
            must_be_active: search only if the model is the one that search answers with.

        Returns:
            Hits by falling score; ties by path, then frame.

        Raises:
            NothingIndexedError: the model has no published index.
            QueryError: a value that cannot be searched for.
            ActiveModelChangedError: ``must_be_active``, and it is not.
        """
        query_QD = np.atleast_2d(query)
        _check(model, query_QD, k, time_range, max_per_video)
        ask = Question(
            query_QD=query_QD,
            k=k,
            effort=ef_search,
            within=within,
            min_score=min_score,
            max_per_video=max_per_video,
            videos=videos,
            time_range=time_range,
            uploaded_after=uploaded_after,
            uploaded_before=uploaded_before,
        )
        for attempt in range(_ATTEMPTS):
            try:
                groups = self._groups(model, ask, must_be_active=must_be_active)
            except StoreError as error:
                # The generation was replaced, and its tables dropped, meanwhile.
                dropped = isinstance(error.__cause__, psycopg.errors.UndefinedTable)
                if attempt == _ATTEMPTS - 1 or not dropped:
                    raise
                self._live.pop(model.model_id, None)
            else:
                return [_hit(group) for group in groups]
        raise AssertionError("unreachable")

    def _groups(self, model: ModelRow, ask: Question, *, must_be_active: bool) -> list[MomentGroup]:
        guess = self._live.get(model.model_id)
        if guess is None or not ask.fits_one_statement:
            return self._in_snapshot(model, ask, times=1, must_be_active=must_be_active)
        groups = self._at_once(guess, ask, must_be_active=must_be_active)
        if groups is None:
            return self._in_snapshot(model, ask, times=TIMES_BEYOND, must_be_active=must_be_active)
        return groups

    def _at_once(
        self, guess: Generation, ask: Question, *, must_be_active: bool
    ) -> list[MomentGroup] | None:
        """By one statement, which is a snapshot by itself; None where none tells enough."""
        with self._database.autocommit() as connection:
            scope = Scope(time_range=ask.time_range)
            return answer_at_once(connection, guess, scope, ask, must_be_active=must_be_active)

    def _in_snapshot(
        self, model: ModelRow, ask: Question, *, times: int, must_be_active: bool
    ) -> list[MomentGroup]:
        """As many statements as it takes: a video that is replaced is seen before or after."""
        with self._database.snapshot() as connection:
            target, active = generations.live_and_active(connection, model.model_id)
            if must_be_active and not active:
                raise ActiveModelChangedError
            if target is None:
                raise NothingIndexedError(
                    f"no index is published for model {model.name} yet; materialize "
                    "similarity_index"
                )
            self._live[model.model_id] = target
            scope = ask.scope(connection, model.model_id)
            return SearchRun(connection, target, scope, ask, times=times).groups()


def search_frames(
    database: Database, model: ModelRow, query: FloatArray, *, k: int, **filters: Any
) -> list[FrameHit]:
    """One search; see :meth:`MomentSearch.search`, which is quicker for many."""
    return MomentSearch(database).search(model, query, k=k, **filters)


def _check(
    model: ModelRow,
    query_QD: FloatArray,
    k: int,
    time_range: tuple[float, float] | None,
    max_per_video: int | None,
) -> None:
    if query_QD.ndim != 2 or not len(query_QD) or query_QD.shape[1] != model.dim:
        raise QueryError(
            f"the query has shape {query_QD.shape[-1:]}, model {model.name} ({model.dim},)"
        )
    if not 1 <= k <= K_MAX:
        raise QueryError(f"k={k} is not between 1 and {K_MAX}")
    if time_range is not None and not time_range[0] < time_range[1]:
        raise QueryError(f"time_range={time_range} does not start before it ends")
    if max_per_video is not None and max_per_video < 1:
        raise QueryError(f"max_per_video={max_per_video} is less than 1")


def _hit(group: MomentGroup) -> FrameHit:
    return FrameHit(
        video=group.peak.video,
        video_id=group.peak.video_id,
        frame_index=group.peak.frame_index,
        time_seconds=group.peak.time_seconds,
        score=group.peak.score,
        moment_start_seconds=group.reach.start_seconds,
        moment_end_seconds=group.reach.end_seconds,
    )
