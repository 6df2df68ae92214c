"""The table of frames in partitions: made while the collection is used, and as good as before."""

import itertools
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from siglip_pipeline.errors import DatabaseFullError, StoreError
from siglip_pipeline.store import frames_table, tables
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index import partitioning
from siglip_pipeline.store.index.partitioning import partition_frames
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.search.moment_search import MomentSearch
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.store import made
from siglip_pipeline_tests.store.test_vectors import until_a_lock_is_waited_for

OPTIONS = made.index_options()
Described = dict[str, list[tuple[Any, ...]]]


def describe(database: Database, table: str) -> Described:
    """What a table is made of, without its name."""
    queries = {
        "columns": "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attstorage::text"
        " FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
        "constraints": "SELECT conname, contype::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = %s::regclass ORDER BY conname",
        "grants": "SELECT relacl::text FROM pg_class WHERE oid = %s::regclass",
        "indexes": "SELECT indexdef FROM pg_indexes WHERE tablename = %s",
    }
    with database.connection() as connection:
        found = {k: connection.execute(v.encode(), [table]).fetchall() for k, v in queries.items()}
    found["indexes"] = sorted(
        (text.replace(" ONLY ", " ").partition(" ON ")[2],) for (text,) in found["indexes"]
    )
    return found


def rows(database: Database, model_id: int) -> list[tuple[Any, ...]]:
    with database.connection() as connection:
        return connection.execute(
            sql.SQL(
                "SELECT video_id, frame_index, time_seconds, embedding::text FROM {} ORDER BY 1, 2"
            ).format(tables.frames(model_id))
        ).fetchall()


