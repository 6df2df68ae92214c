"""Building an index generation beside the live one, and publishing it when its recall is proven."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg import sql

from siglip_pipeline.errors import SimilarityIndexError
from siglip_pipeline.settings import Settings
from siglip_pipeline.store import models, recall, tables
from siglip_pipeline.store.database import LOCK_BUILD, LOCK_MODEL, Connection, Database
from siglip_pipeline.store.generations import Generation
from siglip_pipeline.store.index_kinds import index_kind
from siglip_pipeline.store.search import FrameHit, search_frames

__all__ = ["FrameHit", "IndexReport", "build_index", "search_frames"]

logger = logging.getLogger(__name__)

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """What became of a build."""

    kind: str
    generation: int | None
    published: bool
    reason: str
    """Why it was, or was not, built or published; for people."""
    frames: int
    rows: int
    """Rows of the index: moments, or frames."""
    index_bytes: int
    build_seconds: float
    recall_at_10: float | None

    def to_json(self) -> dict[str, Any]:
        """For metadata and ``--json``."""
        return {
            "kind": self.kind,
            "generation": self.generation,
            "published": self.published,
            "reason": self.reason,
            "frames": self.frames,
            "rows": self.rows,
            "index_bytes": self.index_bytes,
            "bytes_per_frame": round(self.index_bytes / max(1, self.frames), 1),
            "build_seconds": round(self.build_seconds, 3),
            "recall_at_10": self.recall_at_10,
        }


def build_index(
    database: Database,
    model_id: int,
    *,
    settings: Settings,
    kind: str | None = None,
    progress: Progress = logger.info,
    force: bool = False,
) -> IndexReport:
    """Build a new generation beside the live one, and publish it when its recall suffices.

    Args:
        database: where.
        model_id: whose vectors.
        settings: ``index_kind``, ``index_min_recall``.
        kind: instead of ``settings.index_kind``.
        progress: is told, in sentences, how far the build is.
        force: build even if the live generation is up to date.

    Raises:
        SimilarityIndexError: another process is building, or nothing can be built.
    """
    chosen = index_kind(kind or settings.index_kind)
    with database.autocommit() as guard:
        got = guard.execute(
            "SELECT pg_try_advisory_lock(%s, %s)", [LOCK_BUILD, model_id]
        ).fetchone()
        if got != (True,):
            raise SimilarityIndexError(
                f"another process is building an index for model {model_id}; wait for it"
            )
        try:
            began = time.monotonic()
            target = _begin(database, model_id, chosen.name)
            progress(f"building generation {target.generation} ({chosen.name})")
            rows = _fill(database, target)
            _create(database, target)
            size = _size(database, target)
            built = time.monotonic() - began
            frames, reached = _check(database, target)
            published = reached is None or reached >= settings.index_min_recall
            if published:
                _publish(database, target, frames, rows, size, built, reached)
                reason = "published"
            else:
                reason = (
                    f"recall@10 is {reached:.3f}, SIGLIP_INDEX_MIN_RECALL asks for "
                    f"{settings.index_min_recall}; the live index stays"
                )
                _discard(database, target, reason)
            progress(f"generation {target.generation}: {reason}")
        finally:
            guard.execute("SELECT pg_advisory_unlock(%s, %s)", [LOCK_BUILD, model_id])
    return IndexReport(
        kind=chosen.name,
        generation=target.generation,
        published=published,
        reason=reason,
        frames=frames,
        rows=rows,
        index_bytes=size,
        build_seconds=built,
        recall_at_10=reached,
    )


def _begin(database: Database, model_id: int, kind: str) -> Generation:
    with database.connection() as connection:
        row = connection.execute(
            "INSERT INTO generations (model_id, generation, kind, state)"
            " SELECT %(model)s, coalesce(max(generation), 0) + 1, %(kind)s, 'building'"
            " FROM generations WHERE model_id = %(model)s"
            " RETURNING generation, (SELECT dim FROM models WHERE model_id = %(model)s)",
            {"model": model_id, "kind": kind},
        ).fetchone()
    assert row is not None
    return Generation(model_id=model_id, dim=row[1], generation=row[0], kind=kind)


def _fill(database: Database, target: Generation) -> int:
    kind = index_kind(target.kind)
    with database.connection() as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute(
            "INSERT INTO generation_videos (model_id, generation, video_id, ingest_id, frames)"
            " SELECT model_id, %s, video_id, ingest_id, frames FROM ingests WHERE model_id = %s",
            [target.generation, target.model_id],
        )
        kind.fill(connection, target)
        if not kind.holds_vectors:
            return 0
        table = tables.index(target.model_id, target.generation)
        connection.execute(sql.SQL("ANALYZE {}").format(table))
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table)).fetchone()
        assert row is not None
        return int(row[0])


def _create(database: Database, target: Generation) -> None:
    statement = index_kind(target.kind).index_statement(target)
    if statement is not None:
        with database.connection() as connection:
            connection.execute("SET LOCAL maintenance_work_mem = '512MB'")
            connection.execute(statement)


def _size(database: Database, target: Generation) -> int:
    if not index_kind(target.kind).holds_vectors:
        return 0
    with database.connection() as connection:
        row = connection.execute(
            sql.SQL("SELECT pg_total_relation_size({}::regclass)").format(
                sql.Literal(f"index_{target.model_id}_g{target.generation}")
            )
        ).fetchone()
    assert row is not None
    return int(row[0])


def _check(database: Database, target: Generation) -> tuple[int, float | None]:
    with database.connection() as connection:
        row = connection.execute(
            "SELECT coalesce(sum(frames), 0) FROM generation_videos"
            " WHERE model_id = %s AND generation = %s",
            [target.model_id, target.generation],
        ).fetchone()
        assert row is not None
        frames = int(row[0])
        if frames == 0 or target.kind == "exact":
            return frames, None if frames == 0 else 1.0
        picked = (
            connection.cursor(binary=True)
            .execute(
                sql.SQL(
                    "SELECT embedding FROM {} ORDER BY hashint4(frame_index), video_id LIMIT 50"
                ).format(tables.frames(target.model_id))
            )
            .fetchall()
        )
        queries = [
            recall.Query(
                modality="picture",
                label=str(i),
                embedding_D=np.asarray(row[0].to_numpy(), dtype=np.float32),
            )
            for i, row in enumerate(picked)
        ]
        return frames, recall.measure(connection, target, queries).recall[10]


def _publish(
    database: Database,
    target: Generation,
    frames: int,
    rows: int,
    size: int,
    seconds: float,
    reached: float | None,
) -> None:
    with database.connection() as connection:
        # Loads wait here, and go on into the new generation.
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_MODEL, target.model_id])
        _catch_up(connection, target)
        connection.execute(
            "UPDATE generations SET state = 'retired' WHERE model_id = %s AND state = 'live'",
            [target.model_id],
        )
        connection.execute(
            "UPDATE generations SET state = 'live', frames = %s, rows = %s, index_bytes = %s,"
            " build_seconds = %s, recall_at_10 = %s, published_at = now()"
            " WHERE model_id = %s AND generation = %s",
            [frames, rows, size, seconds, reached, target.model_id, target.generation],
        )
        connection.execute(
            "UPDATE models SET active_generation = %s WHERE model_id = %s",
            [target.generation, target.model_id],
        )
        active = connection.execute("SELECT 1 FROM models WHERE is_active").fetchone()
        if active is None:
            models.activate(connection, target.model_id)
    _drop_retired(database, target.model_id)


def _catch_up(connection: Connection, target: Generation) -> None:
    """Bring in what was loaded or deleted since the generation's table was filled."""


def _discard(database: Database, target: Generation, reason: str) -> None:
    with database.connection() as connection:
        connection.execute(
            "UPDATE generations SET state = 'failed', reason = %s"
            " WHERE model_id = %s AND generation = %s",
            [reason, target.model_id, target.generation],
        )
    _drop_retired(database, target.model_id)


def _drop_retired(database: Database, model_id: int) -> None:
    """Drop the tables of generations that are not live any more."""
    with database.connection() as connection:
        old = connection.execute(
            "SELECT generation FROM generations WHERE model_id = %s"
            " AND state IN ('retired', 'failed')",
            [model_id],
        ).fetchall()
    for (generation,) in old:
        with database.connection() as connection:
            connection.execute(
                sql.SQL("DROP TABLE IF EXISTS {}").format(tables.index(model_id, generation))
            )
            connection.execute(
                "DELETE FROM generation_videos WHERE model_id = %s AND generation = %s",
                [model_id, generation],
            )
