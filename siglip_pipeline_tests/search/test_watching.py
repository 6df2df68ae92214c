"""Standing queries over made vectors: what is matched, once, and how a threshold is chosen."""

from collections.abc import Sequence

import numpy as np
import pytest

from siglip_pipeline.errors import QueryError, WatchError, WatchNotFoundError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search import Hit, SearchFilter, SearchOptions, SearchService
from siglip_pipeline.search.watching import (
    JudgedMoment,
    calibrate,
    check_watch,
    covers,
    match_video,
    moments_around,
    read_answers,
    wilson,
)
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.store.watches import Watch, WatchHit, WatchStore
from siglip_pipeline.text.secret import Secret
from siglip_pipeline_tests.search.test_service import MadeTexts
from siglip_pipeline_tests.store import made

VIDEO = "v02.mp4"
QUERY = "v02 3 0.5"
LEAST = 0.1
"""Below the probability of the moment that the query is made from, above that of all others."""


class Tower:
    """A text tower that counts."""

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        self.embedded += texts
        return np.stack([MadeTexts()._vector(text) for text in texts])


@pytest.fixture
def tower() -> Tower:
    return Tower()


@pytest.fixture
def store(database: Database) -> WatchStore:
    made.collection(database, videos=4)
    return WatchStore(database)


def match(database: Database, tower: Tower, model_id: int = 1, video: str = VIDEO) -> int:
    watches = WatchStore(database).all()
    return match_video(database, model_id, video, watches, embed_texts=tower)


def spans(hits: Sequence[WatchHit]) -> list[tuple[str, float, float]]:
    return [(h.hit.video, h.hit.start_seconds, h.hit.end_seconds) for h in hits]


def test_a_video_is_matched_without_an_index_as_a_search_would(
    database: Database, store: WatchStore, tower: Tower
) -> None:
    watch = store.add("all", QUERY, min_probability=0.0)
    store.add("gate", QUERY, min_probability=LEAST)
    assert match(database, tower) > 1
    [best] = store.hits("gate")
    assert spans([best]) == [(VIDEO, 0, 8)]
    assert best.delivery == "none"
    assert best.model_key == "tiny"
    assert best.hit.probability >= LEAST
    build_index(database, 1, options=made.index_options(index_min_recall=0.0))
    service = SearchService(
        database, SearchOptions.from_settings(made.settings()), embedder=MadeTexts()
    )
    for name, least in (("all", 0.0), ("gate", LEAST)):
        only = SearchFilter(videos=(VIDEO,), min_probability=least)
        searched = service.by_text(QUERY, k=100, filter=only).hits
        found = sorted((h.hit for h in store.hits(name)), key=lambda hit: -hit.score)
        assert found == list(searched)
    assert [h.hit_id for h in store.hits()] == sorted(
        (h.hit_id for h in store.hits()), reverse=True
    ), "newest first"
    assert [*store.hits("all", limit=1, offset=1)] == store.hits("all")[1:2]
    assert store.get("all").hits == len(store.hits("all"))
    assert watch.hits == 0


def test_the_text_is_embedded_once_per_model(
    database: Database, store: WatchStore, tower: Tower
) -> None:
    store.add("gate", QUERY, min_probability=LEAST)
    for video in ("v01.mp4", VIDEO, "v03.mp4"):
        match(database, tower, video=video)
    assert tower.embedded == [QUERY]
    assert store.get("gate").model_key == "tiny"


def test_totals_are_counted_without_the_types_of_vectors(
    database: Database, store: WatchStore, tower: Tower
) -> None:
    """`status` opens the database so."""
    assert store.totals() == (0, 0, 0, 0)
    store.add("gate", QUERY, min_probability=LEAST)
    assert match(database, tower) == 1
    with Database(database.url, vectors=False) as plain:
        assert WatchStore(plain).totals() == (1, 1, 0, 0)