def left_over(database: Database) -> list[str]:
    with database.connection() as connection:
        found = connection.execute(
            "SELECT tablename FROM pg_tables WHERE tablename ~ '^frames.*_(copy|copied|old)'"
        ).fetchall()
    return [name for (name,) in found]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the videos of these tests in a batch; no long waits."""
    monkeypatch.setattr(partitioning, "BATCH_FRAMES", 48)
    monkeypatch.setattr(partitioning, "SWAP_PAUSE_SECONDS", 0.05)


def test_a_partitioned_table_is_like_the_one_it_replaces(database: Database) -> None:
    model_id = made.collection(database)
    with database.connection() as connection:
        connection.execute(f"CREATE INDEX ON frames_{model_id} (time_seconds)".encode())
        connection.execute(f"GRANT SELECT ON frames_{model_id} TO PUBLIC".encode())
        connection.execute(
            f"ALTER TABLE frames_{model_id} SET (autovacuum_vacuum_scale_factor = 0.031)".encode()
        )
        connection.execute(
            f"CREATE VIEW seconds AS SELECT time_seconds FROM frames_{model_id}".encode()
        )
    stored, before = rows(database, model_id), describe(database, f"frames_{model_id}")
    report = partition_frames(database, model_id)
    assert (report.frames, report.videos) == (12 * 24, 12)
    assert rows(database, model_id) == stored
    assert describe(database, f"frames_{model_id}") == before
    assert left_over(database) == []
    with database.connection() as connection:
        parts = connection.execute(
            "SELECT relname, reloptions FROM pg_class WHERE relname ~ '_p[0-9]+$' AND relkind = 'r'"
        ).fetchall()
        assert len(parts) == frames_table.PARTITIONS
        assert {tuple(o) for _, o in parts} == {("autovacuum_vacuum_scale_factor=0.031",)}
        assert connection.execute("SELECT count(*) FROM seconds").fetchone() == (12 * 24,)
        connection.execute("DROP VIEW seconds")
    assert partition_frames(database, model_id).videos == 0, "done already"
    ModelStore(database).drop("tiny")
    with database.connection() as connection:
        assert (
            connection.execute(
                "SELECT relname FROM pg_class WHERE relname ~ '^frames_[0-9]'"
            ).fetchall()
            == []
        )


def test_a_model_of_a_large_collection_starts_with_partitions(database: Database) -> None:
    model_id = made.collection(database)
    models = ModelStore(database)
    small = models.register(made.spec("small"), table_limit=12 * 24 + 1)
    large = models.register(made.spec("large"), table_limit=12 * 24)
    never = models.register(made.spec("never"), table_limit=0)
    with database.connection() as connection:
        partitioned = {
            m: frames_table.count_partitions(connection, m) for m in (model_id, small, large, never)
        }
    assert partitioned == {model_id: 0, small: 0, large: 16, never: 0}
    partition_frames(database, small)
    assert describe(database, f"frames_{large}") == {
        k: [
            tuple(
                str(v).replace(f"frames_{small}", f"frames_{large}") if isinstance(v, str) else v
                for v in row
            )
            for row in values
        ]
        for k, values in describe(database, f"frames_{small}").items()
    }


def test_the_index_job_partitions_a_table_that_is_past_the_limit(database: Database) -> None:
    model_id = made.collection(database)
    below = made.index_options(frames_table_limit=12 * 24 + 1)
    assert build_index(database, model_id, options=below).partitioned is None
    said: list[str] = []
    at = made.index_options(frames_table_limit=12 * 24)
    report = build_index(database, model_id, options=at, force=True, progress=said.append)
    assert report.partitioned is not None
    assert report.to_json()["partitioned"]["videos"] == 12
    assert report.published
    assert any("16 partitions" in line for line in said)
    assert build_index(database, model_id, options=at).partitioned is None, "done already"


def test_loads_deletions_and_searches_go_on(
    database: Database, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each search meanwhile finds the frame that it asks for; nothing is lost at the end."""
    videos = 30
    model_id = made.collection(database, videos=videos)
    build_index(database, model_id, options=OPTIONS)
    model = ModelStore(database).get(model_id)
    kept = {f"v{i:02d}.mp4": made.footage(i) for i in range(videos)}
    ended, wrong, searched = threading.Event(), [], [0]

    def ask() -> None:
        known, number = MomentSearch(database), 0
        while not ended.is_set():
            number = (number + 7) % 20  # of those that nobody touches
            # One that knows the generation asks in one statement, a new one in a snapshot.
            for search in (known, MomentSearch(database)):
                hits = search.search(model, made.request(kept[f"v{number:02d}.mp4"][3], k=5))
                if len(hits) != 5 or hits[0].video != f"v{number:02d}.mp4":
                    wrong.append((number, hits))
                searched[0] += 1

    def change() -> None:
        for seed in itertools.count(1000):
            name = f"v{20 + seed % 10:02d}.mp4"
            if ended.is_set():  # at once: a change that was lost is not made good by a later one
                break
            if seed % 3 == 0:
                VideoStore(database).delete(name)
                kept.pop(name, None)
            else:
                made.record(database, name)
                made.load(database, model_id, name, made.footage(seed))
                kept[name] = made.footage(seed)

    slowly, at_last = partitioning._copy, partitioning._replace

    def copy(*args: Any) -> None:
        slowly(*args)
        time.sleep(0.1)

    def replace(*args: Any) -> None:
        until_a_lock_is_waited_for(database)  # by a change, which the copy would not have
        at_last(*args)

    monkeypatch.setattr(partitioning, "_copy", copy)
    monkeypatch.setattr(partitioning, "_replace", replace)
    threads = [threading.Thread(target=work) for work in (ask, ask, change)]
    for thread in threads:
        thread.start()
    try:
        partition_frames(database, model_id)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert searched[0] > 20
    assert wrong == []
    store = VectorStore(database)
    with database.connection() as connection:
        stored = connection.execute(
            sql.SQL("SELECT path, count(*) FROM {} JOIN videos USING (video_id) GROUP BY 1").format(
                tables.frames(model_id)
            )
        ).fetchall()
    assert dict(stored) == dict.fromkeys(kept, 24)
    assert store.miscounted(model_id) == {}
    for name, vectors_ND in kept.items():
        np.testing.assert_allclose(
            store.vectors(model_id, name).embeddings_ND, vectors_ND, atol=1e-3
        )
        hit = made.search(database, model, vectors_ND[9], k=1)[0]
        assert (hit.video, hit.frame_index) == (name, 9 * 25)


