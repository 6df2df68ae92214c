"""Loading vectors: exact, idempotent, one transaction, nothing that poisons a search."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from siglip_pipeline.errors import ModelNotFoundError, VectorError
from siglip_pipeline.records import EmbeddingBatch
from siglip_pipeline.store import generations, tables, vectors, videos
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore, check_vectors
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.store import made


def rows_of(database: Database, table: sql.Identifier) -> int:
    with database.connection() as connection:
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table)).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("dim", [1, 3, 768, 1152])
def test_what_is_loaded_comes_back(database: Database, dim: int) -> None:
    model_id = ModelStore(database).register(made.spec(dim=dim))
    batch = made.batch("a/b ü.mp4", made.footage(1, frames=20, dim=dim))
    result = VectorStore(database).load(model_id, batch, source_sha256="x", sampling="fps:1")
    assert (result.outcome, result.frames) == ("written", 20)
    stored = VectorStore(database).vectors(model_id, "a/b ü.mp4")
    np.testing.assert_array_equal(stored.frame_index_N, batch.frame_index_N)
    np.testing.assert_array_equal(stored.time_seconds_N, batch.time_seconds_N)
    np.testing.assert_array_equal(
        stored.embeddings_ND, batch.embeddings_ND.astype(np.float16).astype(np.float32)
    )


def test_a_forced_load_overwrites_what_is_current(database: Database) -> None:
    model_id = ModelStore(database).register(made.spec())
    store = VectorStore(database)
    load = partial(store.load, model_id, source_sha256=made.sha("a"), sampling="fps:1")
    load(made.batch("a.mp4", made.footage(1)))
    again = made.batch("a.mp4", made.footage(2))
    assert load(again).outcome == "current"
    assert load(again, force=True).outcome == "written"
    np.testing.assert_allclose(
        store.vectors(model_id, "a.mp4").embeddings_ND, again.embeddings_ND, atol=1e-3
    )


def test_loading_the_same_again_writes_nothing(database: Database) -> None:
    model_id = ModelStore(database).register(made.spec())
    store, batch = VectorStore(database), made.batch("v.mp4", made.footage(1))
    first = store.load(model_id, batch, source_sha256="x", sampling="fps:1")
    again = store.load(model_id, batch, source_sha256="x", sampling="fps:1")
    assert again.outcome == "current"
    assert (again.frames, again.moments) == (first.frames, first.moments)
    assert store.is_current(model_id, "v.mp4", source_sha256="x", sampling="fps:1")
    assert not store.is_current(model_id, "v.mp4", source_sha256="y", sampling="fps:1")
    assert not store.is_current(model_id, "v.mp4", source_sha256="x", sampling="fps:2")


def test_a_changed_video_replaces_all_of_its_rows(database: Database) -> None:
    model_id = ModelStore(database).register(made.spec())
    store = VectorStore(database)
    store.load(model_id, made.batch("v.mp4", made.footage(1)), source_sha256="x", sampling="fps:1")
    shorter = made.batch("v.mp4", made.footage(2, frames=9))
    result = store.load(model_id, shorter, source_sha256="y", sampling="fps:1")
    assert result.outcome == "written"
    assert rows_of(database, tables.frames(model_id)) == 9
    assert rows_of(database, tables.moments(model_id)) == result.moments == 2


def test_a_video_without_frames_is_stored_as_such(database: Database) -> None:
    model_id = ModelStore(database).register(made.spec())
    empty = made.batch("v.mp4", np.zeros((0, made.DIM), np.float32))
    result = VectorStore(database).load(model_id, empty, source_sha256="x", sampling="fps:1")
    assert (result.outcome, result.frames, result.moments) == ("written", 0, 0)
    assert len(VectorStore(database).vectors(model_id, "v.mp4")) == 0


def test_a_load_that_breaks_off_leaves_the_old_rows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = ModelStore(database).register(made.spec())
    store = VectorStore(database)
    store.load(model_id, made.batch("v.mp4", made.footage(1)), source_sha256="x", sampling="fps:1")

    def fail(*_: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(vectors, "write_moments", fail)
    newer = made.batch("v.mp4", made.footage(2, frames=9))
    with pytest.raises(RuntimeError, match="power cut"):
        store.load(model_id, newer, source_sha256="y", sampling="fps:1")
    assert rows_of(database, tables.frames(model_id)) == 24
    assert store.is_current(model_id, "v.mp4", source_sha256="x", sampling="fps:1")


def test_two_writers_at_once_stay_exact(database: Database) -> None:
    """Both load all videos, each another version: every video ends as one of them, whole."""
    model_id = ModelStore(database).register(made.spec())
    errors: list[BaseException] = []

    def write(version: int) -> None:
        store = VectorStore(database)
        try:
            for i in range(30):
                batch = made.batch(f"v{i % 6}.mp4", made.footage(version, frames=10 + version))
                store.load(model_id, batch, source_sha256=f"{version}-{i}", sampling="fps:1")
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(version,)) for version in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    total = 0
    for i in range(6):
        stored = VectorStore(database).vectors(model_id, f"v{i}.mp4")
        version = len(stored) - 10
        np.testing.assert_allclose(
            stored.embeddings_ND, made.footage(version, frames=10 + version), atol=1e-3
        )
        total += len(stored)
    assert rows_of(database, tables.frames(model_id)) == total
    with database.connection() as connection:
        counted = connection.execute("SELECT sum(frames), count(*) FROM ingests").fetchone()
    assert counted == (total, 6)


@pytest.mark.parametrize(
    ("value", "fault"),
    [(np.nan, "NaN"), (np.inf, "an infinite value"), (-np.inf, "an infinite value")],
)
def test_values_that_poison_a_search_are_refused(
    database: Database, value: float, fault: str
) -> None:
    model_id = ModelStore(database).register(made.spec())
    vectors_ND = made.footage(1)
    vectors_ND[3, 5] = value
    with pytest.raises(VectorError, match=rf"v\.mp4: the vector of frame 75 has {fault}"):
        VectorStore(database).load(
            model_id, made.batch("v.mp4", vectors_ND), source_sha256="x", sampling="fps:1"
        )
    assert rows_of(database, tables.frames(model_id)) == 0


@given(scale=st.floats(0.5, 1.5))
def test_lengths_off_by_more_than_a_thousandth_are_refused(scale: float) -> None:
    batch = made.batch("v.mp4", made.footage(1) * np.float32(scale))
    if abs(scale - 1) < 0.99e-3:
        check_vectors(batch, made.DIM)
    elif abs(scale - 1) > 1.01e-3:
        with pytest.raises(VectorError, match=r"frame 0 has length .* \(24 of 24"):
            check_vectors(batch, made.DIM)


def test_wrong_sizes_and_orders_are_refused() -> None:
    with pytest.raises(VectorError, match="32 dimensions, the model has 16"):
        check_vectors(made.batch("v.mp4", made.footage(1)), 16)
    good = made.batch("v.mp4", made.footage(1))
    doubled = EmbeddingBatch(
        video="v.mp4",
        frame_index_N=np.r_[good.frame_index_N[:3], good.frame_index_N[2:23]],
        time_seconds_N=good.time_seconds_N,
        embeddings_ND=good.embeddings_ND,
    )
    with pytest.raises(VectorError, match="frame 50 does not follow frame 50"):
        check_vectors(doubled, made.DIM)


def test_an_unknown_model_is_named(database: Database) -> None:
    with pytest.raises(ModelNotFoundError, match="no model 7"):
        made.load(database, 7, "v.mp4", made.footage(1))


@pytest.mark.parametrize(
    ("asked", "found"), [(-5.0, 0), (0.4, 0), (0.5, 0), (0.6, 25), (11.2, 275), (1e6, 575)]
)
def test_the_nearest_frame_in_time(module_database: Database, asked: float, found: int) -> None:
    model_id = ModelStore(module_database).register(made.spec())
    made.load(module_database, model_id, "v.mp4", made.footage(1))
    frame = VectorStore(module_database).nearest_frame(model_id, "v.mp4", asked)
    assert frame is not None
    assert (frame.frame_index, frame.time_seconds) == (found, found / 25)
    assert VectorStore(module_database).nearest_frame(model_id, "other.mp4", asked) is None


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_deleted_video_is_gone_under_every_model(database: Database, partitioned: bool) -> None:
    first = made.collection(database, videos=2, partitioned=partitioned)
    second = made.collection(database, videos=2, key="other", dim=16)
    assert VideoStore(database).delete("v00.mp4")
    assert not VideoStore(database).delete("v00.mp4")
    for model_id in (first, second):
        assert len(VectorStore(database).vectors(model_id, "v00.mp4")) == 0
        assert len(VectorStore(database).vectors(model_id, "v01.mp4")) == 24


def test_vectors_are_stored_inline(database: Database) -> None:
    """A vector of more than 2 KB would go to TOAST, which halves the speed of everything."""
    model_id = ModelStore(database).register(made.spec(dim=1152))
    made.load(database, model_id, "v.mp4", made.footage(1, dim=1152))
    with database.connection() as connection:
        row = connection.execute(
            "SELECT pg_relation_size(nullif(reltoastrelid, 0)) FROM pg_class WHERE relname = %s",
            [f"frames_{model_id}"],
        ).fetchone()
    assert row in [(None,), (0,)]


def test_an_exact_search_on_half_precision_agrees_with_float32(database: Database) -> None:
    model_id = made.collection(database, videos=12)
    all_ND = np.concatenate([made.footage(i) for i in range(12)])
    query_D = made.footage(99)[0]
    with psycopg.connect(database.url.reveal()) as connection:
        rows = connection.execute(
            sql.SQL(
                "SELECT embedding <#> %s::halfvec FROM {} ORDER BY video_id, frame_index"
            ).format(tables.frames(model_id)),
            [str(query_D.tolist())],
        ).fetchall()
    np.testing.assert_allclose([-row[0] for row in rows], all_ND @ query_D, atol=2e-3)


def until_a_lock_is_waited_for(database: Database) -> None:
    """Return when some transaction waits for an advisory lock; fail if none does."""
    deadline = time.monotonic() + 20
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    while time.monotonic() < deadline:
        with database.connection() as connection:
            if connection.execute(waiting).fetchone() != (0,):
                return
        time.sleep(0.02)
    raise AssertionError("nothing waited for an advisory lock")


def test_a_load_waits_while_an_index_is_published(database: Database) -> None:
    model_id = made.collection(database, videos=1)
    with ThreadPoolExecutor() as pool:
        with database.connection() as publisher:
            generations.lock_for_publishing(publisher, model_id)
            loading = pool.submit(made.load, database, model_id, "v00.mp4", made.footage(7, 9))
            until_a_lock_is_waited_for(database)
            assert len(VectorStore(database).vectors(model_id, "v00.mp4")) == 24
        loading.result(20)
    assert len(VectorStore(database).vectors(model_id, "v00.mp4")) == 9


def test_a_video_that_is_forgotten_while_its_load_waits_stays_forgotten(database: Database) -> None:
    model_id = made.collection(database, videos=1)
    with ThreadPoolExecutor() as pool:
        with database.connection() as forgetting:
            video_id = videos.find(forgetting, "v00.mp4")
            assert video_id is not None
            generations.remove_video(forgetting, video_id)
            forgetting.execute("DELETE FROM videos WHERE video_id = %s", [video_id])
            loading = pool.submit(made.load, database, model_id, "v00.mp4", made.footage(7))
            until_a_lock_is_waited_for(database)
        with pytest.raises(VectorError, match=r"v00\.mp4: it was deleted while it was embedded"):
            loading.result(20)
    assert VideoStore(database).paths() == set()
    assert rows_of(database, tables.frames(model_id)) == 0
