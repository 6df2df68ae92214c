"""Search: the moments nearest to a query vector, whatever kind the live index is of.

Shapes: Q vectors of one query, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import psycopg

from siglip_pipeline.errors import NothingIndexedError, QueryError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import generations
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.execution import apply_settings, choose_kind, effort_of
from siglip_pipeline.store.grouping import (
    MomentGroup,
    MomentKey,
    Reach,
    ScoredMoment,
    group_moments,
)
from siglip_pipeline.store.index_kinds import Generation, Scope, index_kind
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.near_moments import MomentQueries, NearMoments, read_near
from siglip_pipeline.store.scope import resolve_scope

ROWS_MAX = 20_000
# Of an exact search: frames of the best moments crowd out the others.
EXACT_ROWS = 256
K_MAX = 1000
WALKED = 100
"""Peaks at most that one statement follows to both sides: better ones may take in those behind."""
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
    still is: a search without filters is one question to the server, or two.
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
        ask = _Question(
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
                with self._database.connection() as connection:
                    search = self._begin(connection, model, ask, must_be_active=must_be_active)
                    return [_hit(group) for group in search.groups()]
            except Exception as error:
                # The generation was replaced, and its tables dropped, between two statements.
                cause = error.__cause__ or error
                if attempt == _ATTEMPTS - 1 or not isinstance(cause, psycopg.errors.UndefinedTable):
                    raise
                self._live.pop(model.model_id, None)
        raise AssertionError("unreachable")

    def _begin(
        self, connection: Connection, model: ModelRow, ask: "_Question", *, must_be_active: bool
    ) -> "_Search":
        """A search in the live generation; asked already where that is the one remembered."""
        guess = None if ask.names_videos else self._live.get(model.model_id)
        search = None
        with connection.pipeline():
            # One snapshot: a video that is replaced meanwhile is seen before or after.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            asked = generations.ask_live_and_active(connection, model.model_id)
            if guess is not None:
                search = _Search(connection, guess, Scope(time_range=ask.time_range), ask)
                search.send()
        target, active = generations.read_live_and_active(asked, model.model_id)
        if must_be_active and not active:
            raise ActiveModelChangedError
        if target is None:
            raise NothingIndexedError(
                f"no index is published for model {model.name} yet; materialize similarity_index"
            )
        self._live[model.model_id] = target
        if search is None or target != guess:
            search = _Search(connection, target, ask.scope(connection, model.model_id), ask)
        return search


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is looked for, and where; see :meth:`MomentSearch.search`."""

    query_QD: FloatArray
    k: int
    effort: int | None
    within: float
    min_score: float
    max_per_video: int | None
    videos: Sequence[str] | None
    time_range: tuple[float, float] | None
    uploaded_after: datetime | None
    uploaded_before: datetime | None

    @property
    def names_videos(self) -> bool:
        """Whether the database has to say which videos are meant."""
        filters = (self.videos, self.uploaded_after, self.uploaded_before)
        return any(value is not None for value in filters)

    def scope(self, connection: Connection, model_id: int) -> Scope:
        """What may be found."""
        return resolve_scope(
            connection,
            model_id,
            videos=self.videos,
            time_range=self.time_range,
            uploaded_after=self.uploaded_after,
            uploaded_before=self.uploaded_before,
        )


class _Search:
    """One search within one transaction."""

    def __init__(
        self, connection: Connection, target: Generation, scope: Scope, ask: _Question
    ) -> None:
        self._connection, self._target, self._scope, self._ask = connection, target, scope, ask
        self._queries = MomentQueries(
            connection=connection,
            target=target,
            scope=scope,
            within=ask.within,
            min_score=ask.min_score,
        )
        self._kind = choose_kind(target, scope)
        exact = self._kind.name == "exact"
        least = EXACT_ROWS if exact else ask.effort or effort_of(self._kind, target)
        self._rows = max((2 if ask.within < 0 else 4) * ask.k, least)
        self._sent: list[psycopg.Cursor[tuple[object, ...]]] = []
        self._reaches: dict[MomentKey, Reach] = {}

    def send(self) -> None:
        """Ask for the nearest rows; :meth:`groups` reads them. May be in a pipeline."""
        ask, kind = self._ask, self._kind
        effort = ask.effort or effort_of(kind, self._target)
        apply_settings(self._connection, kind, rows=self._rows, scope=self._scope, effort=effort)
        # With several vectors, scores are known only when all have answered; and what was asked
        # before need not be asked again.
        once = len(ask.query_QD) == 1 and ask.within >= 0 and not self._reaches
        self._sent = self._queries.ask_near(
            kind, ask.query_QD, rows=self._rows, walked=min(ask.k, WALKED) if once else 0
        )

    def groups(self) -> list[MomentGroup]:
        """The best ``k``, by way of the index, looking further until they are complete."""
        while True:
            if not self._sent:
                with self._connection.pipeline():
                    self.send()
            peaks, looked_at = self._read()
            groups, complete = self._group(peaks)
            if complete or len(groups) >= self._ask.k:
                return groups
            if self._kind.name == "exact" and looked_at < self._rows:
                return groups
            if looked_at < self._rows or self._rows >= ROWS_MAX:
                # The index has no more to say, but only looking everywhere tells that it is all.
                self._kind = index_kind("exact")
            # Looking everywhere costs the same however much of it is wanted.
            self._rows *= 4 if self._kind.name == "exact" else 2

    def _read(self) -> tuple[list[ScoredMoment], int]:
        """The moments of the nearest rows, and how many rows there were for each vector."""
        found: list[NearMoments] = [read_near(cursor) for cursor in self._sent]
        self._sent = []
        looked_at = min(near.looked_at for near in found)
        if len(found) == 1:
            self._reaches |= found[0].reaches
            return found[0].moments, looked_at
        # What one vector found, another may lie nearer to.
        keys = sorted({moment.key for near in found for moment in near.moments})
        return list(self._queries.score(keys, self._ask.query_QD).values()), looked_at

    def _group(self, peaks: Sequence[ScoredMoment]) -> tuple[list[MomentGroup], bool]:
        """Groups around these peaks, and whether better ones cannot be found."""
        ask = self._ask
        while True:
            grouping = group_moments(
                peaks,
                self._reaches,
                k=ask.k,
                within=ask.within,
                min_score=ask.min_score,
                max_per_video=ask.max_per_video,
            )
            if not grouping.unknown:
                return grouping.groups, grouping.below
            self._reaches |= self._queries.reach(grouping.unknown[:WALKED], ask.query_QD)
