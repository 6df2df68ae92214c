"""The end of a build: a new generation goes live, or is put aside; old ones are dropped."""

from psycopg import sql
from psycopg.types.json import Jsonb

from siglip_pipeline.store import generations, models, tables
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.recall import RecallReport
from siglip_pipeline.store.kinds import EF_SEARCH, Generation


def catch_up_early(database: Database, target: Generation) -> None:
    """Bring in most of what changed during the build, while writers go on."""
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
) -> bool:
    """Make a generation the live one, in one transaction; whether its model is active now.

    Args:
        database: where.
        target: filled, indexed and checked.
        report: its recall check; None for an empty index.
        seconds: that building took.
        promote: make the model the active one too, if it covers what is searchable now.
    """
    with database.connection() as connection:
        # Writers wait here, and go on into the new generation.
        generations.lock_for_publishing(connection, target.model_id)
        generations.catch_up(connection, target)
        connection.execute(
            "UPDATE generations SET state = 'retired' WHERE model_id = %s AND state = 'live'",
            [target.model_id],
        )
        connection.execute(
            "UPDATE generations SET state = 'live', frames = %s, rows = %s, table_bytes = %s,"
            " ann_bytes = %s, build_seconds = %s, recall_at_10 = %s, published_at = now(),"
            " parameters = parameters || %s WHERE model_id = %s AND generation = %s",
            [
                report.frames if report else 0,
                report.rows if report else 0,
                report.table_bytes if report else 0,
                report.ann_bytes if report else 0,
                seconds,
                report.recall_at_10 if report else None,
                Jsonb({EF_SEARCH: report.ef_search} if report else {}),
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
    """Note why a generation was not published."""
    with database.connection() as connection:
        connection.execute(
            "UPDATE generations SET state = 'failed', reason = %s"
            " WHERE model_id = %s AND generation = %s",
            [reason, target.model_id, target.generation],
        )


def drop_unused(database: Database, model_id: int) -> None:
    """Drop the tables of generations that are neither live nor being built.

    A search that still reads one is waited for; one that comes too late starts again.
    """
    with database.connection() as connection:
        unused = connection.execute(
            "SELECT DISTINCT generation FROM generation_videos JOIN generations"
            " USING (model_id, generation) WHERE model_id = %s AND state IN ('retired', 'failed')"
            " UNION SELECT generation FROM generations WHERE model_id = %s"
            " AND state IN ('retired', 'failed')"
            " AND to_regclass(format('index_%%s_g%%s', model_id, generation)) IS NOT NULL",
            [model_id, model_id],
        ).fetchall()
    for (generation,) in unused:
        with database.connection() as connection:
            connection.execute(
                sql.SQL("DROP TABLE IF EXISTS {}").format(tables.index(model_id, generation))
            )
            connection.execute(
                "DELETE FROM generation_videos WHERE model_id = %s AND generation = %s",
                [model_id, generation],
            )
