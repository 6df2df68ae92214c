"""A large collection in seconds: what a first run left in the databases, copied under other names.

The rows are those that the pipeline wrote for real videos, so every later query meets what it would
meet after a backfill of that size; they were not written by it one by one.
"""

import psycopg
from psycopg import sql

NAME = "to_char({}, 'FM000000') || '.mp4'"
_OF_DAGSTER = {
    # Tables whose rows name a partition, with the column that holds the event as JSON.
    "event_logs": "event",
    "asset_check_executions": "evaluation_event",
}


def seed_dagster(url: str, *, first: int, videos: int) -> None:
    """Copy the events of partitions 0 to ``first`` - 1 to partitions ``first`` to ``videos`` - 1.

    Args:
        url: of Dagster's database; only here may nobody else write meanwhile.
        first: partitions that are there.
        videos: partitions that there are to be.
    """
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO dynamic_partitions (partitions_def_name, partition) SELECT 'videos', "
            + NAME.format("n")
            + " FROM generate_series(%s::int, %s::int) n",
            [first, videos - 1],
        )
        (step,) = connection.execute("SELECT max(id) FROM event_logs").fetchone() or (0,)
        for table, event in _OF_DAGSTER.items():
            _copy(
                connection,
                table,
                {
                    "id": "s.id + (n / %(first)s) * %(step)s",
                    "partition": NAME.format("n"),
                    event: f"replace(s.{event}, s.partition, {NAME.format('n')})",
                    "evaluation_event_storage_id": (
                        "s.evaluation_event_storage_id + (n / %(first)s) * %(step)s"
                    ),
                    "materialization_event_storage_id": (
                        "s.materialization_event_storage_id + (n / %(first)s) * %(step)s"
                    ),
                },
                "s.partition = " + NAME.format("n %% %(first)s"),
                {"first": first, "step": step, "last": videos - 1},
            )
        connection.execute(
            "INSERT INTO asset_event_tags (event_id, asset_key, key, value, event_timestamp)"
            " SELECT e.id, t.asset_key, t.key, t.value, t.event_timestamp FROM event_logs e"
            " JOIN asset_event_tags t ON t.event_id = e.id %% %(step)s"
            " WHERE e.id > %(step)s",
            {"step": step},
        )
        for table in _OF_DAGSTER:
            connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"
            )
    _analyse(url)


def seed_store(url: str, *, first: int, videos: int) -> None:
    """The same for the project's own tables: videos, what was ingested of them, vectors."""
    with psycopg.connect(url) as connection:
        values = {"first": first, "last": videos - 1}
        same = "s.path = " + NAME.format("n %% %(first)s")
        _copy(
            connection,
            "videos",
            {
                "path": NAME.format("n"),
                "size_bytes": "s.size_bytes + n",
                "source_sha256": "md5(n::text) || md5((-n)::text)",
            },
            same,
            values,
            without={"video_id"},
        )
        for table in _tables(connection):
            _copy(
                connection,
                table,
                {"video_id": "copy.video_id", "source_sha256": "copy.source_sha256"},
                "s.video_id = (SELECT video_id FROM videos s WHERE " + same + ")",
                values,
                without={"ingest_id"},
                joined="JOIN videos copy ON copy.path = " + NAME.format("n"),
            )
    _analyse(url)


def _tables(connection: "psycopg.Connection[tuple[object, ...]]") -> list[str]:
    found = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        " AND tablename ~ '^(ingests|(frames|moments)_[0-9]+)$' ORDER BY 1"
    )
    return [str(name) for (name,) in found]


def _copy(
    connection: "psycopg.Connection[tuple[object, ...]]",
    table: str,
    changed: dict[str, str],
    condition: str,
    values: dict[str, int],
    *,
    without: set[str] | None = None,
    joined: str = "",
) -> None:
    """Insert copies of rows ``s`` for every n from ``first`` to ``last``, with columns changed."""
    columns = [
        str(name)
        for (name,) in connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s", [table]
        )
        if name not in (without or set())
    ]
    chosen = ", ".join(changed.get(column, f's."{column}"') for column in columns)
    connection.execute(
        sql.SQL(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen}"
            f" FROM generate_series(%(first)s::int, %(last)s::int) n {joined}"
            f" JOIN {table} s ON {condition}"
        ),
        values,
    )


def _analyse(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
