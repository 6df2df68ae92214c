"""Near-duplicates over HTTP and on the page: a film and a copy of a part of it."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import httpx
import pytest

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.similarity.compare import compare_videos
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.video.copies import Transform, transformed_copy
from siglip_pipeline_tests.web.conftest import index_uploads, serving

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def copies(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    home: Path = tmp_path_factory.mktemp("copies")
    uploads = home / "uploads"
    uploads.mkdir()
    scenes = demo_scenes()[:16]
    original = uploads / "a.mp4"
    for path, part in ((original, scenes[:8]), (uploads / "c.mp4", scenes[8:])):
        render_video(path, part, seconds_per_scene=3, fps=12, size=(160, 120))
    cut = Transform("cut", part=(0.25, 0.875), crf=26, speed=Fraction(1))
    transformed_copy(original, uploads / "b.mp4", cut)
    with fresh_database(postgres) as url:
        settings = collection_settings(home, url)
        index_uploads(settings)
        with Database(url) as database:
            active = ModelStore(database).active()
            assert active is not None
            compare_videos(database, active.model_id)
        with serving(settings) as running:
            yield running.client


def test_the_copy_is_named_with_its_place(copies: httpx.Client) -> None:
    answer = copies.get("/api/duplicates").json()
    segment = answer["segments"][0]
    assert {s[side] for s in answer["segments"] for side in ("video_a", "video_b")} == {
        "a.mp4",
        "b.mp4",
    }
    assert answer["next"] is None
    assert segment["duplicate"]
    assert segment["covered"] > 0.8
    # What is 6 s into the original begins the copy; which of them was known first is chance.
    original, copy = ("a", "b") if segment["video_a"] == "a.mp4" else ("b", "a")
    shift = segment[f"start_{original}_seconds"] - segment[f"start_{copy}_seconds"]
    assert shift == pytest.approx(6, abs=1.1)
    same = copies.get("/api/duplicates", params={"video_id": segment["video_b_id"]}).json()
    assert same["segments"] == answer["segments"]
    assert copies.get("/api/duplicates", params={"video_id": 99999}).status_code == 404


def test_the_page_shows_both_side_by_side(copies: httpx.Client) -> None:
    page = copies.get("/duplicates").text
    segment = copies.get("/api/duplicates").json()["segments"][0]
    for side in ("a", "b"):
        place = f"/videos/{segment[f'video_{side}_id']}?t={segment[f'start_{side}_seconds']:g}"
        assert place in page
    assert "c.mp4" not in page


def test_nothing_was_compared_yet(client: httpx.Client) -> None:
    assert client.get("/api/duplicates").json() == {"segments": [], "next": None}
    assert "video_similarity" in client.get("/duplicates").text
