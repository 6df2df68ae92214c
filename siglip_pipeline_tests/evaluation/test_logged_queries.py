"""Recall on what people ask: what is logged, for how long, and what the nightly check proves."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import httpx
import pytest

from siglip_pipeline.defs.quality_check import check_logged_queries
from siglip_pipeline.evaluation.logged_queries import prove_logged_queries
from siglip_pipeline.search import SearchOptions, SearchService
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.query_log import QueryLog
from siglip_pipeline_tests.evaluation.conftest import Reels
from siglip_pipeline_tests.evaluation.test_evaluating import run_cli
from siglip_pipeline_tests.search.test_service import VIDEOS, MadeTexts
from siglip_pipeline_tests.store import made
from siglip_pipeline_tests.web.conftest import serving


@pytest.fixture
def service(database: Database) -> SearchService:
    model_id = made.collection(database, videos=VIDEOS)
    build_index(database, model_id, options=made.index_options(index_min_recall=0.0))
    options = SearchOptions.from_settings(made.settings())
    return SearchService(database, options, embedder=MadeTexts())


def asked(database: Database) -> list[str]:
    return sorted(QueryLog(database).sample(since=datetime.fromtimestamp(0, UTC), count=100))


def test_yesterdays_queries_are_proved_and_old_ones_deleted(
    database: Database, service: SearchService
) -> None:
    log = QueryLog(database)
    for text in ("v01 3 0.5", "v01 3 0.5", "v02 3 0.5", '+"broken', "v03 3 0.5"):
        log.record(text)
    with database.connection() as connection:
        connection.execute(
            "UPDATE query_log SET asked_at = now() - interval '3 days' WHERE text = 'v03 3 0.5'"
        )
        [(generation,)] = connection.execute(
            "SELECT generation FROM generations WHERE state = 'live'"
        ).fetchall()
        connection.execute(
            f"DELETE FROM index_1_g{generation} WHERE video_id = (SELECT video_id FROM videos"
            " WHERE path = 'v02.mp4')"
        )
    found = prove_logged_queries(log, service, keep_days=30)
    assert [query.text for query in found.queries] == ["v02 3 0.5", "v01 3 0.5"], "worst first"
    worst = found.queries[0]
    assert worst.missed > 0
    assert worst.recall < 1
    assert found.recall == pytest.approx(sum(q.recall for q in found.queries) / 2)
    assert len(asked(database)) == 4, "kept for 30 days"
    prove_logged_queries(log, service, keep_days=2)
    assert "v03 3 0.5" not in asked(database)
    late = datetime.now(UTC) + timedelta(days=1, hours=1)
    assert prove_logged_queries(log, service, keep_days=30, now=late).queries == ()


def test_texts_are_logged_where_that_is_on(reels: Reels, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(on: bool) -> None:
        settings = reels.settings.model_copy(update={"query_log": on})
        with serving(settings) as served:
            client: httpx.Client = served.client
            assert client.get("/api/search", params={"q": "a red circle"}).status_code == 200
            assert client.get("/", params={"q": "a blue star"}).status_code == 200
            client.get("/api/search", params={"q": "a red circle", "offset": "3"})
            client.get("/api/similar", params={"like": "reel-1.mp4@1"})
            client.get("/api/search", params={"q": "x" * 600})

    search(on=False)
    assert asked(reels.database) == []
    search(on=True)
    assert asked(reels.database) == ["a blue star", "a red circle"]
    with reels.database.connection() as connection:
        columns = connection.execute(
            "SELECT array_agg(column_name::text ORDER BY column_name)"
            " FROM information_schema.columns WHERE table_name = 'query_log'"
        ).fetchone()
    assert columns == (["asked_at", "query_id", "text"],), "nothing of who asked"

    for command in (("search", "a green square"), ("search", "--like", "reel-1.mp4@1")):
        assert not run_cli(monkeypatch, reels, *command, SIGLIP_QUERY_LOG="on")
    assert not run_cli(monkeypatch, reels, "search", "a grey square", SIGLIP_QUERY_LOG="off")
    assert asked(reels.database) == ["a blue star", "a green square", "a red circle"]

    result = check_logged_queries(reels.database, reels.settings)
    assert result.passed
    recall = result.metadata["recall_at_10"]
    assert isinstance(recall, dg.FloatMetadataValue)
    assert recall.value == 1.0
