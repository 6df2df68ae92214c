"""The recall check: its truth is the truth, its figures move when an index gets worse."""

import io
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from psycopg import sql
from threadpoolctl import threadpool_info, threadpool_limits

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.copy import read_vectors, to_float32
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index import build as building
from siglip_pipeline.store.index import recall
from siglip_pipeline.store.index.recall import RecallCase, RecallReport, truth
from siglip_pipeline.store.index.recall import queries as drawing
from siglip_pipeline.store.index.recall.check import choose_effort
from siglip_pipeline.store.index.recall.kept_truths import read_truths
from siglip_pipeline.store.index.recall.looks import is_clear, looks
from siglip_pipeline.store.index.recall.nearest import Nearest, use_in_threads
from siglip_pipeline.store.index.recall.plot import recall_plot
from siglip_pipeline.store.index.recall.queries import Query, fitting, prepare_queries
from siglip_pipeline.store.index.recall.truth import bootstrap, find_truth, found_share
from siglip_pipeline.store.kinds import Generation, Scope, index_kind
from siglip_pipeline.store.kinds.effort import Effort, chosen_efforts, effort_for
from siglip_pipeline.store.kinds.moment_index import EveryMoment
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.search import execution
from siglip_pipeline.store.search.execution import effort_of
from siglip_pipeline.store.search.near_frames import NearFrame, NearFrames
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.store import made

VIDEOS = 30


def embed_texts(labels: list[str]) -> np.ndarray:
    return np.concatenate([made.footage(len(label) * 31 + i, 1) for i, label in enumerate(labels)])


@pytest.fixture(scope="module")
def queries(module_database: Database) -> list[Query]:
    model_id = made.collection(module_database, videos=VIDEOS)
    model = ModelStore(module_database).get(model_id)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drawing, "FRAMES_PER_QUERY", 1)
        return prepare_queries(module_database, model, embed_texts=embed_texts)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(module_database: Database, queries: list[Query]) -> Generation:
    target = building.begin(module_database, 1, "moments")
    rows = building.fill(module_database, target)
    building.create_index(module_database, target, rows, progress=lambda _: None)
    return target


def test_there_are_200_queries_of_each_kind(queries: list[Query]) -> None:
    assert [q.modality for q in queries] == ["picture"] * 200 + ["text"] * 200
    assert len({query.label for query in queries}) == 400
    assert all(query.held_out for query in queries[:200])


def test_queries_are_kept(
    module_database: Database, queries: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "FRAMES_PER_QUERY", 1)
    model = ModelStore(module_database).get(1)
    again = prepare_queries(module_database, model, embed_texts=embed_texts)  # type: ignore[arg-type]
    assert [(q.label, q.held_out) for q in again] == [(q.label, q.held_out) for q in queries]
    np.testing.assert_allclose(
        np.array([q.embedding_D for q in again]),
        np.array([q.embedding_D for q in queries]),
        atol=1e-3,
    )


def noted_embedding() -> tuple[Callable[[list[str]], np.ndarray], list[list[str]]]:
    """The text tower, and what it is asked."""
    asked: list[list[str]] = []

    def embed(labels: list[str]) -> np.ndarray:
        asked.append(labels)
        return embed_texts(labels)

    return embed, asked


def test_texts_of_a_user_come_first_and_are_used(database: Database) -> None:
    model_id = made.collection(database, videos=2)
    model = ModelStore(database).get(model_id)
    embed, asked = noted_embedding()
    given_texts = [" a red bus ", "rain", "rain", ""]
    for _ in range(2):
        drawn = prepare_queries(database, model, texts=given_texts, embed_texts=embed)  # type: ignore[arg-type]
    texts = [query for query in drawn if query.modality == "text"]
    assert [query.label for query in texts[:2]] == ["a red bus", "rain"]
    assert len(texts) == 20
    assert len(asked) == 1, "kept, not embedded again"
    prepare_queries(database, model, texts=["snow", "rain"], embed_texts=embed)  # type: ignore[arg-type]
    assert asked[1] == ["snow"], "the others are kept"


