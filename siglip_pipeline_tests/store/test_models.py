"""Models side by side: nothing of one shows in the other, and switching is one step."""

import threading

import numpy as np
import pytest

from siglip_pipeline.errors import ModelNotFoundError, NothingIndexedError, StoreError
from siglip_pipeline.records import Stage
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.search.moment_search import ActiveModelChangedError, MomentSearch
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.store import made

OPTIONS = made.index_options(index_kind="moments")


def embed(database: Database, model_id: int, videos: range, dim: int) -> None:
    for i in videos:
        made.load(database, model_id, f"v{i:02d}.mp4", made.footage(i, dim=dim))


def test_registering_again_gives_the_same_model(database: Database) -> None:
    models = ModelStore(database)
    first = models.register(made.spec())
    assert models.register(made.spec()) == first
    row = models.get("tiny")
    assert row.spec == made.spec()
    assert models.get(first) == row
    assert [model.key for model in models.list()] == ["tiny"]


def test_a_key_means_one_dimension(database: Database) -> None:
    models = ModelStore(database)
    models.register(made.spec(dim=16))
    with pytest.raises(StoreError, match="16 dimensions in the database, 32 here"):
        models.register(made.spec(dim=32))


def test_models_that_register_at_once_are_one(database: Database) -> None:
    ids: list[int] = []
    threads = [
        threading.Thread(target=lambda: ids.append(ModelStore(database).register(made.spec())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4
    assert len(set(ids)) == 1


def test_an_unknown_key_names_those_that_there_are(database: Database) -> None:
    ModelStore(database).register(made.spec())
    with pytest.raises(ModelNotFoundError, match=r"no model 'other'.*there are: tiny"):
        ModelStore(database).promote("other")


def test_coverage_counts_embedded_missing_and_failed(database: Database) -> None:
    old = made.collection(database, videos=4)
    build_index(database, old, options=OPTIONS)
    models = ModelStore(database)
    new = models.register(made.spec("new", 16))
    embed(database, new, range(1), 16)
    VideoStore(database).record_failure("v03.mp4", stage=Stage.VECTORS, reason="no memory")
    VideoStore(database).record_failure("bad.mp4", stage=Stage.FRAMES, reason="not a video")
    covered = models.coverage(new)
    assert (covered.embedded, covered.missing, covered.failed) == (1, 2, 1)
    assert (covered.lost, covered.total, covered.frames) == (3, 4, 24)
    assert not covered.complete
    assert models.coverage(old).complete


def test_vectors_of_an_older_version_of_a_video_do_not_count(database: Database) -> None:
    model_id = made.collection(database, videos=2)
    with database.connection() as connection:
        connection.execute("UPDATE videos SET sampling = 'fps:2' WHERE path = 'v00.mp4'")
    covered = ModelStore(database).coverage(model_id)
    assert (covered.embedded, covered.missing) == (1, 1)


def test_promotion_waits_for_an_index_and_for_coverage(database: Database) -> None:
    old = made.collection(database, videos=3)
    build_index(database, old, options=OPTIONS)
    models = ModelStore(database)
    new = models.register(made.spec("new", 16))
    embed(database, new, range(2), 16)
    with pytest.raises(StoreError, match="has no published index"):
        models.promote("new")
    build_index(database, new, options=OPTIONS)
    assert models.active() == models.get(old), "an index alone does not switch"
    with pytest.raises(StoreError, match=r"covers 2 of 3 videos \(1 missing, 0 failed, 1 of them"):
        models.promote("new")
    embed(database, new, range(3), 16)
    assert models.promote("new").is_active
    assert not models.get(old).is_active
    assert models.promote("tiny").is_active, "back again"


def test_a_gap_can_be_forced(database: Database) -> None:
    build_index(database, made.collection(database, videos=2), options=OPTIONS)
    new = ModelStore(database).register(made.spec("new", 16))
    embed(database, new, range(1), 16)
    build_index(database, new, options=OPTIONS)
    assert ModelStore(database).promote("new", force=True).key == "new"


@pytest.mark.parametrize(("videos", "switched"), [(2, False), (3, True)])
def test_a_covering_model_is_promoted_by_itself_if_set(
    database: Database, videos: int, switched: bool
) -> None:
    build_index(database, made.collection(database, videos=3), options=OPTIONS)
    new = ModelStore(database).register(made.spec("new", 16))
    embed(database, new, range(videos), 16)
    automatic = made.index_options(index_kind="moments", promote_automatically=True)
    assert build_index(database, new, options=automatic).active is switched
    active = ModelStore(database).active()
    assert active is not None
    assert (active.key == "new") is switched


@pytest.mark.parametrize("known", [False, True])
def test_a_search_notices_that_its_model_was_dropped(database: Database, known: bool) -> None:
    """A running service still has the model that another process has replaced and dropped."""
    old = made.collection(database, videos=2)
    build_index(database, old, options=OPTIONS)
    models, search = ModelStore(database), MomentSearch(database)
    model, request = models.get(old), made.request(made.footage(0)[3], k=1)
    if known:
        search.search(model, request, must_be_active=True)
    new = models.register(made.spec("new", 16))
    embed(database, new, range(2), 16)
    build_index(database, new, options=OPTIONS)
    models.promote("new")
    models.drop("tiny")
    with pytest.raises(ActiveModelChangedError):
        search.search(model, request, must_be_active=True)
    with pytest.raises(NothingIndexedError, match="no index is published for model made/tiny"):
        search.search(model, request)


def test_dropping_a_model_frees_everything_of_it(database: Database) -> None:
    old = made.collection(database, videos=2)
    build_index(database, old, options=OPTIONS)
    models = ModelStore(database)
    new = models.register(made.spec("new", 16))
    embed(database, new, range(2), 16)
    build_index(database, new, options=OPTIONS)
    with pytest.raises(StoreError, match="tiny is active; promote another one first"):
        models.drop("tiny")
    models.promote("new")
    models.drop("tiny")
    assert [model.key for model in models.list()] == ["new"]
    with database.connection() as connection:
        left = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relname ~ %s", [f"_{old}(_|$)"]
        ).fetchone()
        rows = connection.execute(
            "SELECT (SELECT count(*) FROM ingests WHERE model_id = %(old)s)"
            " + (SELECT count(*) FROM generation_videos WHERE model_id = %(old)s)"
            " + (SELECT count(*) FROM recall_queries WHERE model_id = %(old)s)"
            " + (SELECT count(*) FROM recall_truths WHERE model_id = %(old)s)",
            {"old": old},
        ).fetchone()
    assert (left, rows) == ((0,), (0,))
    assert len(VectorStore(database).vectors(new, "v00.mp4")) == 24


def test_a_reader_sees_no_error_and_no_mixture_while_models_change(database: Database) -> None:
    """One model after the other is filled, indexed and promoted under a reader in a loop."""
    dims = {"tiny": made.DIM, "new": 16}
    build_index(database, made.collection(database, videos=4), options=OPTIONS)
    models = ModelStore(database)
    stop = threading.Event()
    seen: set[str] = set()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                model = models.active()
                assert model is not None
                query_D = made.footage(2, dim=dims[model.key])[9]
                hits = made.search(database, model, query_D, k=4)
                assert (hits[0].video, hits[0].frame_index) == ("v02.mp4", 225)
                assert hits[0].score > 0.99, "a vector of the other model would not fit"
                assert len(hits) == 4
                seen.add(model.key)
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    new = models.register(made.spec("new", 16))
    embed(database, new, range(4), 16)
    build_index(database, new, options=OPTIONS)
    for key in ("new", "tiny", "new", "tiny", "new"):
        models.promote(key)
        build_index(
            database,
            models.get(key).model_id,
            options=OPTIONS,
            force=True,
        )
    stop.set()
    reader.join()
    assert errors == []
    assert seen == {"tiny", "new"}


def test_both_models_answer_from_their_own_vectors(database: Database) -> None:
    first = made.collection(database, videos=2)
    second = made.collection(database, videos=2, key="other", dim=made.DIM)
    made.load(database, second, "v00.mp4", made.footage(500))
    for model_id in (first, second):
        build_index(database, model_id, options=OPTIONS)
    models = ModelStore(database)
    query_D = made.footage(500)[3]
    near = made.search(database, models.get(second), query_D, k=1)[0].score
    far = made.search(database, models.get(first), query_D, k=1)[0].score
    assert near == pytest.approx(1, abs=2e-3)
    assert far < 0.9
    assert np.isfinite([near, far]).all()
