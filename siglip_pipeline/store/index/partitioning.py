"""Divide a model's table of frames into partitions, while loads and searches go on.

Videos are copied into a partitioned table, some at a time, each batch in one transaction with the
list of the loads that it took. What differs from that list is copied, again where a video was
loaded anew, until little is left. The last of it is copied while loads wait, and the copy takes the
table's name in the same transaction. A conversion that was stopped continues with its list.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from siglip_pipeline.errors import DatabaseFullError, StoreError
from siglip_pipeline.store import counts, generations, tables
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.frames_table import (
    PARTITIONS,
    copy_grants,
    count_partitions,
    create_copy,
    with_options,
)
from siglip_pipeline.store.index.build import Progress
from siglip_pipeline.text.in_words import duration_in_words

logger = logging.getLogger(__name__)

BATCH_FRAMES = 50_000
"""Some 80 MB: seconds of work are lost at most, and loads wait for one batch at the end."""
PASSES = 10
"""The most passes beside loads: what these have written since is then copied while they wait."""
SWAP_ATTEMPTS = 60
SWAP_PAUSE_SECONDS = 10.0
PROGRESS_SECONDS = 5.0
# Beside the copy and the server's log of changes. A server whose log has no room stops.
SPARE_BYTES = 1024**3

_DUE = """
SELECT video_id, coalesce(i.frames, 0)
FROM (SELECT video_id, ingest_id, frames FROM ingests WHERE model_id = %s) i
FULL JOIN {copied} c USING (video_id)
WHERE i.ingest_id IS DISTINCT FROM c.ingest_id
ORDER BY video_id
"""

# Locks as `models drop` does: the table first.
_COPY = (
    "LOCK TABLE {frames} IN ACCESS SHARE MODE",
    "DELETE FROM {copy} WHERE video_id = ANY(%(videos)s)",
    "DELETE FROM {copied} WHERE video_id = ANY(%(videos)s)",
    "INSERT INTO {copy} SELECT * FROM {frames} WHERE video_id = ANY(%(videos)s)",
    """
    INSERT INTO {copied} SELECT video_id, ingest_id FROM ingests
    WHERE model_id = %(model)s AND video_id = ANY(%(videos)s)
    """,
)

# Longer than what Postgres waits before it stops an autovacuum that is in the way.
_LIMIT_WAITS = """
SELECT set_config('lock_timeout', (setting::int + 500)::text, true)
FROM pg_settings WHERE name = 'deadlock_timeout'
"""

_VIEWS = """
SELECT DISTINCT c.oid::regclass::text, pg_get_viewdef(c.oid), coalesce(c.reloptions, '{}')
FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
JOIN pg_class c ON c.oid = r.ev_class
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %s::regclass AND c.relkind = 'v'
"""

_IN_THE_WAY = """
SELECT 'materialized view ' || c.oid::regclass
FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
JOIN pg_class c ON c.oid = r.ev_class
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(frames)s::regclass AND c.relkind = 'm'
UNION SELECT 'foreign key ' || conname || ' of ' || conrelid::regclass FROM pg_constraint
WHERE contype = 'f' AND %(frames)s::regclass IN (conrelid, confrelid)
UNION SELECT 'trigger ' || tgname FROM pg_trigger
WHERE tgrelid = %(frames)s::regclass AND NOT tgisinternal
UNION SELECT 'function ' || objid::regprocedure FROM pg_depend
WHERE classid = 'pg_proc'::regclass AND refclassid = 'pg_class'::regclass
  AND refobjid = %(frames)s::regclass
UNION SELECT 'row level security' FROM pg_class
WHERE oid = %(frames)s::regclass AND relrowsecurity
UNION SELECT 'policy ' || polname FROM pg_policy WHERE polrelid = %(frames)s::regclass
UNION SELECT 'publication ' || pubname FROM pg_publication p
JOIN pg_publication_rel r ON r.prpubid = p.oid WHERE prrelid = %(frames)s::regclass
UNION SELECT 'grant on the column ' || attname FROM pg_attribute
WHERE attrelid = %(frames)s::regclass AND attacl <> '{}'
ORDER BY 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionReport:
    """The outcome of a conversion."""

    frames: int
    """Frames of the table."""
    partitions: int
    videos: int
    """Videos that were copied now; 0 if the table had partitions before."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report for metadata and ``--json``."""
        return asdict(self) | {"seconds": round(self.seconds, 2)}


