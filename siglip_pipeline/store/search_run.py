"""One search: what is asked of the server, and when what it said is the whole answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.execution import apply_settings, choose_kind, effort_of
from siglip_pipeline.store.grouping import (
    Grouping,
    MomentGroup,
    MomentKey,
    Reach,
    ScoredMoment,
    group_moments,
)
from siglip_pipeline.store.index_kinds import Generation, Scope, index_kind
from siglip_pipeline.store.near_moments import MomentQueries, read_near
from siglip_pipeline.store.scope import resolve_scope

ROWS_MAX = 20_000
# Of an exact search: frames of the best moments crowd out the others.
EXACT_ROWS = 256
WALKED = 100
"""Peaks at most that one statement follows to both sides: each costs a little."""
_APART_ROWS, _GROUPED_ROWS, _CROWDED_ROWS = 2, 4, 6
"""Moments to look at for each hit that is wanted: where each is a hit of its own, where neighbours
are one hit, and where there are few videos, so that what is near is nearly all of some."""
_CROWDED = 100
"""Moments of the index for each hit that is wanted, under which it is crowded."""

_TIMES_AT_ONCE = (1, 2)
"""How far one statement looks, and another one where that was not enough: in few videos, many
moments are one hit."""
TIMES_BEYOND = 2 * _TIMES_AT_ONCE[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is looked for, and where; see :meth:`MomentSearch.search`."""

    query_QD: FloatArray
    k: int
    within: float
    effort: int | None = None
    min_score: float = -2.0
    max_per_video: int | None = None
    videos: Sequence[str] | None = None
    time_range: tuple[float, float] | None = None
    uploaded_after: datetime | None = None
    uploaded_before: datetime | None = None

    @property
    def fits_one_statement(self) -> bool:
        """Whether one statement may tell all: without asking first which videos are meant."""
        filters = (self.videos, self.uploaded_after, self.uploaded_before)
        one = len(self.query_QD) == 1 and self.k <= WALKED
        return one and all(value is None for value in filters)

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


class SearchRun:
    """One search of a generation, on one connection.

    Args:
        connection: in a transaction of one snapshot; for :meth:`at_once` without.
        target: the generation.
        scope: what may be found.
        ask: what is looked for.
        times: how many times as far to look as usual.
    """

    def __init__(
        self,
        connection: Connection,
        target: Generation,
        scope: Scope,
        ask: Question,
        *,
        times: int = 1,
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
        crowded = target.rows < _CROWDED * ask.k
        each = _CROWDED_ROWS if crowded else _GROUPED_ROWS
        if ask.within < 0:
            each = _APART_ROWS
        self._rows = max(each * ask.k, least) * times
        self._reaches: dict[MomentKey, Reach] = {}
        self.exhausted = False
        """The index had fewer rows than :meth:`at_once` wanted: no use in wanting more."""

    def at_once(self, *, must_be_active: bool) -> list[MomentGroup] | None:
        """What one statement about one vector tells: the best ``k``, or None where it does not.

        It does not, either, where the generation is not the live one any more, or not the one that
        search answers with although it must be.
        """
        (cursor,) = self._send(peaks_only=True)
        near = read_near(cursor)
        self.exhausted = near.looked_at < self._rows
        if near.live is None or (must_be_active and not near.live):
            return None
        grouping = self._grouping(near.moments, near.reaches)
        complete = len(grouping.groups) == self._ask.k or near.least_score < self._ask.min_score
        return grouping.groups if complete and not grouping.unknown else None

    def groups(self) -> list[MomentGroup]:
        """The best ``k``, by way of the index, looking further until they are complete."""
        while True:
            with self._connection.pipeline():
                sent = self._send()
            peaks, looked_at = self._read(sent)
            grouping = self._grouped(peaks)
            groups = grouping.groups
            if grouping.below or len(groups) >= self._ask.k:
                return groups
            if self._kind.name == "exact" and looked_at < self._rows:
                return groups
            if looked_at < self._rows or self._rows >= ROWS_MAX:
                # The index has no more to say, but only looking everywhere tells that it is all.
                self._kind = index_kind("exact")
            # Looking everywhere costs the same however much of it is wanted.
            self._rows *= 4 if self._kind.name == "exact" else 2

    def _send(self, *, peaks_only: bool = False) -> list[psycopg.Cursor[tuple[Any, ...]]]:
        ask, kind = self._ask, self._kind
        effort = ask.effort or effort_of(kind, self._target)
        apply_settings(self._connection, kind, rows=self._rows, scope=self._scope, effort=effort)
        # With several vectors, scores are known only when all have answered.
        follow = len(ask.query_QD) == 1 and ask.within >= 0
        return self._queries.ask_near(
            *(kind, ask.query_QD),
            rows=self._rows,
            walked=min(ask.k, WALKED) if follow else 0,
            max_per_video=ask.max_per_video,
            walked_only=peaks_only and follow,
        )

    def _read(
        self, sent: Sequence[psycopg.Cursor[tuple[Any, ...]]]
    ) -> tuple[list[ScoredMoment], int]:
        """The moments of the nearest rows, and how many rows there were for each vector."""
        found = [read_near(cursor) for cursor in sent]
        looked_at = min(near.looked_at for near in found)
        if len(found) == 1:
            self._reaches |= found[0].reaches
            return found[0].moments, looked_at
        # What one vector found, another may lie nearer to.
        keys = sorted({moment.key for near in found for moment in near.moments})
        return list(self._queries.score(keys, self._ask.query_QD).values()), looked_at

    def _grouped(self, peaks: Sequence[ScoredMoment]) -> Grouping:
        """Groups around these peaks, asking how far they go where that is not known."""
        while True:
            grouping = self._grouping(peaks, self._reaches)
            if not grouping.unknown:
                return grouping
            self._reaches |= self._queries.reach(grouping.unknown[:WALKED], self._ask.query_QD)

    def _grouping(self, peaks: Sequence[ScoredMoment], reaches: dict[MomentKey, Reach]) -> Grouping:
        ask = self._ask
        return group_moments(
            peaks,
            reaches,
            k=ask.k,
            within=ask.within,
            min_score=ask.min_score,
            max_per_video=ask.max_per_video,
        )


def answer_at_once(
    connection: Connection,
    target: Generation,
    scope: Scope,
    ask: Question,
    *,
    must_be_active: bool,
) -> list[MomentGroup] | None:
    """The best ``k`` by one statement, or by a second one that looks further; None: ask on.

    Whoever asks on, in a snapshot, begins :data:`TIMES_BEYOND` as far.
    """
    for times in _TIMES_AT_ONCE:
        run = SearchRun(connection, target, scope, ask, times=times)
        groups = run.at_once(must_be_active=must_be_active)
        if groups is not None or run.exhausted:
            return groups
    return None
