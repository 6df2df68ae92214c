"""Store recall checks, to show how recall changes over time."""

import json
from dataclasses import dataclass
from datetime import datetime

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


def recall_history(database: Database, model_id: int, *, limit: int = 50) -> list[PastCheck]:
    """Return the last checks of a model, newest first."""
    with database.connection() as connection:
        rows = connection.execute(
            """
            SELECT generation, kind, purpose, passed, recall_at_10, checked_at FROM recall_checks
            WHERE model_id = %s ORDER BY check_id DESC LIMIT %s
            """,
            [model_id, limit],
        ).fetchall()
    return [
        PastCheck(
            generation=row[0],
            kind=row[1],
            purpose=row[2],
            passed=row[3],
            recall_at_10=row[4],
            checked_at=row[5],
        )
        for row in rows
    ]
