"""Store recall checks, to show how recall changes over time."""

import json
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.recall.recall_report import RecallReport
from siglip_pipeline.store.kinds import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class PastCheck:
    """An earlier recall check."""

    generation: int
    kind: str
    purpose: str
    passed: bool
    recall_at_10: float
    checked_at: datetime


def record_check(
    database: Database, target: Generation, report: RecallReport, *, purpose: str, passed: bool
) -> None:
    """Store a report in the history."""
    with database.connection() as connection:
        connection.execute(
            """
            INSERT INTO recall_checks (model_id, generation, kind, purpose, passed, recall_at_10,
            report) VALUES (%s, %s, %s, %s, %s, %s, %s)
            """,
            [
                target.model_id,
                target.generation,
                target.kind,
                purpose,
                passed,
                report.recall_at_10,
                json.dumps(report.to_json()),
            ],
        )


def recall_history(database: Database, model_id: int) -> list[PastCheck]:
    """Return the last 50 checks of a model, newest first."""
    with (
        database.connection() as connection,
        connection.cursor(row_factory=class_row(PastCheck)) as cursor,
    ):
        return cursor.execute(
            """
            SELECT generation, kind, purpose, passed, recall_at_10, checked_at FROM recall_checks
            WHERE model_id = %s ORDER BY check_id DESC LIMIT 50
            """,
            [model_id],
        ).fetchall()