def partition_if_large(
    database: Database, model_id: int, *, table_limit: int, progress: Progress
) -> PartitionReport | None:
    """Partition the table of frames if it has reached the limit; None if there is nothing to do.

    If the table cannot be partitioned now, `progress` is told why and the table stays as it is: an
    index can be built over it too. With a limit of 0, which turns partitioning off, the copy of an
    unfinished conversion is dropped.
    """
    with database.connection() as connection:
        if table_limit == 0 and _exists(connection, tables.frames_copied(model_id)):
            _drop_copy(connection, model_id)
            progress("SIGLIP_FRAMES_TABLE_LIMIT=0: the unfinished partitioned copy is dropped")
        frames = counts.stored(connection, model_id).frames
        if not 0 < table_limit <= frames or count_partitions(connection, model_id):
            return None
    try:
        return partition_frames(database, model_id, progress=progress)
    except StoreError as error:
        progress(f"the table of {frames:,} frames stays undivided: {error}")
        return None


def partition_frames(
    database: Database, model_id: int, *, progress: Progress = logger.info
) -> PartitionReport:
    """Partition a model's table of frames by hash of the video; the caller holds the build lock.

    Raises:
        StoreError: something depends on the table that cannot be moved, the disk is too small, or
            a reader holds the table. What was copied stays for the next call.
        DatabaseFullError: the disk filled up; the copy is dropped.
    """
    began = time.monotonic()
    with database.connection() as connection:
        frames = counts.stored(connection, model_id).frames
        if there := count_partitions(connection, model_id):
            return PartitionReport(frames=frames, partitions=there, videos=0, seconds=0.0)
        _check_dependents(connection, model_id)
        _check_room(database, connection, model_id)
        if not _exists(connection, tables.frames_copied(model_id)):
            create_copy(connection, model_id)
    try:
        videos = _copy_all(database, model_id, progress)
        for attempt in range(SWAP_ATTEMPTS):
            if _swap(database, model_id):
                break
            if attempt == 0:
                progress("the copy is complete; it waits for a reader that holds the table")
            time.sleep(SWAP_PAUSE_SECONDS)
            videos += _copy_all(database, model_id, progress)
        else:
            raise StoreError(
                f"the table frames_{model_id} was read without a pause, by an export or a backup; "
                "its partitioned copy is kept and takes its place the next time"
            )
    except DatabaseFullError:
        with database.connection() as connection:
            _drop_copy(connection, model_id)
        raise
    report = PartitionReport(
        frames=frames, partitions=PARTITIONS, videos=videos, seconds=time.monotonic() - began
    )
    progress(
        f"{frames:,} frames are in {PARTITIONS} partitions, after "
        f"{duration_in_words(report.seconds)}"
    )
    return report


def _drop_copy(connection: Connection, model_id: int) -> None:
    """Drop what an unfinished conversion has copied."""
    for table in (tables.frames_copy(model_id), tables.frames_copied(model_id)):
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))


def _copy_all(database: Database, model_id: int, progress: Progress) -> int:
    """Copy what is due, until a pass was as short as one batch; return the number of videos."""
    videos = 0
    for _ in range(PASSES):
        with database.connection() as connection:
            due = _due(connection, model_id)
        _copy_batches(database, model_id, due, progress)
        videos += len(due)
        if sum(frames for _, frames in due) <= BATCH_FRAMES:
            break
    with database.connection() as connection:  # searches plan by it at once
        connection.execute(sql.SQL("ANALYZE {} (video_id)").format(tables.frames_copy(model_id)))
    return videos


def _copy_batches(
    database: Database, model_id: int, due: Sequence[tuple[int, int]], progress: Progress
) -> None:
    began = said = time.monotonic()
    total, done = sum(frames for _, frames in due), 0
    for batch in _batches(due):
        with database.connection() as connection:
            # Rows and loads of one moment: the list tells which load was copied.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            _copy(connection, model_id, [video_id for video_id, _ in batch])
        done += sum(frames for _, frames in batch)
        if done and (now := time.monotonic()) - said > PROGRESS_SECONDS:
            said = now
            left = duration_in_words((now - began) / done * (total - done))
            progress(f"partitioning: {done:,} of {total:,} frames are copied, {left} left")


def _swap(database: Database, model_id: int) -> bool:
    """Copy the rest and let the copy take the table's place; return whether it could be locked."""
    with database.connection() as connection:
        generations.lock_for_publishing(connection, model_id)
        _copy(connection, model_id, [video_id for video_id, _ in _due(connection, model_id)])
        try:
            with connection.transaction():
                # Searches queue behind a lock that is waited for.
                connection.execute(_LIMIT_WAITS)
                _replace(connection, model_id)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            return False
    return True