def test_a_small_collection_has_few_queries_and_keeps_their_texts_as_it_grows(
    database: Database,
) -> None:
    assert [fitting(200, frames) for frames in (1, 200, 600, 2000, 10**6)] == [20, 20, 60, 200, 200]
    assert fitting(12, 10**6) == 12
    model_id = made.collection(database, videos=9)
    model = ModelStore(database).get(model_id)
    embed, asked = noted_embedding()
    few = prepare_queries(database, model, embed_texts=embed)  # type: ignore[arg-type]
    assert [q.modality for q in few] == ["picture"] * 21 + ["text"] * 21, "a tenth of 216 frames"
    for i in range(9, 18):
        made.load(database, model_id, f"v{i:02d}.mp4", made.footage(i))
    more = prepare_queries(database, model, embed_texts=embed)  # type: ignore[arg-type]
    texts = [query for query in more if query.modality == "text"]
    assert len(texts) == len(more) / 2 == 43
    assert asked == [[q.label for q in texts[:21]], [q.label for q in texts[21:]]]
    np.testing.assert_allclose(
        np.array([query.embedding_D for query in texts]),
        np.concatenate([embed_texts(labels) for labels in asked]),
        atol=1e-3,
    )


def test_queries_are_drawn_anew_when_the_collection_has_doubled(database: Database) -> None:
    model_id = made.collection(database, videos=10)
    model = ModelStore(database).get(model_id)
    before = [q.label for q in prepare_queries(database, model)]
    made.load(database, model_id, "v10.mp4", made.footage(10))
    assert [q.label for q in prepare_queries(database, model)] == before
    for i in range(11, 21):
        made.load(database, model_id, f"v{i}.mp4", made.footage(i))
    after = prepare_queries(database, model)
    assert [q.label for q in after] != before
    assert any(q.label.startswith("v1") for q in after)


def test_without_a_text_tower_texts_are_made_and_said_to_be(database: Database) -> None:
    model_id = made.collection(database, videos=3)
    drawn = prepare_queries(database, ModelStore(database).get(model_id))
    texts = [query for query in drawn if query.modality == "text"]
    assert len(texts) == 20
    assert all(query.made for query in texts)
    pictures_ND = np.concatenate([made.footage(i) for i in range(3)])
    best_Q = np.max([q.embedding_D @ pictures_ND.T for q in texts], axis=1)
    assert best_Q.max() < 0.6, "as far from pictures as texts are"


def test_no_frames_no_queries(database: Database) -> None:
    model_id = ModelStore(database).register(made.spec())
    assert prepare_queries(database, ModelStore(database).get(model_id)) == []


def test_every_number_in_half_precision_is_read_exactly() -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves_ND = numbers[np.isfinite(numbers)].reshape(-1, 32)
    read_ND = to_float32(halves_ND.astype(">f2"))
    np.testing.assert_array_equal(read_ND.view(np.int32), halves_ND.astype(np.float32).view("i4"))


