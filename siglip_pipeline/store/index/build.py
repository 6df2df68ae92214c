"""The steps of a build: fill a new generation's table, and create its index."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil  # type: ignore[import-untyped,unused-ignore]
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from siglip_pipeline.embedded_postgres import tuning
from siglip_pipeline.errors import IndexBusyError, SimilarityIndexError, StoreError
from siglip_pipeline.store import generations, tables
from siglip_pipeline.store.database import LOCK_BUILD, Connection, Database
from siglip_pipeline.store.kinds import Generation, index_kind
from siglip_pipeline.store.moments import cut_moments
from siglip_pipeline.store.vectors import VectorStore, write_moments
from siglip_pipeline.text.in_words import counted

logger = logging.getLogger(__name__)

Progress = Callable[[str], object]
"""Takes a line about what is being done."""

# IVFFlat builds can overflow before this version.
IVFFLAT_MINIMUM = (0, 8, 7)
PROGRESS_SECONDS = 2.0

_BEGIN = """
INSERT INTO generations (model_id, generation, kind, state)
SELECT %(model)s, coalesce(max(generation), 0) + 1, %(kind)s, 'building'
FROM generations WHERE model_id = %(model)s
RETURNING generation, (SELECT dim FROM models WHERE model_id = %(model)s)
"""

_STALE_MOMENTS = """
SELECT video_id, path FROM ingests JOIN videos USING (video_id)
WHERE model_id = %s AND moment_threshold <> %s
ORDER BY video_id
"""

_FILL = """
INSERT INTO generation_videos (model_id, generation, video_id, ingest_id, frames)
SELECT model_id, %s, video_id, ingest_id, frames FROM ingests WHERE model_id = %s
"""


@contextlib.contextmanager
def building(database: Database, model_id: int) -> Iterator[None]:
    """Hold the lock under which one process at a time builds an index for this model.

    Raises:
        IndexBusyError: another process holds it.
    """
    with database.autocommit() as guard:
        got = guard.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_BUILD, model_id])
        if got.fetchone() != (True,):
            raise IndexBusyError(
                f"another process is building an index for model {model_id}; wait for it to end"
            )
        try:
            yield
        finally:
            if not guard.closed:
                guard.execute("SELECT pg_advisory_unlock(%s, %s)", [LOCK_BUILD, model_id])


def check_kind(database: Database, kind: str, *, force: bool) -> None:
    """Refuse a kind of index that this version of pgvector cannot build safely.

    Raises:
        SimilarityIndexError: gives the alternatives.
    """
    if kind != "ivfflat" or database.pgvector_version >= IVFFLAT_MINIMUM:
        return
    version = ".".join(map(str, database.pgvector_version))
    if not force:
        raise SimilarityIndexError(
            f"pgvector {version} can overflow a buffer while it builds an IVFFlat index (fixed in "
            f"{'.'.join(map(str, IVFFLAT_MINIMUM))}); set SIGLIP_INDEX_KIND=moments, use a newer "
            "pgvector, or force it"
        )
    logger.warning("building IVFFlat on pgvector %s, which can overflow a buffer", version)


def begin(database: Database, model_id: int, kind: str) -> Generation:
    """Record a new generation, with the parameters that are derived from its data."""
    with database.connection() as connection:
        # This process holds the build lock: a build that is marked as running was interrupted.
        connection.execute(
            """
            UPDATE generations SET state = 'failed', reason = 'the build was interrupted'
            WHERE model_id = %s AND state = 'building'
            """,
            [model_id],
        )
        [row] = connection.execute(_BEGIN, {"model": model_id, "kind": kind})
        target = Generation(model_id=model_id, dim=row[1], generation=row[0], kind=kind)
        target = replace(target, parameters=index_kind(kind).parameters(connection, target))
        connection.execute(
            "UPDATE generations SET parameters = %s WHERE model_id = %s AND generation = %s",
            [Jsonb(target.parameters), model_id, target.generation],
        )
    return target


def recut(database: Database, model_id: int, threshold: float, progress: Progress) -> int:
    """Cut moments again that were cut with another threshold; return the number of videos."""
    with database.connection() as connection:
        generations.lock_for_publishing(connection, model_id)
        connection.execute(
            "UPDATE models SET moment_threshold = %s WHERE model_id = %s", [threshold, model_id]
        )
    with database.connection() as connection:
        stale = connection.execute(_STALE_MOMENTS, [model_id, threshold]).fetchall()
    if stale:
        progress(
            f"cutting the moments of {counted(len(stale), 'video')} again at cosine {threshold}"
        )
    vectors = VectorStore(database)
    for video_id, path in stale:
        with database.connection() as connection:
            generations.lock_for_writing(connection, model_id, video_id)
            batch = vectors.read(connection, model_id, path)
            moments = cut_moments(
                batch.embeddings_ND, batch.frame_index_N, batch.time_seconds_N, threshold=threshold
            )
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE video_id = %s").format(tables.moments(model_id)),
                [video_id],
            )
            write_moments(connection, model_id, video_id, moments)
            connection.execute(
                """
                UPDATE ingests SET moments = %s, moment_threshold = %s, ingest_id = DEFAULT
                WHERE model_id = %s AND video_id = %s
                """,
                [len(moments), threshold, model_id, video_id],
            )
            live = generations.live(connection, model_id)
            if live is not None:
                generations.refresh_video(connection, live, video_id)
    return len(stale)


def fill(database: Database, target: Generation) -> int:
    """Fill the generation's table from one snapshot, and record its loads; return its rows."""
    kind = index_kind(target.kind)
    _refresh_statistics(database, target.model_id)
    with database.connection() as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute(_FILL, [target.generation, target.model_id])
        kind.create(connection, target)
        kind.add(connection, target)
        if not kind.holds_vectors:
            return 0
        table = tables.index(target.model_id, target.generation)
        connection.execute(sql.SQL("ANALYZE {}").format(table))
        [row] = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table))
        return int(row[0])


