"""Store evaluations of judged queries and promotions, to show how quality changes over time."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg.rows import class_row

from siglip_pipeline.store.database import Connection, Database

Purpose = Literal["command", "check", "promotion"]
"""What an evaluation was made for."""

_CHOSEN = """
(%(judged)s::text IS NULL OR judged = %(judged)s)
AND (%(purpose)s::text IS NULL OR purpose = %(purpose)s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastQuality:
    """An earlier evaluation."""

    model_key: str
    generation: int | None
    purpose: Purpose
    report: dict[str, Any]
    """Without what each query scored."""
    queries: int
    """How many were rated."""
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
    connection: Connection,
    *,
    judged: str | None = None,
    purpose: Purpose | None = None,
    limit: int = 50,
    offset: int = 0,
) -> list[PastQuality]:
    """Return the last evaluations, newest first.

    Args:
        connection: to the database that holds them.
        judged: of the file of this name only.
        purpose: only those that were made for this.
        limit: so many.
        offset: skip so many of the newest.
    """
    with connection.cursor(row_factory=class_row(PastQuality)) as cursor:
        return cursor.execute(
            f"""
            SELECT model_key, generation, purpose, evaluated_at, report - 'queries' AS report,
                   jsonb_array_length(report->'queries') AS queries
            FROM quality_results WHERE {_CHOSEN}
            ORDER BY result_id DESC LIMIT %(limit)s OFFSET %(offset)s
            """,
            {"judged": judged, "purpose": purpose, "limit": limit, "offset": offset},
        ).fetchall()


def count_quality(
    connection: Connection, *, judged: str | None = None, purpose: Purpose | None = None
) -> int:
    """Return the number of evaluations that :func:`quality_history` reads page by page."""
    [row] = connection.execute(
        f"SELECT count(*) FROM quality_results WHERE {_CHOSEN}",
        {"judged": judged, "purpose": purpose},
    )
    return int(row[0])


def best_quality(database: Database, metric: str, *, judged: str, digest: str) -> float | None:
    """Return the highest value of a metric over all queries in a check; None before the first.

    Args:
        database: holds the evaluations.
        metric: its name.
        judged: of the file of this name.
        digest: of these queries and judgements.
    """
    with database.connection() as connection:
        row = connection.execute(
            """
            SELECT max((value->>'mean')::float8)
            FROM quality_results,
                 jsonb_array_elements(report->'tags'->0->'metrics') AS value
            WHERE judged = %s AND digest = %s AND purpose = 'check' AND value->>'metric' = %s
            """,
            [judged, digest, metric],
        ).fetchone()
    return None if row is None else row[0]


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
