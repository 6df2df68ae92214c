"""Why a search does not show a moment: each cause, over made vectors."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from siglip_pipeline.records import Stage
from siglip_pipeline.search import Explanation, SearchFilter, SearchOptions, SearchService, TextTerm
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.search.frame_rank import rank_frame
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.search.test_service import VIDEOS, MadeTexts
from siglip_pipeline_tests.store import made


@pytest.fixture(scope="module")
def made_database(module_database: Database) -> Database:
    model_id = made.collection(module_database, videos=VIDEOS)
    build_index(module_database, model_id, options=made.index_options(index_min_recall=0.0))
    VideoStore(module_database).record_failure(
        video="bad.mp4", stage=Stage.FRAMES, reason="no packets"
    )
    made.record(module_database, "late.mp4")
    return module_database


@pytest.fixture
def service(made_database: Database) -> SearchService:
    options = SearchOptions.from_settings(made.settings())
    return SearchService(made_database, options, embedder=MadeTexts())


def explain(
    service: SearchService, query: str, moment: str, k: int = 10, **filters: Any
) -> Explanation:
    video, _, seconds = moment.partition("@")
    return service.explain(
        [TextTerm(query)], video, float(seconds), k=k, filter=SearchFilter(**filters)
    )


def causes(explanation: Explanation) -> list[str]:
    return [cause.cause for cause in explanation.causes]


def test_a_moment_that_is_shown_needs_no_cause(service: SearchService) -> None:
    found = explain(service, "v03 3 0.99", "v03.mp4@3.2")
    assert (found.place, found.exact_place, causes(found)) == (1, 1, [])
    assert found.frame is not None
    assert (found.frame.time_seconds, found.frame.rank) == (3.0, 1)
    assert found.frame.frames == VIDEOS * 24
    assert found.frame.distance_seconds == pytest.approx(0.2)
    assert found.frame.score == pytest.approx(0.99, abs=0.01)
    assert found.hit is not None
    assert found.hit.start_seconds == 0


def test_the_score_of_the_frame_is_that_of_its_hit(service: SearchService) -> None:
    """In half precision a vector's product with itself may exceed 1: that of the hit was cut, this
    was not.
    """
    [found] = service.by_moment("v03.mp4", 3, k=1, videos=["v03.mp4"]).hits
    place = (found.video_id, found.frame_index)
    with service._database.connection() as connection:
        (stored,) = connection.execute(
            "SELECT embedding FROM frames_1 WHERE video_id = %s AND frame_index = %s", place
        ).fetchone() or (None,)
    longer_1D = np.float32(1.001) * stored.to_numpy()[None].astype(np.float32)
    ranked = rank_frame(service._database, 1, place, longer_1D)
    assert ranked is not None
    assert (ranked.score, ranked.rank) == (1.0, 1)


def test_an_unknown_a_failed_and_a_waiting_video(service: SearchService) -> None:
    for moment, cause, said in (
        ("absent.mp4@1", "no_video", "No upload is called 'absent.mp4'"),
        ("bad.mp4@1", "failed", "video_frames failed for this video: no packets"),
        ("late.mp4@1", "not_indexed", "has no vectors"),
    ):
        found = explain(service, "v03 3 0.5", moment)
        assert causes(found) == [cause]
        assert said in found.causes[0].text
        assert (found.place, found.frame) == (None, None)
    assert "materialize --failed" in explain(service, "v03 3 0.5", "bad.mp4@1").causes[0].remedy


def test_a_moment_between_frames_or_after_the_end(service: SearchService) -> None:
    with service._database.connection() as connection:
        connection.execute(
            "DELETE FROM frames_1 WHERE video_id = (SELECT video_id FROM videos"
            " WHERE path = 'v07.mp4') AND frame_index BETWEEN 251 AND 349"
        )
    found = explain(service, "v07 3 0.5", "v07.mp4@12")
    assert "not_sampled" in causes(found)
    assert "0:10" in found.causes[0].text
    assert "SIGLIP_SAMPLING=fps:2" in found.causes[0].remedy
    late = explain(service, "v07 3 0.5", "v07.mp4@60")
    assert "after_the_end" in causes(late)
    assert "0:24" in late.causes[0].text


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"videos": ("v04.mp4",)}, "The filter videos=v04.mp4 excludes it."),
        ({"from_seconds": 8.0}, "The filter from_seconds=8.0 excludes it."),
        ({"to_seconds": 0.5}, "The filter to_seconds=0.5 excludes it."),
        ({"uploaded_since": datetime.fromtimestamp(1e9 + 4, UTC)}, "The filter uploaded_since="),
        ({"uploaded_until": datetime.fromtimestamp(1e9 + 3, UTC)}, "The filter uploaded_until="),
    ],
)
def test_a_filter_that_hides_it(service: SearchService, filters: dict[str, Any], said: str) -> None:
    seconds = 12 if "to_seconds" in filters else 3
    found = explain(service, f"v03 {seconds} 0.99", f"v03.mp4@{seconds}", **filters)
    assert causes(found) == ["filtered"]
    assert found.causes[0].text.startswith(said)
    assert found.exact_place == 1, "without the filter it is the best"


def test_a_probability_that_is_too_small(service: SearchService) -> None:
    found = explain(service, "v03 3 0.16", "v03.mp4@3", min_probability=1.0)
    assert causes(found) == ["improbable"]
    assert found.hit is not None
    assert f"Its probability is {found.hit.probability:.1%}" in found.causes[0].text
    least = float(found.causes[0].remedy.partition("min_probability=")[2].partition(" ")[0])
    assert explain(service, "v03 3 0.16", "v03.mp4@3", min_probability=least).place


def test_others_of_the_same_video_take_its_place(service: SearchService) -> None:
    found = explain(service, "v03 3 0.5", "v03.mp4@20", k=50, max_per_video=1)
    assert "per_video" in causes(found)
    remedy = next(c.remedy for c in found.causes if c.cause == "per_video")
    most = int(remedy.rpartition("=")[2].rstrip("."))
    again = explain(service, "v03 3 0.5", "v03.mp4@20", k=50, max_per_video=most)
    assert again.place


def test_better_hits(service: SearchService) -> None:
    found = explain(service, "v03 3 0.5", "v05.mp4@3", k=1)
    assert causes(found) == ["outranked"]
    assert found.exact_place is not None
    assert found.exact_place > 1
    assert found.hit is not None
    assert found.last_score is not None
    assert found.gap == pytest.approx(found.last_score - found.hit.score)
    assert f"Ask for k={found.exact_place} hits" in found.causes[0].remedy
    assert explain(service, "v03 3 0.5", "v05.mp4@3", k=found.exact_place).place


def test_a_moment_within_another_hit(service: SearchService) -> None:
    found = explain(service, "v03 3 0.99", "v03.mp4@6")
    assert (found.place, causes(found)) == (1, ["grouped"])
    assert "best frame at 0:03" in found.causes[0].text


def test_what_a_higher_effort_finds(service: SearchService) -> None:
    """The moments of a video lie elsewhere in the index, beyond the effort that was chosen."""
    with service._database.connection() as connection:
        row = connection.execute(
            "UPDATE generations SET parameters = parameters - 'plane' || '{\"effort\": 4}'"
            " WHERE state = 'live' RETURNING generation"
        )
        [(generation,)] = row.fetchall()
        _turn_over(connection, generation, "v02.mp4")
    found = explain(service, "v02 3 0.5", "v02.mp4@3", k=2)
    with service._database.connection() as connection:
        _turn_over(connection, generation, "v02.mp4")
    assert causes(found) == ["missed_by_index"]
    assert (found.place, found.exact_place) == (None, 1)
    assert "An ef_search of 100 finds it." in found.causes[0].remedy


def _turn_over(connection: Connection, generation: int, video: str) -> None:
    connection.execute(
        f"UPDATE index_1_g{generation} SET embedding = embedding - embedding - embedding"
        " WHERE video_id = (SELECT video_id FROM videos WHERE path = %s)",
        [video],
    )


def test_what_the_index_missed(service: SearchService) -> None:
    """The index has lost the moments of a video: only an exact search finds them."""
    database = service._database
    with database.connection() as connection:
        row = connection.execute("SELECT generation FROM generations WHERE state = 'live'")
        [(generation,)] = row.fetchall()
        connection.execute(
            f"DELETE FROM index_1_g{generation} WHERE video_id = (SELECT video_id FROM videos"
            " WHERE path = 'v02.mp4')"
        )
    found = explain(service, "v02 3 0.5", "v02.mp4@3", k=5)
    assert causes(found) == ["missed_by_index"]
    assert (found.place, found.exact_place) == (None, 1)
    assert "A higher ef_search does not find it" in found.causes[0].remedy