def test_a_moment_is_recorded_once_whichever_model_finds_it(
    database: Database, store: WatchStore, tower: Tower
) -> None:
    store.add("gate", QUERY, min_probability=LEAST)
    assert match(database, tower) == 1
    assert match(database, tower) == 0, "matched again"
    other = ModelStore(database).register(made.spec("other"))
    moved = np.roll(made.footage(2), 2, axis=0)  # its scene ends two seconds later
    made.load(database, other, VIDEO, moved)
    assert match(database, tower, other) == 0
    assert tower.embedded == [QUERY, QUERY]
    assert store.get("gate").model_key == "other"
    [kept] = store.hits("gate")
    assert kept.model_key == "tiny"
    elsewhere = np.roll(made.footage(2), made.SCENE, axis=0)
    made.load(database, other, VIDEO, elsewhere)
    assert match(database, tower, other) == 1, "another moment of the same video"
    assert spans(store.hits("gate")) == [(VIDEO, 8, 16), (VIDEO, 0, 8)]


def test_other_content_and_deletion_remove_the_hits(
    database: Database, store: WatchStore, tower: Tower
) -> None:
    store.add("gate", QUERY, min_probability=LEAST)
    match(database, tower)
    [old] = store.hits()
    with database.connection() as connection:
        connection.execute("UPDATE ingests SET source_sha256 = 'other'")
    assert match(database, tower) == 1
    [new] = store.hits()
    assert new.hit_id > old.hit_id
    VideoStore(database).delete(VIDEO)
    assert store.hits() == []
    assert match(database, tower) == 0
    assert store.get("gate").hits == 0


def test_vectors_that_are_to_be_made_anew_are_not_matched(
    database: Database, store: WatchStore, tower: Tower
) -> None:
    store.add("gate", QUERY, min_probability=LEAST)
    match(database, tower)
    [old] = store.hits()
    VectorStore(database).mark_outdated(1, [VIDEO])
    assert match(database, tower) == 0
    made.load(database, 1, VIDEO, made.footage(2))
    assert match(database, tower) == 0
    assert store.hits() == [old]


def test_globs_choose_the_videos(database: Database, store: WatchStore, tower: Tower) -> None:
    store.add("elsewhere", QUERY, min_probability=LEAST, videos=["gate/**", "v03.mp4"])
    assert match(database, tower) == 0
    assert tower.embedded == []
    for video, given, covered in (
        ("gate/1.mp4", ["gate/**"], True),
        ("gate/a/1.mp4", ["gate/*"], False),
        ("gate/a/1.mp4", ["1.*"], True),
        ("cafe\u0301.mp4", ["caf\u00e9.mp4"], True),
        ("a[1].mp4", ["a[1].mp4"], True),
        ("x.mp4", None, True),
        ("x.mp4", ["y.mp4"], False),
        ("other/intro.mp4", ["intro.mp4"], False),  # without a wildcard it is a path
        ("other/intro.mp4", ["intro.*"], True),
        ("a/b\nc/1.mp4", ["a/**"], True),
    ):
        assert covers(given, video) is covered, (video, given)


def test_hits_beyond_the_most_are_named(
    database: Database,
    store: WatchStore,
    tower: Tower,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.add("all", QUERY, min_probability=0.0)
    monkeypatch.setattr("siglip_pipeline.search.watching.MAX_K", 2)
    assert match(database, tower) == 2
    assert f"{VIDEO}: only the best 2 moments for the watch 'all' count" in caplog.text


def test_names_are_unique_and_unknown_ones_named(store: WatchStore) -> None:
    store.add("gate", "x", min_probability=0.5, webhook=Secret("https://hooks.example/secret"))
    with pytest.raises(WatchError, match="there is a watch 'gate'; take another name"):
        store.add("gate", "y", min_probability=0.5)
    with pytest.raises(WatchNotFoundError, match="no watch 'gat'; there are: gate"):
        store.remove("gat")
    assert "secret" not in repr(store.all())
    store.remove("gate")
    assert store.all() == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": " "}, "is no name for a watch"),
        ({"name": "a/b"}, "is no name for a watch"),
        ({"name": "a\nb"}, "is no name for a watch"),
        ({"query": " "}, "empty"),
        ({"min_probability": 1.5}, r"min_probability=1\.5 is not between 0 and 1"),
        ({"videos": ["*" * 41]}, "asterisks"),
    ],
)
def test_what_cannot_be_watched_is_refused(values: dict[str, object], said: str) -> None:
    usual: dict[str, object] = {"name": "a", "query": "x", "min_probability": 0.5, "videos": None}
    with pytest.raises((WatchError, QueryError), match=said):
        check_watch(**{**usual, **values})  # type: ignore[arg-type]