_KILLED = """
import sys
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index import partitioning
partitioning.BATCH_FRAMES = 48
copy, calls = partitioning._copy, []
def counted(*args):
    copy(*args)
    calls.append(1)
    if len(calls) == int(sys.argv[3]):
        print("here", flush=True)
        sys.stdin.read()
partitioning._copy = counted
with Database(sys.argv[1]) as database:
    partitioning.partition_frames(database, int(sys.argv[2]))
"""


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_killed_at_any_batch_it_continues(
    database: Database, small_batches: None, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seventh copy is that of the transaction which renames."""
    model_id = made.collection(database)
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, database.url.reveal(), str(model_id), str(batch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
    finally:
        process.kill()
        process.communicate()
    # Videos that were copied before change meanwhile, and one is gone.
    made.load(database, model_id, "v00.mp4", made.footage(900))
    VideoStore(database).delete("v01.mp4")
    made.record(database, "new.mp4")
    made.load(database, model_id, "new.mp4", made.footage(901))
    stored = rows(database, model_id)
    assert len(stored) == 12 * 24
    report = partition_frames(database, model_id)
    committed = min(batch - 1, 6) * 2
    assert report.videos == 12 - max(0, committed - 2) + (1 if committed else 0)
    assert rows(database, model_id) == stored
    assert left_over(database) == []


def test_a_snapshot_that_is_older_than_the_swap_is_waited_for(
    database: Database, small_batches: None
) -> None:
    """The rows of the copy are newer than the snapshot: read after the swap, there were none."""
    model_id = made.collection(database)
    count = sql.SQL("SELECT count(*) FROM {}").format(tables.frames(model_id))
    said: list[str] = []
    work = threading.Thread(
        target=partition_frames, args=[database, model_id], kwargs={"progress": said.append}
    )
    with database.snapshot(reading=tables.frames(model_id)) as connection:
        connection.execute("SELECT 1")
        work.start()
        while work.is_alive() and not said:
            time.sleep(0.02)
        assert "waits for a reader" in said[0]
        assert connection.execute(count).fetchone() == (12 * 24,)
        # Loads and searches of others are let through between two tries.
        made.load(database, model_id, "v00.mp4", made.footage(77))
    work.join()
    with database.connection() as connection:
        assert frames_table.count_partitions(connection, model_id)
        assert connection.execute(count).fetchone() == (12 * 24,)


def test_a_reader_that_never_ends_leaves_the_copy_for_the_next_time(
    database: Database, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioning, "SWAP_ATTEMPTS", 1)
    model_id = made.collection(database)
    with (
        database.snapshot(reading=tables.frames(model_id)),
        pytest.raises(StoreError, match="copy is kept and takes its place the next time"),
    ):
        partition_frames(database, model_id)
    assert partition_frames(database, model_id).videos == 0 or left_over(database) == []
    with database.connection() as connection:
        assert frames_table.count_partitions(connection, model_id)


def test_without_a_limit_an_unfinished_copy_is_dropped(
    database: Database, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioning, "SWAP_ATTEMPTS", 1)
    model_id = made.collection(database)
    with database.snapshot(reading=tables.frames(model_id)), pytest.raises(StoreError):
        partition_frames(database, model_id)
    assert left_over(database)
    said: list[str] = []
    for limit in (12 * 24 + 1, 0):  # a limit that is not reached keeps it for later
        assert left_over(database)
        options = made.index_options(frames_table_limit=limit)
        build_index(database, model_id, options=options, progress=said.append)
    assert left_over(database) == []
    assert any("copy is dropped" in line for line in said)
    assert len(rows(database, model_id)) == 12 * 24


def test_an_autovacuum_that_holds_the_table_is_stopped(
    database: Database, small_batches: None
) -> None:
    """It would run for hours over a large table."""
    model_id = made.collection(database, videos=60)
    said: list[str] = []
    with every_second_vacuumed(database), database.autocommit() as connection:
        connection.execute(
            f"ALTER TABLE frames_{model_id} SET (autovacuum_analyze_threshold = 100000000,"
            " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)".encode()
        )
        for _ in range(20):
            connection.execute(f"UPDATE frames_{model_id} SET time_seconds = 0".encode())
        until = time.monotonic() + 40
        vacuums = 0
        while not vacuums and time.monotonic() < until:
            time.sleep(0.05)
            [(vacuums,)] = connection.execute(
                "SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = %s::regclass",
                [f"frames_{model_id}"],
            )
        assert vacuums == 1
        partition_frames(database, model_id, progress=said.append)
    assert len(said) == 1, "at the first try"


def test_a_view_that_is_held_is_waited_for(database: Database, small_batches: None) -> None:
    model_id = made.collection(database)
    with database.connection() as connection:
        connection.execute(f"CREATE VIEW seconds AS SELECT * FROM frames_{model_id}".encode())
    said: list[str] = []
    with psycopg.connect(database.url.reveal()) as other:
        other.execute("COMMENT ON VIEW seconds IS 'held until the commit'")

        def waits(text: str) -> None:
            said.append(text)
            other.commit()

        partition_frames(database, model_id, progress=waits)
    assert "waits for a reader" in said[0]
    with database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM seconds").fetchone() == (12 * 24,)
        connection.execute("DROP VIEW seconds")


def test_a_model_that_is_dropped_meanwhile_is_gone(
    database: Database, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both lock the tables in the same order: Postgres need not break a deadlock."""
    model_id = made.collection(database)
    first, *rest = partitioning._COPY
    monkeypatch.setattr(partitioning, "_COPY", (first, "SELECT pg_sleep(0.5)", *rest))
    failed: list[StoreError] = []

    def partition() -> None:
        try:
            partition_frames(database, model_id)
        except StoreError as error:
            failed.append(error)

    work = threading.Thread(target=partition)
    work.start()
    while not left_over(database):
        time.sleep(0.02)
    time.sleep(0.2)
    ModelStore(database).drop("tiny")
    work.join()
    assert "does not exist" in str(failed[0])
    with database.connection() as connection:
        tables_left = connection.execute(
            "SELECT relname FROM pg_class WHERE relname ~ '^frames_[0-9]'"
        ).fetchall()
    assert tables_left == []


def test_a_disk_without_room_for_the_copy_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = made.collection(database)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**20))
    with (
        server_setting(database, "max_wal_size", "3GB"),
        pytest.raises(StoreError, match=r"takes 4\.3 GB .* has 0\.0 GB; free some, or set SIGLIP"),
    ):
        partition_frames(database, model_id)
    assert left_over(database) == []
    said: list[str] = []
    options = made.index_options(frames_table_limit=1)
    report = build_index(database, model_id, options=options, progress=said.append)
    assert report.published, "the index does not wait for a larger disk"
    assert any("stays undivided: to partition" in line for line in said)


