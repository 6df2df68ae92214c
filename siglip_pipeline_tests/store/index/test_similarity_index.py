"""Generations: when one is built, what is published, and that searches continue meanwhile."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from siglip_pipeline.embedded_postgres import tuning
from siglip_pipeline.errors import NothingIndexedError, SimilarityIndexError, StoreError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import generations, vectors, videos
from siglip_pipeline.store.copy import read_vectors
from siglip_pipeline.store.database import LOCK_BUILD, Database
from siglip_pipeline.store.index import build as building
from siglip_pipeline.store.index import publish as publishing
from siglip_pipeline.store.index import recall
from siglip_pipeline.store.index.recall import truth
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.kinds import index_kind
from siglip_pipeline.store.live_index import live_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.store import made

OPTIONS = made.index_options()


def index_tables(database: Database) -> list[str]:
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT tablename FROM pg_tables WHERE tablename LIKE 'index%' ORDER BY 1"
        ).fetchall()
    return [name for (name,) in rows]


def generation_states(database: Database) -> list[tuple[int, str]]:
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT generation, state FROM generations ORDER BY model_id, generation"
        ).fetchall()
    return [(generation, state) for generation, state in rows]


@pytest.fixture
def model_id(database: Database) -> int:
    return made.collection(database, videos=4)


def test_the_first_publication_activates_the_model(database: Database, model_id: int) -> None:
    assert ModelStore(database).active() is None
    report = build_index(database, model_id, options=OPTIONS)
    assert report.published
    assert report.active
    active = ModelStore(database).active()
    assert active is not None
    assert (active.model_id, active.active_generation) == (model_id, 1)
    assert report.recall is not None
    assert report.recall.recall_at_10 >= OPTIONS.min_recall


def test_nothing_is_built_while_the_live_index_is_good(database: Database, model_id: int) -> None:
    build_index(database, model_id, options=OPTIONS)
    again = build_index(database, model_id, options=OPTIONS)
    assert (again.outcome, again.generation) == ("current", 1)
    assert again.recall is None, "nothing changed: nothing to measure"


@pytest.mark.parametrize("lost", ["INDEX index_{}_g1_ann", "TABLE index_{}_g1"])
def test_an_index_that_the_database_lacks_is_built_anew(
    database: Database, model_id: int, lost: str
) -> None:
    """pg_restore goes on where it could not make one; nothing has changed since."""
    build_index(database, model_id, options=OPTIONS)
    with database.connection() as connection:
        connection.execute(f"DROP {lost.format(model_id)}".encode())
    report = build_index(database, model_id, options=OPTIONS)
    assert (report.outcome, report.generation) == ("published", 2)
    model = ModelStore(database).get(model_id)
    assert len(made.search(database, model, made.footage(1)[0], k=3)) == 3


def test_a_small_change_is_measured_but_not_rebuilt(database: Database) -> None:
    model_id = made.collection(database, videos=20)
    build_index(database, model_id, options=OPTIONS)
    made.load(database, model_id, "v03.mp4", made.footage(333))
    report = build_index(database, model_id, options=OPTIONS)
    assert report.outcome == "current"
    assert report.changed_share == pytest.approx(1 / 20)
    assert report.recall is not None
    purposes = [check.purpose for check in recall.recall_history(database, model_id)]
    assert purposes == ["drift", "publish"]


@pytest.mark.parametrize("change", ["load", "delete"])
def test_a_large_change_is_rebuilt(database: Database, model_id: int, change: str) -> None:
    build_index(database, model_id, options=OPTIONS)
    if change == "load":
        made.load(database, model_id, "v03.mp4", made.footage(333))
    else:
        VideoStore(database).delete("v03.mp4")
    messages: list[str] = []
    report = build_index(database, model_id, options=OPTIONS, progress=messages.append)
    assert (report.outcome, report.generation) == ("published", 2)
    assert any("25.0% of its frames changed" in message for message in messages)
    assert index_tables(database) == [f"index_{model_id}_g2"], "the old one is dropped"
    assert generation_states(database) == [(1, "retired"), (2, "live")]


def test_another_kind_or_threshold_is_rebuilt(database: Database, model_id: int) -> None:
    build_index(database, model_id, options=OPTIONS)
    assert build_index(database, model_id, options=made.index_options(index_kind="hnsw")).published
    finer = made.index_options(index_kind="moments", moment_threshold=0.9999)
    assert build_index(database, model_id, options=finer).recall is not None
    with database.connection() as connection:
        row = connection.execute("SELECT sum(moments), min(moment_threshold) FROM ingests")
        assert row.fetchone() == (96, 0.9999), "every frame is a moment of its own now"


def test_the_live_index_counts_the_frames_that_it_answers_for(
    database: Database, model_id: int
) -> None:
    assert live_index(database, model_id) is None
    build_index(database, model_id, options=OPTIONS)
    with database.connection() as connection:
        video_id = videos.find(connection, "v00.mp4")
        assert video_id is not None
        generations.remove_video(connection, video_id)
    live = live_index(database, model_id)
    assert live is not None
    assert (live.kind, live.frames) == ("moments", 3 * 24)


def test_a_build_tells_the_planner_about_the_frames(database: Database, model_id: int) -> None:
    build_index(database, model_id, options=OPTIONS)
    with database.connection() as connection:
        row = connection.execute(
            "SELECT n_distinct FROM pg_stats WHERE tablename = %s AND attname = 'video_id'",
            [f"frames_{model_id}"],
        ).fetchone()
    assert row is not None, "no statistics: a search of one video would read all frames"


def test_recall_that_fell_asks_for_a_new_generation(database: Database, model_id: int) -> None:
    build_index(database, model_id, options=OPTIONS)
    with database.connection() as connection:  # the live index has lost most of its frames
        connection.execute(
            sql.SQL("UPDATE {} SET last_frame = first_frame").format(
                sql.Identifier(f"index_{model_id}_g1")
            )
        )
        connection.execute("UPDATE generation_videos SET late = video_id = 1")
    lenient = made.index_options(index_rebuild_share=1.0)
    messages: list[str] = []
    report = build_index(database, model_id, options=lenient, progress=messages.append)
    assert report.published
    assert any("recall fell" in message for message in messages)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Indexes of moments in which all have one vector: their recall check fails."""
    real = type(index_kind("moments")).add

    def add(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        _, connection, target = arguments[:3]
        table = sql.Identifier(f"index_{target.model_id}_g{target.generation}")  # type: ignore[attr-defined]
        connection.execute(  # type: ignore[attr-defined]
            sql.SQL("UPDATE {} SET embedding = (SELECT embedding FROM {} LIMIT 1)").format(
                table, table
            )
        )
        connection.execute(  # type: ignore[attr-defined]
            sql.SQL("UPDATE {} SET last_frame = first_frame").format(table)
        )

    with monkeypatch.context() as patch:
        patch.setattr(type(index_kind("moments")), "add", add)
        yield


def test_an_index_that_finds_too_little_is_not_published(
    database: Database, model_id: int, request: pytest.FixtureRequest
) -> None:
    build_index(database, model_id, options=OPTIONS)
    request.getfixturevalue("forgetful")
    report = build_index(database, model_id, options=OPTIONS, force=True)
    assert report.outcome == "refused"
    assert "SIGLIP_INDEX_MIN_RECALL" in report.reason
    assert generation_states(database) == [(1, "live"), (2, "failed")]
    assert index_tables(database) == [f"index_{model_id}_g1"]
    newest = recall.recall_history(database, model_id)[0]
    assert (newest.generation, newest.passed) == (2, False)
    live = live_index(database, model_id)
    assert live is not None
    assert (live.kind, live.instead_of) == ("moments", None)


@pytest.mark.usefixtures("forgetful")
def test_where_the_first_index_is_refused_every_frame_is_compared(
    database: Database, model_id: int
) -> None:
    said: list[str] = []
    report = build_index(database, model_id, options=OPTIONS, progress=said.append)
    assert (report.outcome, report.kind, report.active) == ("refused", "moments", True)
    assert report.reason.endswith("searches compare every frame until an index passes")
    assert "every frame is compared until an index passes" in said
    assert generation_states(database) == [(1, "failed"), (2, "live")]
    assert index_tables(database) == []
    live = live_index(database, model_id)
    assert live is not None
    assert (live.kind, live.recall_at_10) == ("exact", 1)
    assert "moments: recall@10" in str(live.instead_of)
    assert "SIGLIP_INDEX_MIN_RECALL" in str(live.instead_of)
    model = ModelStore(database).get(model_id)
    hits = made.search(database, model, made.footage(2)[9], k=3)
    assert (len(hits), hits[0].video, hits[0].frame_index) == (3, "v02.mp4", 9 * 25)


def test_an_index_that_passes_takes_the_place_of_the_comparison(
    database: Database, model_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recall.RecallReport, "fault", lambda report, _: _refuse(report.kind))
        build_index(database, model_id, options=OPTIONS)
        build_index(database, model_id, options=OPTIONS)
    states = [(1, "failed"), (2, "live"), (3, "failed")]
    assert generation_states(database) == states  # the comparison goes on, and is not made anew
    report = build_index(database, model_id, options=OPTIONS)
    assert report.published
    live = live_index(database, model_id)
    assert live is not None
    assert (live.kind, live.instead_of) == ("moments", None)


def _refuse(kind: str) -> str | None:
    return None if kind == "exact" else "it finds too little"


@pytest.mark.parametrize(
    ("kind", "advice"), [("moments", "exact"), ("hnsw", "moments"), ("hnsw_binary", "moments")]
)
def test_a_refused_index_names_the_ways_out_of_its_kind(
    database: Database,
    model_id: int,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    advice: str,
) -> None:
    monkeypatch.setattr(recall.RecallReport, "fault", lambda report, _: _refuse(report.kind))
    report = build_index(database, model_id, options=OPTIONS, kind=kind)
    live = live_index(database, model_id)
    assert live is not None
    assert str(live.instead_of).startswith(f"{kind}: it finds too little; ")
    for text in (report.reason, str(live.instead_of)):
        assert f"SIGLIP_INDEX_KIND={advice}" in text
        assert f"SIGLIP_INDEX_KIND={kind}" not in text
        assert "a lower SIGLIP_INDEX_MIN_RECALL" in text


@pytest.mark.usefixtures("forgetful")
def test_a_model_beside_the_active_one_waits_for_an_index_that_passes(
    database: Database, model_id: int
) -> None:
    build_index(database, model_id, options=made.index_options(index_kind="hnsw"))
    other = made.collection(database, videos=4, key="other")
    report = build_index(database, other, options=OPTIONS)
    assert (report.outcome, report.active) == ("refused", False)
    assert live_index(database, other) is None


def test_a_build_that_was_killed_leaves_nothing_for_long(
    database: Database, model_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(database, model_id, options=OPTIONS)
    target = building.begin(database, model_id, "hnsw")
    building.fill(database, target)  # … and here its process dies
    assert f"index_{model_id}_g2" in index_tables(database)
    report = build_index(database, model_id, options=OPTIONS, force=True)
    assert report.generation == 3
    assert index_tables(database) == [f"index_{model_id}_g3"]


def test_an_interrupted_build_keeps_the_live_index(
    database: Database, model_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(database, model_id, options=OPTIONS)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "create_index", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(database, model_id, options=OPTIONS, force=True)
    assert generation_states(database) == [(1, "live"), (2, "failed")]
    assert index_tables(database) == [f"index_{model_id}_g1"]


def test_two_builds_at_once_are_refused(database: Database, model_id: int) -> None:
    with psycopg.connect(database.url.reveal(), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_BUILD, model_id])
        with pytest.raises(SimilarityIndexError, match="another process is building"):
            build_index(database, model_id, options=OPTIONS)
        # Not by closing: the server lets go of the lock some time after that.
        other.execute("SELECT pg_advisory_unlock(%s, %s)", [LOCK_BUILD, model_id])
    assert build_index(database, model_id, options=OPTIONS).published


@pytest.mark.parametrize("kind", ["moments", "hnsw", "exact"])
def test_what_changes_during_a_build_is_in_the_new_generation(
    database: Database, model_id: int, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    added_ND, changed_ND = made.footage(60), made.footage(61)
    real_check, real_create = recall.check_recall, building.create_index

    def loading(*arguments: object, **values: object) -> object:
        made.load(database, model_id, "early.mp4", added_ND)
        return real_create(*arguments, **values)  # type: ignore[arg-type]

    def checking(*arguments: object, **values: object) -> object:
        report = real_check(*arguments, **values)  # type: ignore[arg-type]
        made.load(database, model_id, "v02.mp4", changed_ND)
        VideoStore(database).delete("v01.mp4")
        return report

    monkeypatch.setattr(building, "create_index", loading)
    monkeypatch.setattr(recall, "check_recall", checking)
    report = build_index(database, model_id, options=made.index_options(index_kind=kind))
    assert report.published
    model = ModelStore(database).get(model_id)
    assert made.search(database, model, added_ND[9], k=1)[0].video == "early.mp4"
    assert made.search(database, model, changed_ND[9], k=1)[0].video == "v02.mp4"
    videos = {hit.video for hit in made.search(database, model, added_ND[9], k=100)}
    assert videos == {"early.mp4", "v00.mp4", "v02.mp4", "v03.mp4"}


def test_readers_and_writers_never_notice_a_publication(database: Database, model_id: int) -> None:
    build_index(database, model_id, options=OPTIONS)
    model = ModelStore(database).get(model_id)
    stop = threading.Event()
    errors: list[BaseException] = []
    counts = {"searches": 0, "loads": 0}

    def read() -> None:
        try:
            while not stop.is_set():
                hits = made.search(database, model, made.footage(0)[3], k=3)
                assert (hits[0].video, hits[0].frame_index) == ("v00.mp4", 75)
                assert len(hits) == 3
                counts["searches"] += 1
        except BaseException as error:
            errors.append(error)

    def write() -> None:
        try:
            while not stop.is_set():
                made.load(database, model_id, "v03.mp4", made.footage(counts["loads"]))
                counts["loads"] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read), threading.Thread(target=read)]
    threads.append(threading.Thread(target=write))
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    published = 0
    while published < 4 and time.monotonic() < deadline and not errors:
        target = building.begin(database, model_id, "moments" if published % 2 else "hnsw")
        rows = building.fill(database, target)
        building.create_index(database, target, rows, progress=lambda _: None)
        publishing.publish(database, target, None, 0.0, promote=False)
        publishing.drop_unused(database, model_id)
        published += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert published == 4
    assert min(counts.values()) > 0


def test_publishing_waits_for_writers(database: Database, model_id: int) -> None:
    """What a writer has not committed yet would be missing from the new generation."""
    late = made.batch("v03.mp4", made.footage(77, frames=30))
    with ThreadPoolExecutor() as pool:
        with database.connection() as writer:
            video_id = videos.find(writer, "v03.mp4")
            assert video_id is not None
            generations.lock_for_writing(writer, model_id, video_id)
            vectors._write(writer, model_id, video_id, late, made.sha("late"), "fps:1")
            target = building.begin(database, model_id, "hnsw")
            rows = building.fill(database, target)
            building.create_index(database, target, rows, progress=lambda _: None)
            arguments = (database, target, None, 0.0)
            publication = pool.submit(publishing.publish, *arguments, promote=False)
            with pytest.raises(TimeoutError):
                publication.result(0.5)
        publication.result(20)
    model = ModelStore(database).get(model_id)
    (hit,) = made.search(database, model, late.embeddings_ND[29], k=1)
    assert (hit.video, hit.frame_index) == ("v03.mp4", 725)
    assert generation_states(database)[-1] == (target.generation, "live")


def test_ivfflat_is_refused_on_a_pgvector_that_overflows(database: Database, model_id: int) -> None:
    database.pgvector_version = (0, 8, 5)
    ivfflat = made.index_options(index_kind="ivfflat", index_min_recall=0.0)
    with pytest.raises(SimilarityIndexError, match=r"0\.8\.5 can overflow.*moments"):
        build_index(database, model_id, options=ivfflat)
    assert build_index(database, model_id, options=ivfflat, force=True).published
    database.pgvector_version = (0, 8, 7)
    assert build_index(database, model_id, options=ivfflat).outcome == "current"


def test_an_unknown_kind_names_those_that_there_are() -> None:
    with pytest.raises(SimilarityIndexError, match="moments, hnsw, hnsw_binary, ivfflat, exact"):
        index_kind("lsh")


@pytest.mark.parametrize("kind", ["auto", "exact"])
def test_nothing_is_published_before_there_is_a_frame(database: Database, kind: str) -> None:
    model_id = ModelStore(database).register(made.spec())
    options = made.index_options(index_kind=kind)
    for force in (False, True):
        report = build_index(database, model_id, options=options, force=force)
        assert (report.outcome, report.generation, report.active) == ("empty", None, False)
    assert generation_states(database) == []
    model = ModelStore(database).get(model_id)
    with pytest.raises(NothingIndexedError):
        made.search(database, model, made.footage(1)[0], k=3)
    made.load(database, model_id, "v.mp4", made.footage(1))
    assert build_index(database, model_id, options=options).active
    assert len(made.search(database, model, made.footage(1)[0], k=3)) == 3


@pytest.mark.parametrize("kind", ["moments", "exact"])
def test_what_became_empty_answers_with_nothing_and_can_be_filled_again(
    database: Database, kind: str
) -> None:
    model_id = made.collection(database, videos=2)
    options = made.index_options(index_kind=kind)
    build_index(database, model_id, options=options)
    model = ModelStore(database).get(model_id)
    for video in VideoStore(database).paths():
        VideoStore(database).delete(video)
    assert made.search(database, model, made.footage(1)[0], k=3) == []
    assert build_index(database, model_id, options=options).outcome in ("published", "current")
    assert made.search(database, model, made.footage(1)[0], k=3) == []
    made.load(database, model_id, "v.mp4", made.footage(1))
    assert len(made.search(database, model, made.footage(1)[0], k=3)) == 3


def test_shared_memory_that_is_short_means_no_workers(
    database: Database, model_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    real = building._run

    def run(
        database: Database,
        statement: sql.Composed,
        settings: tuning.BuildSettings,
        progress: building.Progress,
    ) -> None:
        tried.append(settings.workers)
        if settings.workers:
            raise StoreError("no") from psycopg.errors.DiskFull("could not resize shared memory")
        real(database, statement, settings, progress)

    wanted = tuning.BuildSettings(memory_bytes=1 << 26, wanted_bytes=1, workers=2, why="")
    monkeypatch.setattr(building, "_run", run)
    monkeypatch.setattr(building, "_settings", lambda *_: wanted)
    messages: list[str] = []
    report = build_index(database, model_id, options=OPTIONS, progress=messages.append)
    assert tried == [2, 0]
    assert report.settings is not None
    assert report.settings.workers == 0
    assert any("building without workers" in message for message in messages)


def test_other_refusals_are_not_tried_again(
    database: Database, model_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise StoreError("no") from psycopg.errors.InsufficientPrivilege("denied")

    monkeypatch.setattr(building, "_run", run)
    with pytest.raises(StoreError):
        build_index(database, model_id, options=OPTIONS)
    assert generation_states(database) == [(1, "failed")]


def test_progress_is_read_while_an_index_is_built(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = ModelStore(database).register(made.spec())
    for i in range(8):
        made.load(database, model_id, f"v{i}", made.footage(i, frames=1000, noise=0.5))
    monkeypatch.setattr(building, "PROGRESS_SECONDS", 0.02)
    messages: list[str] = []
    target = building.begin(database, model_id, "hnsw")
    rows = building.fill(database, target)
    building.create_index(database, target, rows, progress=messages.append)
    assert rows == 8000
    assert any("building index" in m and "%" in m for m in messages), messages


def test_a_generation_knows_how_much_of_it_changed(database: Database, model_id: int) -> None:
    build_index(database, model_id, options=OPTIONS)
    made.load(database, model_id, "v00.mp4", made.footage(70))
    made.load(database, model_id, "v00.mp4", made.footage(71))
    with database.connection() as connection:
        live = generations.live(connection, model_id)
        assert live is not None
        assert generations.changed_share(connection, live) == pytest.approx(0.25)


def test_the_report_is_plain_json(database: Database, model_id: int) -> None:
    import json

    report = build_index(database, model_id, options=OPTIONS)
    document = json.loads(json.dumps(report.to_json()))
    assert document["outcome"] == "published"
    assert document["workers"] == 0
    assert np.isfinite(document["bytes_per_frame"])


def test_the_texts_of_a_user_are_asked_first(database: Database, model_id: int) -> None:
    asked: list[str] = []

    def embed(labels: Sequence[str]) -> FloatArray:
        asked.extend(labels)
        return made.footage(1, frames=len(labels))

    texts = ["a red bus", "rain on a window"]
    report = build_index(
        database,
        model_id,
        options=OPTIONS,
        texts=texts,
        embed_texts=embed,
    )
    assert asked[:2] == texts
    assert len(asked) == 12
    assert report.recall is not None
    assert not report.recall.made_texts


def test_fewer_queries_of_a_small_collection_are_said(database: Database, model_id: int) -> None:
    said: list[str] = []
    options = made.index_options(index_recall_queries=200)
    report = build_index(database, model_id, options=options, progress=said.append)
    assert "recall check: 40 queries instead of 400, as the collection is small" in said
    document = report.to_json()
    assert (document["recall_queries"], document["recall_queries_wanted"]) == (40, 400)
    live = live_index(database, model_id)
    assert live is not None
    assert live.recall_queries == 40


@pytest.fixture
def no_threads_stay() -> Iterator[None]:
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("truth-ahead", "recall-truth"))]


def test_the_truth_of_the_check_is_found_while_the_index_is_built(
    database: Database, model_id: int, no_threads_stay: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []

    def read(*arguments: Any) -> Iterator[Any]:
        passes.append(threading.current_thread().name)
        yield from read_vectors(*arguments)

    def create(*arguments: Any, **named: Any) -> tuning.BuildSettings | None:
        until = time.monotonic() + 30
        while not kept_truths(database):
            assert time.monotonic() < until, "the truth waits for the index"
            time.sleep(0.01)
        return create_index(*arguments, **named)

    create_index = building.create_index
    monkeypatch.setattr(building, "create_index", create)
    monkeypatch.setattr(truth, "read_vectors", read)
    assert build_index(database, model_id, options=OPTIONS).published
    assert len(passes) == 1, "the check reads no frame again"
    assert passes[0].startswith("recall-truth")


def kept_truths(database: Database) -> int:
    with database.connection() as connection:
        [row] = connection.execute("SELECT count(*) FROM recall_truths")
    return int(row[0])


def test_a_build_that_fails_ends_the_search_for_its_truth(
    database: Database, model_id: int, no_threads_stay: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def endless(*_: Any) -> Iterator[Any]:
        while True:
            begun.set()
            yield np.zeros(1, np.int64), np.zeros(1, np.int64), made.footage(0, 1)

    def fail(*_: Any, **__: Any) -> None:
        assert begun.wait(30)
        raise StoreError("no space left")

    monkeypatch.setattr(truth, "read_vectors", endless)
    monkeypatch.setattr(building, "create_index", fail)
    with pytest.raises(StoreError, match="no space left"):
        build_index(database, model_id, options=OPTIONS)
    assert generation_states(database) == [(1, "failed")]
    assert kept_truths(database) == 0, "half a truth is none"


def test_an_error_in_the_search_for_the_truth_fails_the_build(
    database: Database, model_id: int, no_threads_stay: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Iterator[Any]:
        raise StoreError("the connection is lost")
        yield

    monkeypatch.setattr(truth, "read_vectors", broken)
    with pytest.raises(StoreError, match="the connection is lost"):
        build_index(database, model_id, options=OPTIONS)
    assert generation_states(database) == [(1, "failed")]
