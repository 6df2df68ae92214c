"""What every kind of index can do: be filled, be built, and name the frames near a query."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from psycopg import sql
from psycopg.adapt import PyFormat

from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection

EF_SEARCH = "effort"
"""The parameter of a generation under which databases keep its ``ef_search``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One index over the vectors of one model."""

    model_id: int
    dim: int
    generation: int
    kind: str
    parameters: dict[str, Any] = field(default_factory=dict, hash=False)
    rows: int = field(default=0, compare=False)
    """Of the index when it was published; 0 before."""

    @property
    def ef_search(self) -> int | None:
        """What the recall check chose: ``ef_search`` of HNSW, ``probes`` of IVFFlat."""
        return self.parameters.get(EF_SEARCH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which frames a search may return."""

    video_ids: list[int] | None = None
    """None: any video."""
    frames: int = 0
    """Frames of those videos."""
    moments: int = 0
    """Moments of those videos."""
    time_range: tuple[float, float] | None = None
    """Seconds within the video, half-open."""

    @property
    def everything(self) -> bool:
        """Nothing is filtered out."""
        return self.video_ids is None and self.time_range is None

    def parameters(self) -> dict[str, Any]:
        """Values of :meth:`frame_condition` and its like."""
        start, end = self.time_range or (None, None)
        return {"video_ids": self.video_ids, "from_seconds": start, "to_seconds": end}

    def video_condition(self, alias: str) -> sql.Composed:
        """SQL: the row's video is in scope."""
        if self.video_ids is None:
            return sql.SQL("true").format()
        return sql.SQL("{}.video_id = ANY(%(video_ids)s::integer[])").format(sql.Identifier(alias))

    def frame_condition(self, alias: str) -> sql.Composed:
        """SQL: a row of a frames table is in scope."""
        condition = self.video_condition(alias)
        if self.time_range is None:
            return condition
        return sql.SQL(
            "{video} AND {row}.time_seconds >= %(from_seconds)s"
            " AND {row}.time_seconds < %(to_seconds)s"
        ).format(video=condition, row=sql.Identifier(alias))


class IndexKind(ABC):
    """One way to find the frames near a query."""

    name: ClassVar[str]
    default_ef_search: ClassVar[int]
    """When nobody says: ``ef_search`` of HNSW, ``probes`` of IVFFlat."""
    ef_searches: ClassVar[tuple[int, ...]]
    """Values that the recall check tries, for its plot."""
    holds_vectors: ClassVar[bool] = True
    """Whether a generation has a table of its own."""

    groups_frames: ClassVar[bool] = False
    """Whether a row of the index stands for several frames."""
    adds_changes: ClassVar[bool] = False
    """Whether changed videos are added to the live index, rather than looked up beside it."""

    @abstractmethod
    def create(self, connection: Connection, target: Generation) -> None:
        """Make the generation's empty table."""

    @abstractmethod
    def add(
        self, connection: Connection, target: Generation, video_ids: Sequence[int] | None = None
    ) -> None:
        """Add what these videos hold now (None: all videos)."""

    def parameters(self, connection: Connection, target: Generation) -> dict[str, Any]:
        """What is to be settled from the data before the table is filled; kept with it."""
        return {}

    @abstractmethod
    def index_statement(self, target: Generation) -> sql.Composed | None:
        """``CREATE INDEX`` for the filled table; None where there is nothing to build."""

    @abstractmethod
    def build_bytes_per_row(self, dim: int) -> int:
        """Memory that building takes for each row, to keep the graph or the sample in memory."""

    @abstractmethod
    def settings(self, *, ef_search: int, rows: int, scope: Scope) -> dict[str, str]:
        """Server settings for the length of a search."""

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
        """SQL for (video_id, frame_index, time_seconds, distance) of frames near a vector.

        Args:
            target: the generation to search.
            rows: how far to look: this many moments, or frames.
            scope: what may be returned.
            best_of_moment: one row for each moment will do.
            query: name of the parameter that is the vector.
        """

    def plan_parameters(self, target: Generation) -> dict[str, Any]:
        """Values that :meth:`near` needs beyond the query and the scope."""
        return {"model_id": target.model_id, "generation": target.generation}


def among(alias: str, video_ids: Sequence[int] | None) -> sql.Composed:
    """SQL: the row's video is one of these; None: any."""
    if video_ids is None:
        return sql.SQL("true").format()
    return sql.SQL("{}.video_id = ANY({}::integer[])").format(
        sql.Identifier(alias), sql.Literal(list(video_ids))
    )


def vector_type(dim: int) -> sql.Composed:
    """``halfvec(dim)``."""
    return sql.SQL("halfvec({})").format(sql.Literal(dim))


def query_vector(dim: int, name: str = "query") -> sql.Composed:
    """A vector of the query as a value that the planner can use with an index."""
    return sql.SQL("{}::{}").format(sql.Placeholder(name, format=PyFormat.BINARY), vector_type(dim))


_EXACT = sql.SQL("""
SELECT f.video_id, f.frame_index, f.time_seconds, f.embedding <#> {query} AS distance
FROM {frames} f
JOIN videos tie ON tie.video_id = f.video_id
WHERE {scope}
ORDER BY distance, tie.path, f.frame_index LIMIT {rows}
""")


def exact_frames(target: Generation, *, rows: int, scope: Scope, query: str) -> sql.Composed:
    """The nearest frames by looking at all of them; ties by path, then frame."""
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
    """The nearest frames of videos that have changed since the generation was built."""
    return _LATE.format(
        query=query_vector(target.dim, query),
        frames=tables.frames(target.model_id),
        scope=scope.frame_condition("f"),
        rows=sql.Literal(rows),
    )
