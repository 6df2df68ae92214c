"""The interface of every kind of index: fill it, build it, and find the frames near a query."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from psycopg import sql
from psycopg.adapt import PyFormat

from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.integer_array import IntegerArray
from siglip_pipeline.store.kinds.effort import Effort


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One index over the vectors of one model."""

    model_id: int
    dim: int
    generation: int
    kind: str
    parameters: dict[str, Any] = field(default_factory=dict, hash=False)
    rows: int = field(default=0, compare=False)
    """Rows of the index when it was published; 0 before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which frames a search may return."""

    video_ids: list[int] | None = None
    """None for any video."""
    frames: int = 0
    """Frames of those videos."""
    moments: int = 0
    """Moments of those videos."""
    time_range: tuple[float, float] | None = None
    """Seconds within the video, half-open."""

    @property
    def everything(self) -> bool:
        """Return whether nothing is filtered out."""
        return self.video_ids is None and self.time_range is None

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the conditions."""
        start, end = self.time_range or (None, None)
        video_ids = None if self.video_ids is None else IntegerArray(self.video_ids)
        return {"video_ids": video_ids, "from_seconds": start, "to_seconds": end}

    def video_condition(self, alias: str) -> sql.Composed:
        """Return SQL that is true for rows of videos in scope."""
        if self.video_ids is None:
            return sql.SQL("true").format()
        return sql.SQL("{}.video_id = ANY(%(video_ids)s::integer[])").format(sql.Identifier(alias))

    def video_filter(self, alias: str) -> sql.Composed:
        """Return :meth:`video_condition` in a form that the planner takes for any list of videos.

        Each row is looked up in a hash table. To plan a list of 3,000 ids takes 3 ms; this does
        not, and a kept plan stays right. But no index over videos can be used.
        """
        if self.video_ids is None:
            return sql.SQL("true").format()
        return sql.SQL(
            # IS TRUE keeps the planner from turning the list into a join.
            "({}.video_id IN (SELECT unnest(%(video_ids)s::integer[]))) IS TRUE"
        ).format(sql.Identifier(alias))

    def frame_condition(self, alias: str) -> sql.Composed:
        """Return SQL that is true for rows of a frames table in scope."""
        return sql.SQL("{} AND {}").format(self.video_condition(alias), self.time_condition(alias))

    def time_condition(self, alias: str) -> sql.Composed:
        """Return SQL that is true for rows in scope of a frames table, within a video in scope."""
        if self.time_range is None:
            return sql.SQL("true").format()
        return sql.SQL(
            "{row}.time_seconds >= %(from_seconds)s AND {row}.time_seconds < %(to_seconds)s"
        ).format(row=sql.Identifier(alias))


class IndexKind(ABC):
    """One way to find the frames near a query."""

    name: ClassVar[str]
    default_ef_search: ClassVar[int]
    """``ef_search`` of HNSW, or ``probes`` of IVFFlat, where neither request nor index has one."""
    efforts: ClassVar[tuple[Effort, ...]]
    """What the recall check measures, cheapest first, for its choice and its plot."""
    holds_vectors: ClassVar[bool] = True
    """Whether a generation has a table of its own."""

    groups_frames: ClassVar[bool] = False
    """Whether a row of the index stands for several frames."""
    adds_changes: ClassVar[bool] = False
    """Whether changed videos are added to the live index; else searched exactly beside it."""

    @abstractmethod
    def create(self, connection: Connection, target: Generation) -> None:
        """Create the generation's empty table."""

    @abstractmethod
    def add(
        self, connection: Connection, target: Generation, video_ids: Sequence[int] | None = None
    ) -> None:
        """Add the current vectors of these videos; None for all videos."""

    def parameters(self, connection: Connection, target: Generation) -> dict[str, Any]:
        """Return parameters derived from the data, which are stored before the table is filled."""
        return {}

    @abstractmethod
    def index_statement(self, target: Generation) -> sql.Composed | None:
        """Return ``CREATE INDEX`` for the filled table; None where there is nothing to build."""

    @abstractmethod
    def build_bytes_per_row(self, dim: int) -> int:
        """Return the memory that a build needs per row, to hold the graph or the sample."""

    @abstractmethod
    def settings(self, *, ef_search: int, rows: int, scope: Scope) -> dict[str, str]:
        """Return the server settings of a search, by name."""

    @abstractmethod
    def near(
        self,
        target: Generation,
        *,
        rows: int,
        scope: Scope,
        best_of_moment: bool,
        query: str = "query",
    ) -> sql.Composed:
        """Return SQL for (video_id, frame_index, time_seconds, distance) of frames near a vector.

        Args:
            target: the generation to search.
            rows: the number of nearest rows of the index to read: moments, or frames.
            scope: what may be returned.
            best_of_moment: whether one row per moment suffices.
            query: name of the parameter that is the vector.
        """

    def within(
        self, target: Generation, scope: Scope, *, effort: Effort, rows: int
    ) -> tuple["IndexKind", int]:
        """Return what searches a scope as an effort searches everything, and its ``ef_search``."""
        return self, effort.ef_search

    def in_full(self, target: Generation) -> "IndexKind":
        """Return what compares every row of the index; itself where that is not possible."""
        return self

    def keeps_plan(self, scope: Scope) -> bool:
        """Return whether one plan of :meth:`near` suits all values of a filter of this form.

        A plan that does not know the filter may walk the graph, or not, where it should do the
        other.
        """
        return scope.everything

    def plan_parameters(self, target: Generation) -> dict[str, Any]:
        """Return the parameters of :meth:`near` beyond those of the query and the scope."""
        return {"model_id": target.model_id, "generation": target.generation}


