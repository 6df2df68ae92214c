"""The second that a player shows, where a file begins with sound before its first picture."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.search import SearchOptions, SearchService
from siglip_pipeline.search.export import export_hits
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.web.conftest import index_uploads, serving

SAMPLE = Path(__file__).parent.parent / "data" / "reports" / "mp4-video-begins-2s-after-sound.mp4"


@pytest.fixture(scope="module")
def settings(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    home = tmp_path_factory.mktemp("late")
    (home / "uploads").mkdir()
    shutil.copyfile(SAMPLE, home / "uploads" / "late.mp4")
    with fresh_database(postgres) as url:
        settings = collection_settings(home, url)
        index_uploads(settings)
        yield settings


def test_hits_thumbnails_labels_and_the_player_agree_with_the_file(settings: Settings) -> None:
    with serving(settings) as served:
        [video] = served.client.get("/api/videos").json()["videos"]
        assert video["media_offset_seconds"] == pytest.approx(2, abs=0.01)
        answer = served.client.get("/api/similar", params={"like": "late.mp4@1"}).json()
        assert "hits" in answer, answer
        for hit in answer["hits"]:
            assert hit["media_time_seconds"] == pytest.approx(hit["time_seconds"] + 2, abs=0.01)
        detail = served.client.get(f"/api/videos/{video['video_id']}").json()
        frame = next(f for f in detail["timeline"] if f["time_seconds"] == 1)
        assert frame["media_time_seconds"] == pytest.approx(3, abs=0.01)
        labels = served.client.get("/api/labels", params={"label": "a red car"}).json()
        [label] = labels["videos"][0]["labels"]
        assert label["media_time_seconds"] == pytest.approx(label["time_seconds"] + 2, abs=0.01)
        page = served.client.get(f"/videos/{video['video_id']}?t=1").text
        assert f'{video["video_id"]}/stream#t=3"' in page
        assert 'data-offset="2"' in page


def test_exported_files_are_named_by_the_second_that_a_player_shows(
    settings: Settings, tmp_path: Path
) -> None:
    with Database(settings.database_url or "") as database:
        service = SearchService(database, SearchOptions.from_settings(settings))
        hits = service.by_moment("late.mp4", 1.0, k=1).hits
        for clips in (False, True):
            [exported] = export_hits(
                hits,
                tmp_path,
                frames=FrameStore(settings.frame_store_url),
                uploads=UploadStore(settings.uploads, settle_seconds=0),
                clips=clips,
            )
            assert exported.path is not None, exported.reason
            second = exported.media_time_seconds
            assert second == pytest.approx(exported.time_seconds + 2, abs=0.01)
            assert f"-{second:.1f}s." in exported.path.name