def _replace(connection: Connection, model_id: int) -> None:
    """Give the table's name, grants, views and key to the copy, and drop the table."""
    frames, copy = tables.frames(model_id), tables.frames_copy(model_id)
    old = sql.Identifier(f"frames_{model_id:d}_old")
    connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(frames))
    copy_grants(connection, frames, copy)
    views = connection.execute(_VIEWS, [frames.as_string(None)]).fetchall()
    rename = sql.SQL("ALTER TABLE {} RENAME TO {}")
    connection.execute(rename.format(frames, old))
    connection.execute(rename.format(copy, frames))
    for name, definition, options in views:
        connection.execute(
            sql.SQL("CREATE OR REPLACE VIEW {}{} AS {}").format(
                sql.SQL(name),
                with_options(options),
                sql.SQL(definition),
            )
        )
    connection.execute(sql.SQL("DROP TABLE {}, {}").format(old, tables.frames_copied(model_id)))
    connection.execute(
        sql.SQL("ALTER INDEX {} RENAME TO {}").format(
            sql.Identifier(f"frames_{model_id:d}_copy_pkey"),
            sql.Identifier(f"frames_{model_id:d}_pkey"),
        )
    )


def _due(connection: Connection, model_id: int) -> list[tuple[int, int]]:
    """Return the videos whose load is not the one that was copied, and their frames now."""
    query = sql.SQL(_DUE).format(copied=tables.frames_copied(model_id))
    return [(int(v), int(n)) for v, n in connection.execute(query, [model_id])]


def _batches(due: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    size = 0
    for video_id, frames in due:
        if batch and size + frames > BATCH_FRAMES:
            yield batch
            batch, size = [], 0
        batch.append((video_id, frames))
        size += frames
    if batch:
        yield batch


def _copy(connection: Connection, model_id: int, video_ids: Sequence[int]) -> None:
    """Copy what the table has of these videos, which may be nothing any more."""
    for statement in _COPY if video_ids else ():
        connection.execute(
            sql.SQL(statement).format(
                frames=tables.frames(model_id),
                copy=tables.frames_copy(model_id),
                copied=tables.frames_copied(model_id),
            ),
            {"model": model_id, "videos": list(video_ids)},
        )


def _exists(connection: Connection, table: sql.Identifier) -> bool:
    [(found,)] = connection.execute("SELECT to_regclass(%s)::text", [table.as_string(None)])
    return found is not None


def _check_dependents(connection: Connection, model_id: int) -> None:
    rows = connection.execute(
        _IN_THE_WAY, {"frames": tables.frames(model_id).as_string(None)}
    ).fetchall()
    if rows:
        raise StoreError(
            f"the table frames_{model_id} cannot be replaced by a partitioned one: "
            f"{', '.join(name for (name,) in rows)}; drop it, partition, and make it again"
        )


def _check_room(database: Database, connection: Connection, model_id: int) -> None:
    """Refuse a copy for which the server's disk has no room, where that can be seen from here."""
    [(size, log)] = connection.execute(
        """
        SELECT pg_total_relation_size(%s::regclass), pg_size_bytes(current_setting('max_wal_size'))
        """,
        [tables.frames(model_id).as_string(None)],
    )
    [(copied,)] = connection.execute(
        """
        SELECT coalesce(sum(pg_total_relation_size(relid)), 0)
        FROM pg_partition_tree(to_regclass(%s))
        """,
        [tables.frames_copy(model_id).as_string(None)],
    )
    free = _free_bytes(database, connection)
    needed = max(0, int(1.1 * size) - int(copied)) + int(log) + SPARE_BYTES
    if free is not None and free < needed:
        raise StoreError(
            f"to partition frames_{model_id} ({size / 1e9:.1f} GB) takes {needed / 1e9:.1f} GB "
            f"beside it for a while, and the server's disk has {free / 1e9:.1f} GB; free some, or "
            "set SIGLIP_FRAMES_TABLE_LIMIT=0 to leave the table as it is"
        )


def _free_bytes(database: Database, connection: Connection) -> int | None:
    """Return the free bytes of a server of this machine; None where they cannot be seen."""
    if not database.is_on_this_machine:
        return None
    row = connection.execute(
        "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
    ).fetchone()
    try:
        return shutil.disk_usage(Path(row[0])).free if row else None
    except OSError:  # in a container, or closed to us
        return None
