"""Standing queries over made vectors: what is matched, and that each moment is recorded once."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from siglip_pipeline.errors import QueryError, WatchError, WatchNotFoundError
from siglip_pipeline.hits import MAX_K, SearchRequest
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search import SearchFilter, SearchOptions, SearchService
from siglip_pipeline.search.watching import WatchMatcher, check_watch, covers
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.search.moment_search import MomentSearch
from siglip_pipeline.store.search.video_hits import embedded_video, hits_in_video
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.store.watches import WatchHit, WatchStore
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
    return WatchMatcher(database, model_id, embed_texts=tower).match(video)


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


def test_watches_are_read_and_embedded_once_per_run(
    database: Database, store: WatchStore, tower: Tower
) -> None:
    store.add("gate", QUERY, min_probability=LEAST)
    matcher = WatchMatcher(database, 1, embed_texts=tower)
    store.add("later", QUERY, min_probability=LEAST)
    assert [matcher.match(VIDEO) for _ in range(2)] == [1, 0]
    assert tower.embedded == [QUERY]
    assert [h.watch for h in store.hits()] == ["gate"]
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


def test_all_moments_count_however_many(
    database: Database, store: WatchStore, tower: Tower
) -> None:
    """More than a search returns: no frame is like the one beside it."""
    frames = MAX_K + 200
    [one_D] = made.footage(7, frames=1)
    made.load(database, 1, "long.mp4", np.stack([one_D, -one_D] * (frames // 2)))
    store.add("all", QUERY, min_probability=0.0)
    assert match(database, tower, video="long.mp4") == frames
    assert {h.hit.start_seconds for h in store.hits("all", limit=frames)} == {*range(frames)}


@pytest.mark.parametrize("within", [0.0, 0.05, 0.3, 3.0])
def test_moments_are_joined_as_a_search_joins_them(database: Database, within: float) -> None:
    """Frames that drift: neighbours score alike, and rise and fall."""
    rng = np.random.default_rng(5)
    drift_ND = np.cumsum(rng.standard_normal((400, made.DIM)), axis=0)
    drift_ND /= np.linalg.norm(drift_ND, axis=1, keepdims=True)
    model_id = made.collection(database, videos=1)
    made.load(database, model_id, "drift.mp4", drift_ND.astype(np.float32))
    build_index(database, model_id, options=made.index_options(index_min_recall=0.0))
    model = ModelStore(database).get(model_id)
    video = embedded_video(database, model_id, "drift.mp4")
    assert video is not None
    only = SearchFilter(videos=("drift.mp4",))
    for query_D, least in itertools.product(drift_ND[::80].astype(np.float32), (-2.0, 0.2)):
        request = SearchRequest(
            query_QD=query_D[None], k=MAX_K, filter=only, within=within, min_score=least, exact=True
        )
        searched = MomentSearch(database).search(model, request)
        found = hits_in_video(database, model, video, query_D, within=within, min_score=least)
        assert found == list(searched)


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
        ({"name": ".."}, "of which the first is not - or ."),
        ({"name": "-a"}, "of which the first is not - or ."),
        ({"query": " "}, "empty"),
        ({"min_probability": 1.5}, r"min_probability=1\.5 is not between 0 and 1"),
        ({"videos": ["*" * 41]}, "41 of the wildcards"),
    ],
)
def test_what_cannot_be_watched_is_refused(values: dict[str, object], said: str) -> None:
    usual: dict[str, object] = {"name": "a", "query": "x", "min_probability": 0.5, "videos": None}
    with pytest.raises((WatchError, QueryError), match=said):
        check_watch(**{**usual, **values})  # type: ignore[arg-type]
