"""The second that a player shows, where a file begins with sound before its first picture."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.search import SearchOptions, SearchService
from siglip_pipeline.search.export import export_hits
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.video.ffmpeg_reference import ffmpeg
from siglip_pipeline_tests.video.probing import probe
from siglip_pipeline_tests.web.browser import CHROMIUM, DRIVER, Page, chromium
from siglip_pipeline_tests.web.conftest import index_uploads, serving, wait_until

# The brightness of a frame tells its time: 30 levels a second.
FILM = (
    *("-f", "lavfi", "-i", "color=black:s=160x120:r=10:d=6,geq=lum='16+T*30':cb=128:cr=128"),
    *("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "5"),
)
SOUND = ("-f", "lavfi", "-i", "sine=440:d=8")
MADE = {
    "late.mp4": ("-itsoffset", "2", "-i", "{film}", "-c", "copy"),
    "cut.mp4": ("-ss", "1.25", "-i", "{late}", "-c", "copy"),
    "late.mkv": ("-itsoffset", "2", "-i", "{film}", "-c", "copy"),
    "late.ts": ("-i", "{late}", "-c", "copy"),
    "plain.ts": ("-i", "{film}", "-c", "copy"),
}
"""How each file is made of the film."""

STANDS_STILL = """
const v = document.getElementById('video');
v.pause();
if (v.readyState < 2 || v.videoWidth == 0 || v.seeking || v.currentTime <= 1) return false;
if (v.dataset.still) return true;
v.dataset.still = 'yes';
v.currentTime = v.currentTime;
return false
"""
"""Script: whether the player stands, and shows what its clock says.

It seeks to where it was stopped: beside other work the clock of a player that plays is up to two
frames ahead of what it shows.
"""
PLAYED = """
const v = document.getElementById('video');
const c = document.createElement('canvas').getContext('2d');
c.drawImage(v, 0, 0);
return [v.currentTime, c.getImageData(80, 60, 1, 1).data[0]]
"""
"""Script: the player's clock, and the brightness of what it shows."""

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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files whose first frame is not at their zero."""
    folder = tmp_path_factory.mktemp("made")
    film, late = folder / "film.mp4", folder / "late-with-sound.mp4"
    ffmpeg(*FILM, film)
    ffmpeg(
        "-itsoffset", "2", "-i", film, *SOUND, "-map", "0:v", "-map", "1:a", "-c:v", "copy", late
    )
    for name, arguments in MADE.items():
        ffmpeg(*(part.format(film=film, late=late) for part in arguments), folder / name)
    return folder


@pytest.mark.parametrize("name", MADE)
def test_the_offset_is_what_ffprobe_says_of_the_first_frame(name: str, made: Path) -> None:
    entries = "format=start_time:stream=start_time:frame=pts_time"
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-read_intervals", "%+1"]
    told = json.loads(
        subprocess.run(
            [*command, "-show_frames", "-show_entries", entries, "-of", "json", made / name],
            check=True,
            capture_output=True,
        ).stdout
    )
    first = float(told["frames"][0]["pts_time"])
    zero = float(told["format"]["start_time"]) if name.endswith(".ts") else 0.0
    info = probe(made / name)
    assert info.media_time_seconds == pytest.approx(first - zero, abs=0.002)
    assert (info.media_time_seconds > 0.5) == (name != "plain.ts")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="chromium is not installed")
def test_the_player_shows_the_frame_of_the_chosen_second(
    made: Path, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    names = ["cut.mp4", "late.mkv", "late.mp4"]
    (tmp_path / "uploads").mkdir()
    for name in names:
        shutil.copyfile(made / name, tmp_path / "uploads" / name)
    with fresh_database(postgres) as url, chromium() as browser:
        settings = collection_settings(tmp_path, url)
        index_uploads(settings)
        with serving(settings) as served:
            page = Page(browser, served.url)
            videos = served.client.get("/api/videos").json()["videos"]
            assert [video["video"] for video in videos] == names
            for video in videos:
                page.go(f"/videos/{video['video_id']}?t=2")
                wait_until(lambda: page.run(STANDS_STILL))
                clock, brightness = cast(list[float], page.run(PLAYED))
                shown_seconds = brightness * 219 / 255 / 30
                offset = video["media_offset_seconds"]
                assert clock - offset == pytest.approx(shown_seconds, abs=0.15), video
                assert shown_seconds + 0.15 >= 2, video