def test_a_disk_that_fills_up_gets_its_room_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = made.collection(database)

    def full(*_: object) -> None:
        raise psycopg.errors.DiskFull("no space left")

    monkeypatch.setattr(partitioning, "_copy", full)
    with pytest.raises(DatabaseFullError):
        partition_frames(database, model_id)
    assert left_over(database) == []
    assert len(rows(database, model_id)) == 12 * 24


def test_a_copy_that_was_kept_has_the_grants_of_the_table(
    database: Database, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was granted or revoked since the copy was made holds after the swap."""
    monkeypatch.setattr(partitioning, "SWAP_ATTEMPTS", 1)
    model_id = made.collection(database)
    frames = f"frames_{model_id}"
    with database.connection() as connection:
        connection.execute(f"GRANT INSERT ON {frames} TO PUBLIC".encode())
    with database.snapshot(reading=tables.frames(model_id)), pytest.raises(StoreError):
        partition_frames(database, model_id)
    with database.connection() as connection:
        connection.execute(f"REVOKE INSERT ON {frames} FROM PUBLIC".encode())
        connection.execute(f"GRANT SELECT ON {frames} TO PUBLIC".encode())
    before = describe(database, frames)
    partition_frames(database, model_id)
    assert describe(database, frames) == before


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("ALTER TABLE {} ENABLE ROW LEVEL SECURITY", "row level security"),
        ("CREATE POLICY own ON {} USING (true)", "policy own"),
        ("CREATE PUBLICATION sent FOR TABLE {}", "publication sent"),
        ("GRANT SELECT (video_id) ON {} TO PUBLIC", "grant on the column video_id"),
        (
            "CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM {}; END",
            r"function f\(\)",
        ),
    ],
)
def test_what_the_copy_would_lose_is_named(database: Database, statement: str, named: str) -> None:
    model_id = made.collection(database, videos=1)
    with database.connection() as connection:
        connection.execute(statement.format(f"frames_{model_id}").encode())
    with pytest.raises(StoreError, match=f"partitioned one: {named}; drop it"):
        partition_frames(database, model_id)


def test_what_depends_on_the_table_is_named(database: Database) -> None:
    model_id = made.collection(database)
    with database.connection() as connection:
        connection.execute(
            f"CREATE MATERIALIZED VIEW kept AS SELECT frame_index FROM frames_{model_id}".encode()
        )
    with pytest.raises(StoreError, match="materialized view kept; drop it, partition"):
        partition_frames(database, model_id)


def test_a_search_reads_one_partition_for_each_video(database: Database) -> None:
    """Each look-up of frames by video, of every form of search, is pruned to one partition."""
    model_id = made.collection(database, videos=40)
    build_index(database, model_id, options=OPTIONS)
    partition_frames(database, model_id)
    model = ModelStore(database).get(model_id)
    plans: list[str] = []
    execute = psycopg.Cursor.execute  # every cursor's, and every connection's

    def explained(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        text = (
            query
            if isinstance(query, bytes)
            else (
                query.as_bytes(self) if isinstance(query, sql.Composable) else str(query).encode()
            )
        )
        if b"WITH RECURSIVE" in text:
            own = type(self)(self.connection)
            done = execute(own, b"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) " + text, *args)
            plans.append("\n".join(line for (line,) in done))
        return execute(self, query, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", explained)
        query_D = made.footage(5)[3]
        for filters in (
            {},
            {"videos": ("v05.mp4",)},
            {"from_seconds": 0.0, "to_seconds": 9.0},
        ):
            found = made.search(database, model, query_D, k=5, within=0.2, **filters)
            assert found[0].video == "v05.mp4"
    assert len(plans) >= 3
    looked_up = [append for plan in plans for append in appends(plan)]
    assert len(looked_up) >= len(plans)
    for loops, scans in looked_up:
        assert sum(scans) <= loops


def appends(plan: str) -> Iterator[tuple[int, list[int]]]:
    """The loops of each Append over partitions of frames, and of the scans below it."""
    lines = plan.splitlines()
    for at, line in enumerate(lines):
        if "Append" not in line or "actual" not in line:
            continue
        depth = len(line) - len(line.lstrip(" ->"))
        scans = []
        for below in lines[at + 1 :]:
            if "->" in below and len(below) - len(below.lstrip(" ->")) <= depth:
                break
            if " on frames_" in below and "loops=" in below:
                scans.append(int(below.rpartition("loops=")[2].rstrip(")")))
        if scans:
            yield int(line.rpartition("loops=")[2].rstrip(")")), scans


def test_a_tenth_of_the_videos_is_deleted(database: Database) -> None:
    """Searches still find everything, and the server vacuums what is dead by itself."""
    model_id = made.collection(database, videos=60)
    build_index(database, model_id, options=OPTIONS)
    with database.connection() as connection:
        # Else the server may vacuum for the thousand rows that came.
        connection.execute(
            f"ALTER TABLE frames_{model_id} SET (autovacuum_vacuum_insert_threshold = -1)".encode()
        )
    before = autovacuums(database, model_id)
    for i in range(0, 60, 10):
        VideoStore(database).delete(f"v{i:02d}.mp4")
    lenient = made.index_options(index_rebuild_share=0.2)
    report = build_index(database, model_id, options=lenient)
    assert report.outcome == "current"
    assert report.recall is not None
    assert report.recall.recall_at_10 >= OPTIONS.min_recall
    with every_second_vacuumed(database):
        until = time.monotonic() + 40
        while autovacuums(database, model_id) == before:
            assert time.monotonic() < until, "with the server's own setting it waits for a fifth"
            time.sleep(0.5)


def autovacuums(database: Database, model_id: int) -> int:
    """How often the server has vacuumed the model's frames by itself."""
    with database.autocommit() as connection:
        [(count,)] = connection.execute(
            "SELECT autovacuum_count FROM pg_stat_all_tables WHERE relname = %s",
            [f"frames_{model_id}"],
        )
    return int(count)


@contextmanager
def every_second_vacuumed(database: Database) -> Iterator[None]:
    """The server looks every second for tables to vacuum, not every minute."""
    with server_setting(database, "autovacuum_naptime", "1s"):
        yield


@contextmanager
def server_setting(database: Database, name: str, value: str) -> Iterator[None]:
    """The server has this setting; connections take it when they have read the reload's signal."""
    with database.autocommit() as connection:
        connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        connection.execute("SELECT pg_reload_conf()")
        try:
            while connection.execute(f"SHOW {name}".encode()).fetchone() != (value,):
                time.sleep(0.01)
            yield
        finally:
            connection.execute(f"ALTER SYSTEM RESET {name}".encode())
            connection.execute("SELECT pg_reload_conf()")