def judged(text: str) -> list[JudgedMoment]:
    """Judged moments: ``0.9+`` fits, ``0.8-`` does not."""
    return [
        JudgedMoment(probability=float(word[:-1]), fits=word.endswith("+")) for word in text.split()
    ]


@pytest.mark.parametrize(
    ("answers", "threshold", "above", "right"),
    [
        ("0.9+ 0.8+ 0.4- 0.2-", 0.6, 2, 2),
        ("0.4- 0.9+ 0.2- 0.8+", 0.6, 2, 2),  # in any order
        ("0.9+ 0.8- 0.6+ 0.4+ 0.2-", 0.3, 4, 3),
        ("0.9+ 0.8- 0.6+", 0.85, 1, 1),  # one mistake either way: the stricter one
        ("0.9+ 0.7+", 0.7, 2, 2),
        ("0.9- 0.7-", 0.95, 0, 0),
        ("0.5+ 0.5- 0.5- 0.5-", 0.75, 0, 0),  # equal ones are on one side
        ("0.9+ 0.5- 0.5+ 0.5+ 0.2-", 0.35, 4, 3),
        ("1.0+ 1.0-", 1.0, 2, 1),
    ],
)
def test_the_threshold_makes_the_fewest_mistakes(
    answers: str, threshold: float, above: int, right: int
) -> None:
    found = calibrate(judged(answers), model_key="m")
    assert found.min_probability == pytest.approx(threshold)
    assert (found.above, found.right) == (above, right)
    assert found.precision == (None if above == 0 else right / above)
    assert (found.low, found.high) == wilson(right, above)


def test_the_interval_is_wilsons() -> None:
    # Newcombe 1998, table I.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(QueryError, match="no moment was judged"):
        calibrate([], model_key="m")


def test_the_moments_around_the_threshold_are_shown(database: Database) -> None:
    made.collection(database, videos=20)
    build_index(database, 1, options=made.index_options(index_min_recall=0.0))
    service = SearchService(
        database, SearchOptions.from_settings(made.settings()), embedder=MadeTexts()
    )
    store = WatchStore(database)
    every = service.by_text(QUERY, k=1000, filter=SearchFilter(min_probability=0.0)).hits
    assert len(every) > 40
    for above in (0, 3, 20, len(every)):
        least = 1.0 if above == 0 else every[above - 1].probability
        watch: Watch = store.add(f"{above}", QUERY, min_probability=least)
        shown = moments_around(service, watch)
        first = max(0, min(above - 10, len(every) - 20))
        assert [h.score for h in shown] == [h.score for h in every[first : first + 20]]


def test_answers_are_read_and_what_is_none_is_named() -> None:
    [hit] = [
        Hit(
            video="a.mp4",
            video_id=1,
            time_seconds=1,
            frame_index=25,
            score=0.1,
            probability=0.4,
            start_seconds=0,
            end_seconds=2,
            media_time_seconds=1,
        )
    ]
    line = '{"video": "a.mp4", "frame_index": 25, "fits": true}'
    assert read_answers([line, "\n"], [hit]) == [JudgedMoment(probability=0.4, fits=True)]
    for wrong, said in (
        ("{", "line 2: give a JSON object"),
        ("[]", "line 2: give a JSON object"),
        (line.replace("true", '"yes"'), "line 2: fits='yes' is neither true nor false"),
        (line, "line 2: frame 25 of 'a.mp4' was answered before; give one line"),
        (line.replace("25", "26"), "line 2: frame 26 of 'a.mp4' is none of the 1 moments"),
    ):
        with pytest.raises(QueryError, match=said):
            read_answers([line, wrong], [hit])