def _refresh_statistics(database: Database, model_id: int) -> None:
    """Analyze the tables: without statistics, a search within a few videos reads all frames."""
    with database.connection() as connection:
        for table in (tables.frames(model_id), tables.moments(model_id)):
            connection.execute(sql.SQL("ANALYZE {} (video_id)").format(table))


def create_index(
    database: Database, target: Generation, rows: int, *, progress: Progress
) -> tuning.BuildSettings | None:
    """Create the similarity index, with memory and workers that fit; None if the kind has none.

    Repeat a parallel build that runs out of shared memory without workers.

    Raises:
        StoreError: the database refused the statement.
    """
    kind = index_kind(target.kind)
    statement = kind.index_statement(target)
    if statement is None:
        return None
    settings = _settings(database, kind.build_bytes_per_row(target.dim), rows)
    while True:
        progress(
            f"index over {counted(rows, 'row')}: maintenance_work_mem "
            f"{settings.memory_bytes // tuning.MIB} MiB of {settings.wanted_bytes // tuning.MIB} "
            f"wanted, {counted(settings.workers, 'worker')} ({settings.why})"
        )
        try:
            _run(database, statement, settings, progress)
            return settings
        except StoreError as error:
            if settings.workers == 0 or not _short_of_shared_memory(error):
                raise
            progress(f"shared memory is short, building without workers: {error.__cause__}")
            settings = replace(settings, workers=0, why="shared memory was short")


def _settings(database: Database, bytes_per_row: int, rows: int) -> tuning.BuildSettings:
    with database.connection() as connection:
        [row] = connection.execute("SHOW max_parallel_maintenance_workers")
    machine = tuning.this_machine()
    free = min(psutil.virtual_memory().available, machine.memory_bytes)
    return tuning.build_settings(
        rows,
        bytes_per_row,
        machine=machine if database.is_on_this_machine else None,
        free_bytes=free,
        workers=int(row[0]),
    )


def _short_of_shared_memory(error: StoreError) -> bool:
    """Return whether a shared memory segment could not be resized: sqlstate 53100 or 53200."""
    cause = error.__cause__
    return isinstance(cause, psycopg.errors.DiskFull | psycopg.errors.OutOfMemory)


def _run(
    database: Database, statement: sql.Composed, settings: tuning.BuildSettings, progress: Progress
) -> None:
    with database.connection() as connection:
        for name, value in (
            ("maintenance_work_mem", f"{settings.memory_bytes // 1024}kB"),
            ("max_parallel_maintenance_workers", str(settings.workers)),
        ):
            connection.execute("SELECT set_config(%s, %s, true)", [name, value])
        with _watched(database, connection.info.backend_pid, progress):
            connection.execute(statement)


@contextlib.contextmanager
def _watched(database: Database, pid: int, progress: Progress) -> Iterator[None]:
    """Report the progress of a build from a second connection."""
    ended = threading.Event()

    def watch() -> None:
        last = None
        while not ended.wait(PROGRESS_SECONDS):
            with contextlib.suppress(StoreError), database.connection() as connection:
                now = _build_progress(connection, pid)
                if now is not None and now != last:
                    progress(now)
                    last = now

    thread = threading.Thread(target=watch, name="index-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _build_progress(connection: Connection, pid: int) -> str | None:
    """Return a build's row of ``pg_stat_progress_create_index`` as text; None if there is none."""
    row = connection.execute(
        """
        SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total
        FROM pg_stat_progress_create_index WHERE pid = %s
        """,
        [pid],
    ).fetchone()
    if row is None:
        return None
    phase, blocks_done, blocks_total, tuples_done, tuples_total = row
    if blocks_total:
        return f"{phase}: {blocks_done / blocks_total:.0%} of {blocks_total:,} blocks"
    if tuples_total:
        return f"{phase}: {tuples_done / tuples_total:.0%} of {tuples_total:,} rows"
    return str(phase)
