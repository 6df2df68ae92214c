"""Store evaluations of judged queries and promotions, to show how quality changes over time."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg.rows import class_row

from siglip_pipeline.store.database import Database

Purpose = Literal["command", "check", "promotion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastQuality:
    """An earlier evaluation."""

    model_key: str
    generation: int | None
    purpose: Purpose
    report: dict[str, Any]
    evaluated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A model that became the active one."""

    model_key: str
    replaced_key: str | None
    overridden: str | None
    """What spoke against it, and ``--force`` overrode."""
    promoted_at: datetime


def indexed_videos(database: Database, model_id: int) -> list[str]:
    """Return the paths of the videos that have vectors of a model."""
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT path FROM videos JOIN ingests USING (video_id) WHERE model_id = %s ORDER BY 1",
            [model_id],
        ).fetchall()
    return [path for (path,) in rows]


def record_quality(database: Database, report: dict[str, Any], *, purpose: Purpose) -> None:
    """Store the JSON of a :class:`~siglip_pipeline.evaluation.quality_report.QualityReport`."""
    with database.connection() as connection:
        connection.execute(
            """
            INSERT INTO quality_results (judged, digest, model_key, generation, purpose, report)
            VALUES (%s, %s, %s, %s, %s, %s)
            """,
            [
                *(report[name] for name in ("judged", "digest", "model_key", "generation")),
                purpose,
                json.dumps(report),
            ],
        )


def quality_history(
    database: Database, *, judged: str, purpose: Purpose, limit: int = 50
) -> list[PastQuality]:
    """Return the last evaluations of a file of judged queries, newest first."""
    with database.connection() as connection:
        rows = connection.execute(
            """
            SELECT model_key, generation, purpose, report, evaluated_at FROM quality_results
            WHERE judged = %s AND purpose = %s ORDER BY result_id DESC LIMIT %s
            """,
            [judged, purpose, limit],
        ).fetchall()
    return [
        PastQuality(
            model_key=row[0], generation=row[1], purpose=row[2], report=row[3], evaluated_at=row[4]
        )
        for row in rows
    ]


def promotions(database: Database, *, limit: int = 50) -> list[Promotion]:
    """Return the last promotions, newest first."""
    with (
        database.connection() as connection,
        connection.cursor(row_factory=class_row(Promotion)) as cursor,
    ):
        return cursor.execute(
            """
            SELECT model_key, replaced_key, overridden, promoted_at FROM promotions
            ORDER BY promotion_id DESC LIMIT %s
            """,
            [limit],
        ).fetchall()
