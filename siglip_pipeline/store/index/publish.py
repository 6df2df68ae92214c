"""End a build: publish or discard the new generation, and drop old ones."""

from psycopg import sql
from psycopg.types.json import Jsonb

from siglip_pipeline.store import generations, models, tables
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.recall import RecallReport
from siglip_pipeline.store.kinds import Generation

_PUBLISH = """
UPDATE generations
SET state = 'live', frames = %s, rows = %s, table_bytes = %s, ann_bytes = %s, build_seconds = %s,
    recall_at_10 = %s, published_at = now(), parameters = parameters || %s, reason = %s
WHERE model_id = %s AND generation = %s
"""

_UNUSED = """
SELECT DISTINCT generation
FROM generation_videos JOIN generations USING (model_id, generation)
WHERE model_id = %s AND state IN ('retired', 'failed')
UNION
SELECT generation FROM generations
WHERE model_id = %s AND state IN ('retired', 'failed')
  AND (to_regclass(format('index_%%s_g%%s', model_id, generation)) IS NOT NULL
       OR to_regclass(format('clusters_%%s_g%%s', model_id, generation)) IS NOT NULL)
"""


def catch_up_early(database: Database, target: Generation) -> None:
    """Apply most of the changes since the build began, without making writers wait."""
    with database.connection() as connection:
        changed = generations.changed_videos(connection, target)
    for video_id in changed:
        with database.connection() as connection:
            generations.lock_for_writing(connection, target.model_id, video_id)
            generations.refresh_video(connection, target, video_id)


def publish(
    database: Database,
    target: Generation,
    report: RecallReport | None,
    seconds: float,
    *,
    promote: bool,
    instead_of: str | None = None,
) -> bool:
    """Make a generation the live one, in one transaction.

    Args:
        database: holds the generation.
        target: the generation, filled, indexed and checked.
        report: its recall check; None for an empty index.
        seconds: how long the build took.
        promote: also make the model the active one, if it covers what is searchable now.
        instead_of: the index that was refused, and why, if this one answers in its place.

    Returns:
        Whether the model is the active one now.
    """
    with database.connection() as connection:
        # Writers wait for this transaction, and then write to the new generation.
        generations.lock_for_publishing(connection, target.model_id)
        generations.catch_up(connection, target)
        connection.execute(
            "UPDATE generations SET state = 'retired' WHERE model_id = %s AND state = 'live'",
            [target.model_id],
        )
        connection.execute(
            _PUBLISH,
            [
                report.frames if report else 0,
                report.rows if report else 0,
                report.table_bytes if report else 0,
                report.ann_bytes if report else 0,
                seconds,
                report.recall_at_10 if report else None,
                Jsonb(report.parameters if report else {}),
                instead_of,
                target.model_id,
                target.generation,
            ],
        )
        connection.execute(
            "UPDATE models SET active_generation = %s WHERE model_id = %s",
            [target.generation, target.model_id],
        )
        active = connection.execute("SELECT model_id FROM models WHERE is_active").fetchone()
        covers = promote and models.read_coverage(connection, target.model_id).complete
        if active is None or covers:
            models.activate(connection, target.model_id)
            active = (target.model_id,)
    return bool(active[0] == target.model_id)


def discard(database: Database, target: Generation, reason: str) -> None:
    """Record why a generation was not published."""
    with database.connection() as connection:
        connection.execute(
            """
            UPDATE generations SET state = 'failed', reason = %s
            WHERE model_id = %s AND generation = %s
            """,
            [reason, target.model_id, target.generation],
        )


def drop_unused(database: Database, model_id: int) -> None:
    """Drop the tables of generations that are neither live nor being built.

    Wait for searches that read one. A search that finds its table dropped starts again.
    """
    with database.connection() as connection:
        unused = connection.execute(_UNUSED, [model_id, model_id]).fetchall()
    for (generation,) in unused:
        with database.connection() as connection:
            connection.execute(
                sql.SQL("DROP TABLE IF EXISTS {}, {}").format(
                    tables.index(model_id, generation), tables.clusters(model_id, generation)
                )
            )
            connection.execute(
                "DELETE FROM generation_videos WHERE model_id = %s AND generation = %s",
                [model_id, generation],
            )
