"""Receipts: what the index missed, and whether an answer is still the one that was pinned."""

from collections.abc import Iterator
from typing import Any

import pytest

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import Hit, Reproduction, SearchFilter, SearchResult
from siglip_pipeline.search import MomentTerm, Receipt, SearchOptions, SearchService, TextTerm
from siglip_pipeline.search.results import HitFinder
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline_tests.conftest import fresh_database
from siglip_pipeline_tests.search.test_service import VIDEOS, MadeTexts
from siglip_pipeline_tests.store import made

QUERY = [TextTerm("v02 3 0.5")]


@pytest.fixture
def collection(postgres: EmbeddedPostgres) -> Iterator[Database]:
    """A collection of the test's own, which it may change."""
    with fresh_database(postgres) as url, Database(url) as database:
        model_id = made.collection(database, videos=VIDEOS)
        build_index(database, model_id, options=made.index_options(index_min_recall=0.0))
        yield database


@pytest.fixture
def service(collection: Database) -> SearchService:
    options = SearchOptions.from_settings(made.settings())
    return SearchService(collection, options, embedder=MadeTexts())


def answer(service: SearchService, receipt: Receipt, k: int = 6) -> SearchResult:
    return service.with_receipt(QUERY, receipt, k=k)


def test_an_answer_without_a_receipt_is_the_usual_one(service: SearchService) -> None:
    assert answer(service, Receipt()) == service.by_mix(QUERY, k=6)


def test_a_complete_answer_is_proved(service: SearchService) -> None:
    result = answer(service, Receipt(prove=True))
    assert result.proof is not None
    assert (result.proof.complete, result.proof.recall, result.proof.missed) == (True, 1.0, ())
    assert result.proof.index_seconds > 0
    assert result.proof.exact_seconds > 0
    assert result.hits == service.by_mix(QUERY, k=6).hits


def test_a_proof_asks_the_index_once(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_of_searches: list[bool] = []
    find = HitFinder.find

    def counted(self: HitFinder, *query: Any, exact: bool = False) -> tuple[Hit, ...]:
        exact_of_searches.append(exact)
        return find(self, *query, exact=exact)

    whole = service.by_mix(QUERY, k=6).hits
    monkeypatch.setattr(HitFinder, "find", counted)
    page = service.with_receipt(QUERY, Receipt(prove=True), k=4, offset=2)
    assert exact_of_searches == [False, True]
    assert page.hits == whole[2:]


def test_a_moment_is_proved_in_either_form_of_its_name(
    service: SearchService, collection: Database
) -> None:
    with collection.connection() as connection:
        connection.execute("UPDATE videos SET path = 'caf\u00e9.mp4' WHERE path = 'v02.mp4'")
    term = MomentTerm("cafe\u0301.mp4", 3.0)
    result = service.with_receipt([term], Receipt(prove=True), k=3)
    assert result.proof is not None
    assert result.proof.complete
    assert result.hits == service.by_mix([term], k=3).hits


def test_what_the_index_missed_is_stated(service: SearchService, collection: Database) -> None:
    whole = service.by_mix(QUERY, k=6).hits
    with collection.connection() as connection:
        [(generation,)] = connection.execute(
            "SELECT generation FROM generations WHERE state = 'live'"
        ).fetchall()
        connection.execute(
            f"DELETE FROM index_1_g{generation} WHERE video_id = (SELECT video_id FROM videos"
            " WHERE path = 'v02.mp4')"
        )
    result = answer(service, Receipt(prove=True))
    lost = [hit for hit in whole if hit.video == "v02.mp4"]
    assert result.proof is not None
    assert result.proof.missed == tuple(lost)
    assert result.proof.recall == pytest.approx(1 - len(lost) / 6)
    assert not result.proof.complete
    assert {hit.video for hit in result.hits} & {"v02.mp4"} == set()
    limits = SearchFilter(videos=("v04.mp4",))
    elsewhere = service.with_receipt(QUERY, Receipt(prove=True), k=3, filter=limits)
    assert elsewhere.proof is not None
    assert elsewhere.proof.complete, "of everything in scope"


def test_a_pin_holds_until_something_changes(service: SearchService, collection: Database) -> None:
    pin = answer(service, Receipt(permalink=True)).pin
    assert pin is not None
    assert pin.startswith("tiny@1.")

    def reproduced(pin: str) -> Reproduction:
        result = answer(service, Receipt(pin=pin))
        assert result.hits
        assert result.reproduced is not None
        return result.reproduced

    assert reproduced(pin) == Reproduction(same=True)
    made.load(collection, 1, "v02.mp4", made.footage(77))
    assert reproduced(pin) == Reproduction(
        same=False, reason="videos were added, replaced or removed since"
    )
    second = answer(service, Receipt(permalink=True)).pin
    assert second is not None
    assert second != pin
    options = made.index_options(index_min_recall=0.0)
    build_index(collection, 1, options=options, force=True)
    assert reproduced(second).reason == "index generation 1 was replaced by 2"
    assert reproduced("gone@1.2.0").reason == "model gone was dropped"


def test_a_pinned_model_is_searched_after_another_was_promoted(
    service: SearchService, collection: Database
) -> None:
    before = answer(service, Receipt(permalink=True))
    assert before.pin is not None
    model_id = ModelStore(collection).register(made.spec("other"))
    for number in range(VIDEOS):
        made.load(collection, model_id, f"v{number:02d}.mp4", made.footage(number + 50))
    build_index(collection, model_id, options=made.index_options(index_min_recall=0.0))
    ModelStore(collection).promote("other")
    now = answer(service, Receipt())
    assert now.model == "made/other"
    assert now.hits != before.hits
    again = answer(service, Receipt(pin=before.pin, permalink=True))
    assert again.reproduced == Reproduction(same=True)
    assert (again.model, again.hits, again.pin) == ("made/tiny", before.hits, before.pin)


@pytest.mark.parametrize("pin", ["", "tiny", "tiny@1", "tiny@1.2", "tiny@x.1.0", "@1.2.3"])
def test_what_is_no_pin_is_refused(service: SearchService, pin: str) -> None:
    with pytest.raises(QueryError, match=r"is not MODEL_KEY@GENERATION\.LOADS\.REMOVED"):
        answer(service, Receipt(pin=pin))