def among(alias: str, video_ids: Sequence[int] | None) -> sql.Composed:
    """Return SQL that is true for rows of these videos; None for any video."""
    if video_ids is None:
        return sql.SQL("true").format()
    return sql.SQL("{}.video_id = ANY({}::integer[])").format(
        sql.Identifier(alias), sql.Literal(list(video_ids))
    )


def vector_type(dim: int) -> sql.Composed:
    """Return the SQL type ``halfvec(dim)``."""
    return sql.SQL("halfvec({})").format(sql.Literal(dim))


def query_vector(dim: int, name: str = "query") -> sql.Composed:
    """Return a query vector as a parameter whose type lets the planner use an index."""
    return sql.SQL("{}::{}").format(sql.Placeholder(name, format=PyFormat.BINARY), vector_type(dim))


_EXACT = sql.SQL("""
SELECT f.video_id, f.frame_index, f.time_seconds, f.embedding <#> {query} AS distance
FROM {frames} f
JOIN videos tie ON tie.video_id = f.video_id
WHERE {scope}
ORDER BY distance, tie.path, f.frame_index LIMIT {rows}
""")


def exact_frames(target: Generation, *, rows: int, scope: Scope, query: str) -> sql.Composed:
    """Return SQL for the nearest frames by an exact search; ties by path, then frame."""
    return _EXACT.format(
        query=query_vector(target.dim, query),
        frames=tables.frames(target.model_id),
        scope=scope.frame_condition("f"),
        rows=sql.Literal(rows),
    )


_LATE = sql.SQL("""
SELECT f.video_id, f.frame_index, f.time_seconds, f.embedding <#> {query} AS distance
FROM {frames} f
WHERE f.video_id IN (
    SELECT video_id FROM generation_videos
    WHERE model_id = %(model_id)s AND generation = %(generation)s AND late
      AND ingest_id IS NOT NULL
) AND {scope}
ORDER BY distance LIMIT {rows}
""")


def late_frames(target: Generation, *, rows: int, scope: Scope, query: str) -> sql.Composed:
    """Return SQL for the nearest frames of videos that changed since the generation was built."""
    return _LATE.format(
        query=query_vector(target.dim, query),
        frames=tables.frames(target.model_id),
        scope=scope.frame_condition("f"),
        rows=sql.Literal(rows),
    )
