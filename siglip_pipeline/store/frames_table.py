"""The table of a model's frames: one table, or from a set size on partitions by hash of the video.

Both forms have one name, the same columns and the same key, so that no statement tells them apart.
"""

from collections.abc import Sequence

from psycopg import sql

from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection

# At 20 million frames of 768 dimensions, where a table is divided by default, 2 GB each.
PARTITIONS = 16

# PLAIN, as vectors over 2 KB would go to TOAST, which halves the speed of loads and scans.
_CREATE = sql.SQL("""
CREATE TABLE {} (
    video_id integer NOT NULL, frame_index integer NOT NULL, time_seconds double precision NOT NULL,
    embedding halfvec({}) STORAGE PLAIN NOT NULL,
    PRIMARY KEY (video_id, frame_index)
)
""")

_PARTITIONED = sql.SQL(" PARTITION BY HASH (video_id)")

_LIKE = sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)")

_PARTITION = sql.SQL("""
CREATE TABLE {part} PARTITION OF {table}
FOR VALUES WITH (MODULUS {parts}, REMAINDER {remainder}) {options}
""")

# Postgres vacuums by default when a fifth of the rows are dead: searches read past them till then.
VACUUM = ("autovacuum_vacuum_scale_factor=0.05",)

_GRANTS = """
SELECT privilege_type, is_grantable, CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee) END
FROM pg_class, aclexplode(relacl) WHERE oid = %s::regclass AND grantee <> relowner
"""

_DECODED = "SELECT coalesce(sum(frames), 0) FROM videos"


def create_frames(connection: Connection, model_id: int, dim: int, *, table_limit: int) -> None:
    """Create a model's table of frames, partitioned if the collection is past the limit.

    Args:
        connection: in a transaction.
        model_id: the model.
        dim: dimensions of its vectors.
        table_limit: decoded frames from which the table is partitioned; 0 for never.
    """
    table = tables.frames(model_id)
    create = _CREATE.format(table, sql.Literal(dim))
    [decoded] = connection.execute(_DECODED)
    if 0 < table_limit <= decoded[0]:
        connection.execute(create + _PARTITIONED)
        _create_partitions(connection, model_id, table, VACUUM)
    else:
        connection.execute(create + with_options(VACUUM))


def create_copy(connection: Connection, model_id: int) -> None:
    """Create an empty partitioned table like that of the model's frames, and its list of loads.

    Columns, constraints, indexes, storage, settings of VACUUM and the owner are the same.
    """
    table, copy = tables.frames(model_id), tables.frames_copy(model_id)
    [(options, owner)] = connection.execute(
        """
        SELECT coalesce(reloptions, '{}'), pg_get_userbyid(relowner) FROM pg_class
        WHERE oid = %s::regclass
        """,
        [table.as_string(None)],
    )
    connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))
    connection.execute(_LIKE.format(copy, table) + _PARTITIONED)
    _create_partitions(connection, model_id, copy, options)
    connection.execute(
        sql.SQL("CREATE TABLE {} (video_id integer PRIMARY KEY, ingest_id bigint NOT NULL)").format(
            tables.frames_copied(model_id)
        )
    )
    connection.execute("RESET ROLE")


def count_partitions(connection: Connection, model_id: int) -> int:
    """Return the number of partitions of the model's table of frames; 0 if it has none."""
    [(count,)] = connection.execute(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = %s::regclass",
        [tables.frames(model_id).as_string(None)],
    )
    return int(count)


def _create_partitions(
    connection: Connection, model_id: int, table: sql.Identifier, options: Sequence[str]
) -> None:
    for part in range(PARTITIONS):
        connection.execute(
            _PARTITION.format(
                part=tables.frames_part(model_id, part),
                table=table,
                parts=sql.Literal(PARTITIONS),
                remainder=sql.Literal(part),
                options=with_options(options),
            )
        )


def with_options(options: Sequence[str]) -> sql.Composable:
    """Return SQL that sets storage parameters, each given as ``name=value``."""
    pairs = [option.partition("=") for option in options]
    settings = [sql.SQL("{} = {}").format(sql.SQL(k), sql.Literal(v)) for k, _, v in pairs]
    return sql.SQL(" WITH ({})").format(sql.SQL(", ").join(settings)) if settings else sql.SQL("")


def copy_grants(connection: Connection, table: sql.Identifier, copy: sql.Identifier) -> None:
    """Grant on a copy what is granted on the table now."""
    for privilege, grantable, grantee in connection.execute(_GRANTS, [table.as_string(None)]):
        connection.execute(
            sql.SQL("GRANT {} ON {} TO {}{}").format(
                sql.SQL(privilege),
                copy,
                sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee),
                sql.SQL(" WITH GRANT OPTION" if grantable else ""),
            )
        )