@pytest.mark.parametrize("block_bytes", [2_000, 16 * 1024**2])
@pytest.mark.parametrize("video_ids", [None, [1], [2, 5, 7]])
def test_the_truth_is_what_numpy_finds(
    module_database: Database,
    built: Generation,
    queries: list[Query],
    video_ids: list[int] | None,
    block_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one block and in some thirty, of which the later ones hold few of the nearest."""
    monkeypatch.setattr("siglip_pipeline.store.copy.READ_BYTES", block_bytes)
    some = [*queries[:5], *queries[200:205]]
    scope = Scope(video_ids=video_ids)
    with module_database.connection() as connection:
        truth_QK = find_truth(connection, built, some, [Scope(), scope], 100)[1].distances_QK
    chosen = range(VIDEOS) if video_ids is None else [i - 1 for i in video_ids]
    for query, found_K in zip(some, truth_QK, strict=True):
        distances = {
            (video + 1, 25 * row): -float(value)
            for video in chosen
            for row, value in enumerate(made.footage(video) @ query.embedding_D)
        }
        distances.pop(query.held_out or (0, 0), None)
        expected = sorted(distances.values())[:100]
        finite = found_K[np.isfinite(found_K)]
        assert len(finite) == len(expected)
        np.testing.assert_allclose(finite, expected, atol=3e-3)


@pytest.fixture
def read_videos(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The videos whose frames the truth reads."""
    read: set[int] = set()

    def reading(*arguments: Any) -> Iterator[Any]:
        for block in read_vectors(*arguments):
            read.update(block[0].tolist())
            yield block

    monkeypatch.setattr(truth, "read_vectors", reading)
    return read


def checked_truth(database: Database) -> dict[float, truth.Truth]:
    """What a recall check of a new generation keeps of its truth."""
    model = ModelStore(database).get(1)
    asked = prepare_queries(database, model)
    target = building.begin(database, 1, "moments")
    building.fill(database, target)
    recall.check_recall(database, target, asked, min_recall=0.0, progress=lambda _: None)
    with database.connection() as connection:
        return read_truths(connection, 1, asked)


@pytest.mark.parametrize("change", ["none", "added", "replaced", "deleted"])
def test_a_check_reads_only_new_videos_and_finds_the_whole_truth(
    database: Database, read_videos: set[int], change: str
) -> None:
    made.collection(database, videos=10)
    checked_truth(database)
    assert read_videos == set(range(1, 11))
    read_videos.clear()
    if change == "added":
        for i in (10, 11):
            made.record(database, f"v{i}.mp4")
            made.load(database, 1, f"v{i}.mp4", made.footage(i))
    elif change == "replaced":
        made.load(database, 1, "v03.mp4", made.footage(77))
    elif change == "deleted":
        VideoStore(database).delete("v03.mp4")
    continued = checked_truth(database)
    expected = {"none": set(), "added": {11, 12}, "replaced": {*range(1, 11)}}
    assert read_videos == expected.get(change, {*range(1, 11)} - {4})
    with database.connection() as connection:
        connection.execute("DELETE FROM recall_truths")
    anew = checked_truth(database)
    assert continued.keys() == anew.keys() > {1.0, 0.3}
    for share, found in anew.items():
        assert continued[share].loads == found.loads
        np.testing.assert_allclose(continued[share].distances_QK, found.distances_QK, atol=1e-6)


def test_a_share_keeps_its_videos_as_others_are_added(database: Database) -> None:
    made.collection(database, videos=10)
    before = checked_truth(database)[0.3].loads
    for i in range(10, 16):
        made.record(database, f"v{i}.mp4")
        made.load(database, 1, f"v{i}.mp4", made.footage(i))
    after = checked_truth(database)[0.3].loads
    assert before.items() < after.items()


def test_an_index_is_measured_without_and_with_filters(
    module_database: Database, built: Generation, queries: list[Query]
) -> None:
    report = recall.check_recall(
        module_database, built, queries, min_recall=0.95, progress=lambda _: None
    )
    shares = {case.share for case in report.cases}
    assert shares == {1.0, 0.001, 0.3}, "of 30 videos 0.1, 1 and 5% are one video"
    assert {case.modality for case in report.cases} == {"picture", "text"}
    for case in report.cases:
        assert case.searched == ("moments" if case.share == 1 else "exact")
        assert case.queries == (200 if case.share == 1 else 20)
        assert case.queries_at_100 == (50 if case.share == 1 else 20)
        assert case.recall_at_100 is not None
        assert case.recall_at_100 > 0.95
        assert case.rows_share == 1
        assert case.low <= case.recall_at_10 <= case.high
        assert case.p50_seconds <= case.p99_seconds
        if case.share < 1:
            assert case.recall_at_10 == 1, "small scopes are looked at frame by frame"
    assert report.recall_at_10 > 0.95
    chosen = {effort_for(report.parameters, query.embedding_D) for query in queries[200:]}
    assert chosen == {choose_effort([c for c in report.sweep if c.modality == "text"])}
    assert report.frames == VIDEOS * 24
    assert report.table_bytes > report.ann_bytes > 0
    assert report.fault(0.95) is None
    assert "index_1_g1" in report.plan
    # Pictures are found at once; one value more is for the plot, with a part of the queries.
    assert [(c.modality, c.ef_search, c.queries) for c in report.sweep][:3] == [
        ("picture", 25, 200),
        ("picture", 50, 50),
        ("text", 25, 200),
    ]


def test_the_index_is_read_as_by_searches_for_ten_and_for_a_hundred_hits(
    module_database: Database,
    built: Generation,
    queries: list[Query],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: set[tuple[int, int, float]] = set()

    class Recorded(NearFrames):
        def __init__(self, *args: Any, k: int, scope: Scope, **rest: Any) -> None:
            super().__init__(*args, k=k, scope=scope, **rest)
            read.add((k, rest.get("least_rows", 0), scope.everything))

    monkeypatch.setattr("siglip_pipeline.store.index.recall.check.NearFrames", Recorded)
    recall.check_recall(
        module_database, built, queries, min_recall=0.95, progress=lambda _: None, sweep=False
    )
    # One frame more, as the query's own is none; four moments for a hit, as in find_hits.
    unfiltered = {(k, rows) for k, rows, everything in read if everything}
    assert unfiltered - {(10, 0)} == {(11, 40), (101, 400)}, "(10, 0) is for the plan alone"


@pytest.fixture
def walks_in_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scope is so small that its frames or its moments are compared."""
    monkeypatch.setattr("siglip_pipeline.store.search.execution.EXACT_FRAMES", 0)
    monkeypatch.setattr("siglip_pipeline.store.kinds.moment_index.WALK_COST", 0)


@pytest.mark.usefixtures("walks_in_scopes")
@pytest.mark.parametrize(
    ("share", "short", "chosen"),
    [
        (0.3, 0.7, {"picture": 0.7, "text": 1}),
        (0.3, 2, {"picture": 0.7, "text": 4}),
        (1.0, 2, {"picture": 0.7, "text": 0.7}),
    ],
)
def test_a_walk_in_a_scope_goes_as_far_as_its_modality_needs(
    module_database: Database,
    built: Generation,
    queries: list[Query],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    short: float,
    chosen: dict[str, float],
) -> None:
    """Short walks are said to miss hits of texts in one scope; without a filter none is short."""

    def missing(*args: Any, **how: Any) -> RecallCase:
        case = measure(*args, **how)
        is_short = how.get("effort") is not None and how["effort"].in_scope <= short
        at_fault = is_short and (case.modality, case.share) == ("text", share) and share < 1
        return replace(case, recall_at_10=recall.check.AIM - 0.001) if at_fault else case

    measure = recall.check.measure
    monkeypatch.setattr("siglip_pipeline.store.index.recall.check.measure", missing)
    report = recall.check_recall(
        module_database, built, queries, min_recall=0.95, progress=lambda _: None
    )
    assert report.parameters["in_scope"] == chosen
    for rows, modality in ((slice(0, 200), "picture"), (slice(200, None), "text")):
        efforts = {effort_for(report.parameters, query.embedding_D) for query in queries[rows]}
        assert {effort.in_scope for effort in efforts if effort} <= {
            chosen[modality],
            *chosen.values(),
        }


def test_where_no_scope_is_walked_a_walk_would_go_furthest(
    module_database: Database, built: Generation, queries: list[Query]
) -> None:
    report = recall.check_recall(
        module_database, built, queries, min_recall=0.95, progress=lambda _: None
    )
    assert report.parameters["in_scope"] == {"picture": 4, "text": 4}


def test_efforts_rise_in_cost() -> None:
    efforts = index_kind("moments").efforts
    costs = [effort.ef_search + 3 * effort.rows for effort in efforts]
    assert costs == sorted(costs), "decision 0118: a row costs as much as three of ef_search"
    assert len(set(efforts)) == len(efforts)
    assert all(later.ef_search <= 1000 for later in efforts), "pgvector's own limit"
    walks = sorted({effort.ef_search for effort in efforts if effort.rows == 25})
    far = [walk for walk in walks if 200 <= walk <= 400]
    assert all(3 * more <= 4 * less for less, more in itertools.pairwise(far)), (
        "texts of millions of frames"
    )


def test_with_made_texts_all_are_searched_with_the_larger_effort(
    module_database: Database, built: Generation, queries: list[Query]
) -> None:
    made_queries = [
        replace(query, label=f"like {query.label}") if query.modality == "text" else query
        for query in queries
    ]
    report = recall.check_recall(
        module_database, built, made_queries, min_recall=0.95, progress=lambda _: None
    )
    most = max(
        choose_effort([case for case in report.sweep if case.modality == modality]).ef_search
        for modality in ("picture", "text")
    )
    assert report.parameters == {"effort": most}, "no plane: where real texts lie is not known"
    found = {effort_for(report.parameters, query.embedding_D) for query in queries}
    assert found == {Effort(ef_search=most, rows=most)}


def test_an_index_that_lost_rows_is_found_out(
    module_database: Database, built: Generation, queries: list[Query]
) -> None:
    worse = replace(built, generation=built.generation)
    with module_database.connection() as connection:
        connection.execute("CREATE TABLE saved AS SELECT * FROM index_1_g1")
        connection.execute("UPDATE index_1_g1 SET last_frame = first_frame")
    try:
        report = recall.check_recall(
            module_database,
            worse,
            queries,
            min_recall=0.95,
            progress=lambda _: None,
            sweep=False,
        )
    finally:
        with module_database.connection() as connection:
            connection.execute(
                "UPDATE index_1_g1 i SET last_frame = s.last_frame FROM saved s"
                " WHERE (s.video_id, s.moment) = (i.video_id, i.moment)"
            )
            connection.execute(sql.SQL("DROP TABLE saved"))
    assert report.recall_at_10 < 0.5
    assert "SIGLIP_INDEX_MIN_RECALL" in str(report.fault(0.95))


@pytest.fixture
def unlike_their_means(
    module_database: Database, monkeypatch: pytest.MonkeyPatch
) -> tuple[Generation, list[Query], list[Query]]:
    """Queries that 40 moments of a scope suffice for, and others whose frames have poor means.

    Each of 200 videos is a moment at a cosine of 0.5 with the others, and one of four frames whose
    best is at 0.6 and whose mean is below 0.5.
    """
    monkeypatch.setattr(execution, "EXACT_FRAMES", 0)
    poor_D, good_D, away_D = np.eye(3, made.DIM, dtype=np.float32)
    video_ND = np.stack(
        [
            0.5 * poor_D + np.sqrt(0.75) * good_D,
            0.6 * poor_D + 0.8 * away_D,
            *[0.2 * poor_D + np.sqrt(0.96) * away_D] * 3,
        ]
    ).astype(np.float32)
    model_id = ModelStore(module_database).register(made.spec("unlike"))
    for i in range(200):
        made.record(module_database, f"unlike-{i:03d}.mp4", frames=5)
        made.load(module_database, model_id, f"unlike-{i:03d}.mp4", video_ND)
    target = building.begin(module_database, model_id, "moments")
    building.fill(module_database, target)
    target = replace(target, parameters={"effort": 25})
    good, poor = (
        [Query(modality="text", label=f"{name} {i}", embedding_D=query_D) for i in range(100)]
        for name, query_D in (("good", good_D), ("poor", poor_D))
    )
    return target, good, poor


def filtered(database: Database, target: Generation, queries: list[Query]) -> RecallCase:
    report = recall.check_recall(
        database, target, queries, min_recall=0.95, progress=lambda _: None, sweep=False
    )
    [found] = [case for case in report.cases if case.share == 0.3]
    return found


def test_recall_at_10_is_what_a_search_for_ten_hits_reads(
    module_database: Database, unlike_their_means: tuple[Generation, list[Query], list[Query]]
) -> None:
    target, good, poor = unlike_their_means
    assert filtered(module_database, target, good).recall_at_10 == 1
    found = filtered(module_database, target, poor)
    assert found.recall_at_10 == 0, "100 moments hold them, the 40 of a search do not"


def test_a_case_does_not_end_because_of_the_texts_that_were_given_first(
    module_database: Database, unlike_their_means: tuple[Generation, list[Query], list[Query]]
) -> None:
    target, good, poor = unlike_their_means
    for queries in (good + poor, poor + good):
        found = filtered(module_database, target, queries)
        assert found.queries < 200
        assert 0.3 < found.recall_at_10 < 0.7


def case(**values: object) -> RecallCase:
    usual: dict[str, object] = {
        "modality": "picture",
        "share": 1.0,
        "ef_search": 50,
        "rows_read": 25,
        "searched": "moments",
        "queries": 200,
        "recall_at_1": 1.0,
        "recall_at_10": 1.0,
        "recall_at_100": 1.0,
        "queries_at_100": 50,
        "low": 1.0,
        "high": 1.0,
        "rows_share": 1.0,
        "p50_seconds": 0.002,
        "p99_seconds": 0.004,
    }
    return RecallCase(**(usual | values))  # type: ignore[arg-type]


def report(*cases: RecallCase, uses_index: bool = True, sweep: bool = True) -> RecallReport:
    return RecallReport(
        kind="moments",
        ef_search=50,
        parameters={},
        frames=100,
        cases=cases,
        sweep=cases if sweep else (),
        table_bytes=10,
        ann_bytes=5,
        plan="Seq Scan",
        uses_index=uses_index,
        rows=50_000,
        made_texts=False,
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("given_report", "words"),
    [
        (report(case(recall_at_10=0.94)), "picture queries is 0.940 .no filter."),
        (report(case(), case(share=0.05, recall_at_10=0.9)), "filtered to 5.0% of videos"),
        (report(case(), case(modality="text", rows_share=0.5)), "only 50.0% of the rows"),
        (report(case(), uses_index=False), "does not use the index of 50,000 rows:\nSeq Scan"),
    ],
)
def test_what_keeps_an_index_from_being_published(given_report: RecallReport, words: str) -> None:
    import re

    assert re.search(words, str(given_report.fault(0.95)))


def test_the_least_effort_that_reaches_the_aim_is_chosen() -> None:
    sweep = [
        case(ef_search=25, recall_at_10=0.8),
        case(ef_search=400, rows_read=50, recall_at_10=0.99),
        case(ef_search=400, rows_read=400),
    ]
    assert choose_effort(sweep) == Effort(ef_search=400, rows=50)
    assert choose_effort(sweep[:1]) == Effort(ef_search=25, rows=25), "none reaches it: the last"


@pytest.mark.parametrize(
    ("found_of_ten", "chosen"),
    [
        ({}, 25),
        ({25: 9, 50: 9}, 100),
        ({25: 7, 50: 8, 100: 9, 200: 9, 250: 9, 300: 9}, 100),  # farther finds no more
        ({25: 6, 50: 6, 100: 6, 200: 6, 250: 6, 300: 8}, 300),  # 400 takes too long
    ],
)
def test_an_effort_also_finds_ten_moments_unless_that_takes_too_long(
    module_database: Database,
    built: Generation,
    queries: list[Query],
    monkeypatch: pytest.MonkeyPatch,
    found_of_ten: dict[int, int],
    chosen: int,
) -> None:
    """Ten hits are ten moments; the last of them are farther from the query than ten frames."""
    usual = NearFrames.__call__

    def efforts(report: RecallReport) -> set[int | None]:
        found = [effort_for(report.parameters, query.embedding_D) for query in queries]
        return {None if effort is None else effort.ef_search for effort in found}

    def miss(search: NearFrames, query_D: FloatArray) -> list[NearFrame]:
        found = usual(search, query_D)
        walked = not isinstance(search._kind, EveryMoment)
        if search._k == 10 and walked:  # ten moments; the check asks for one frame more than ten
            [(ef_search,)] = search._connection.execute("SHOW hnsw.ef_search").fetchall()
            some = [n for ef, n in found_of_ten.items() if max(ef, 50) == int(ef_search)]
            return found[: some[0] if some else 10]
        return found

    monkeypatch.setattr(NearFrames, "__call__", miss)
    report = recall.check_recall(
        module_database, built, queries, min_recall=0.95, progress=lambda _: None
    )
    assert efforts(report) == {chosen}
    monkeypatch.setattr("siglip_pipeline.store.index.recall.check.MOST_MOMENTS", 1)
    report = recall.check_recall(
        module_database, built, queries, min_recall=0.95, progress=lambda _: None
    )
    assert efforts(report) == {25}, "a walk of a large index is long"


@pytest.mark.parametrize("gap", [0.0, 4.0])
def test_pictures_and_texts_are_searched_with_efforts_of_their_own(gap: float) -> None:
    rng = np.random.default_rng(5)
    both_QD = rng.standard_normal((400, 32)).astype(np.float32)
    both_QD[200:, 0] += gap
    both_QD /= np.linalg.norm(both_QD, axis=1, keepdims=True)
    pictures_QD, texts_QD = both_QD[:200], both_QD[200:]
    little, much = Effort(ef_search=25, rows=25), Effort(ef_search=800, rows=200)
    chosen = chosen_efforts({"picture": little, "text": much}, pictures_QD, texts_QD)
    stored = json.loads(json.dumps(chosen))
    assert {effort_for(stored, query_D) for query_D in texts_QD} == {much}, "never less"
    assert effort_for(stored, both_QD[[0, 200]]) == much, "either of them"
    shallow = sum(effort_for(stored, query_D) == little for query_D in pictures_QD)
    assert shallow >= 190 if gap else shallow < 100


def test_generations_of_earlier_versions_have_one_effort_for_all() -> None:
    query_D = np.ones(32, np.float32)
    kind = index_kind("moments")
    old = Generation(model_id=1, dim=32, generation=1, kind="moments", parameters={"effort": 400})
    assert effort_of(kind, old, query_D) == Effort(ef_search=400, rows=400)
    assert effort_of(kind, old, query_D, 50) == Effort(ef_search=50, rows=50)
    assert effort_of(index_kind("exact"), old, query_D).ef_search == 1


@pytest.mark.parametrize("bound", [0.95, 0.99])
@pytest.mark.parametrize("gap", [-0.02, -0.005, 0.005])
def test_a_measurement_stops_on_the_wrong_side_of_a_bound_in_fewer_than_5_percent(
    bound: float, gap: float
) -> None:
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(400):
        values_Q = (rng.random(200) < bound + gap).astype(np.float64)
        for count in looks(200):
            if count < 200 and is_clear(values_Q[:count], bound):
                wrong += (values_Q[:count].mean() > bound) != (gap > 0)
                break
    assert wrong <= 0.05 * 400


def test_a_measurement_stops_early_where_the_answer_is_plain() -> None:
    assert list(looks(200))[:3] == [20, 30, 40]
    assert list(looks(200, 0.25))[-3:] == [180, 190, 200]
    assert [list(looks(count)) for count in (1, 3)] == [[1], [1, 2, 3]]
    assert not is_clear(np.ones(50), 0.95), "0.95 ** 50 is 0.077"
    assert is_clear(np.ones(70), 0.95), "0.95 ** 70 is 0.028"
    assert is_clear(np.full(20, 0.9), 0.99)
    assert not is_clear(np.full(200, 0.95), 0.95)
    assert is_clear(np.ones(2), 0.0)
    assert is_clear(np.full(2, 0.5), 1.0)
    assert not is_clear(np.ones(2), 1.0)


@pytest.mark.parametrize(("found", "bound", "most"), [(0.995, 0.95, 85), (0.95, 0.99, 30)])
def test_a_few_missed_hits_decide_soon(found: float, bound: float, most: int) -> None:
    """Queries of ten hits of which each is found with the same probability."""
    rng = np.random.default_rng(4)
    asked = []
    for _ in range(100):
        values_Q = rng.binomial(10, found, 200) / 10
        asked.append(next(n for n in looks(200) if n == 200 or is_clear(values_Q[:n], bound)))
    assert np.mean(asked) < most


@given(
    truth=st.lists(st.integers(-50, 0), min_size=1, max_size=30),
    depth=st.integers(1, 40),
)
def test_finding_the_truth_is_a_recall_of_one_however_ties_fall(
    truth: list[int], depth: int
) -> None:
    ordered = np.sort(np.array(truth, dtype=np.float32)) / 50
    padded = np.append(ordered, np.inf).astype(np.float32)
    assert found_share(padded, ordered.tolist(), depth) == 1
    tied = [float(ordered[0])] * depth  # as near as the nearest: all of them count
    assert found_share(padded, tied, depth) == 1


def test_missing_one_of_ten_is_nine_tenths() -> None:
    truth_K = np.linspace(0, 0.9, 10, dtype=np.float32)
    found = [float(distance) for distance in (*truth_K[:5], *truth_K[6:], 5.0)]
    assert found_share(truth_K, found, 10) == pytest.approx(0.9)
    assert found_share(truth_K, [], 10) == 0
    assert found_share(np.full(3, np.inf, np.float32), [], 10) == 1


@given(share=st.floats(0, 1), count=st.integers(2, 300))
@settings(max_examples=20)
def test_the_interval_holds_the_mean(share: float, count: int) -> None:
    values = (np.arange(count) < share * count).astype(np.float64)
    low, high = bootstrap(values)
    assert low <= values.mean() <= high


@pytest.mark.parametrize("sweep", [True, False])
def test_the_plot_is_a_small_picture_that_shows_the_curve(sweep: bool) -> None:
    curves = [
        case(ef_search=e, recall_at_10=r, p50_seconds=t, modality=m)
        for m, r0 in (("picture", 0.95), ("text", 0.8))
        for e, r, t in ((25, r0, 0.001), (50, r0 + 0.03, 0.002), (100, 0.999, 0.004))
    ]
    png = recall_plot(report(*curves, sweep=sweep))
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert len(png) < 30_000
    colours = {colour for _, colour in image.getcolors(maxcolors=1 << 16) or []}
    assert {(31, 119, 180), (214, 95, 14)} <= colours


def test_a_check_without_cases_still_plots() -> None:
    assert recall_plot(report()).startswith(b"\x89PNG")


def test_the_exact_search_computes_with_one_thread_of_blas(
    module_database: Database,
    built: Generation,
    queries: list[Query],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    def read(*arguments: Any) -> Iterator[Any]:
        seen.append(threads())
        yield from read_vectors(*arguments)

    seen: list[set[int]] = []
    monkeypatch.setattr(truth, "read_vectors", read)
    with threadpool_limits(2, "blas"), module_database.connection() as connection:
        find_truth(connection, built, queries[:5], [Scope()], 5)
        assert threads() == {2}, "what others compute keeps its threads"
    assert seen == [{1}]


def test_threads_that_add_blocks_find_what_one_sort_finds() -> None:
    rng = np.random.default_rng(8)
    all_QN = rng.integers(-60, 0, (7, 3000)).astype(np.float32)  # many ties
    video_id_N = rng.permutation(3000)
    known = Nearest(np.full((7, 20), np.inf, np.float32), np.zeros((7, 20), np.int32))
    starts = iter(range(0, 3000, 50))
    use_in_threads(starts, lambda i: known.add(all_QN[:, i : i + 50], video_id_N[i : i + 50]))
    distances_QK, videos_QK = known.ascending()
    np.testing.assert_array_equal(distances_QK, np.sort(all_QN, axis=1)[:, :20])
    place_N = np.argsort(video_id_N)
    own_QK = np.take_along_axis(all_QN, place_N[videos_QK], axis=1)
    np.testing.assert_array_equal(own_QK, distances_QK)
    assert all(len(set(videos_K)) == 20 for videos_K in videos_QK.tolist())


def test_two_threads_use_items_at_the_same_time_and_each_item_once() -> None:
    both = threading.Barrier(2, timeout=20)
    used: list[int] = []

    def use(item: int) -> None:
        both.wait()  # breaks unless another thread comes
        used.append(item)

    use_in_threads(iter(range(6)), use)
    assert sorted(used) == [*range(6)]


@pytest.mark.parametrize("broken", ["making", "using"])
def test_an_error_of_one_thread_ends_all(broken: str) -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        if broken == "making":
            raise ConnectionError
        yield from itertools.count(10)

    def use(item: int) -> None:
        if broken == "using" and item == 10:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        use_in_threads(items(), use)
