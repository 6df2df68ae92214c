"""Uploads of every common kind play in Chromium: the picture of the found moment, and its sound."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.video import ffmpeg_reference  # noqa: F401  skips without ffmpeg
from siglip_pipeline_tests.video.rendering import BITS, BLOCK, read_number, render
from siglip_pipeline_tests.web.browser import IN_A_BROWSER, Page
from siglip_pipeline_tests.web.conftest import (
    Collection,
    Served,
    index_uploads,
    serving,
    wait_until,
)

pytestmark = IN_A_BROWSER

SECONDS, RATE = 12, 25
FOUND = 7.0
FILES = {
    "hevc.mp4": ("libx265", "aac"),
    "hevc.mkv": ("libx265", "ac3"),
    "h264.mkv": ("libx264", "aac"),
    "mpeg2.mpg": ("mpeg2video", "mp2"),
    "mpeg2.ts": ("mpeg2video", "mp2"),
    "mpeg4.avi": ("mpeg4", "libmp3lame"),
    "h264.avi": ("libx264", "libmp3lame"),
}
DEAF = "deaf.mkv"
"""Its sound has a codec that nobody knows."""

LOOK = f"""
const video = document.getElementById('video'), canvas = document.createElement('canvas');
[canvas.width, canvas.height] = [{BITS * BLOCK}, {BLOCK}];
const drawing = canvas.getContext('2d');
drawing.drawImage(video, 0, 0);
const pixels = drawing.getImageData(0, 0, canvas.width, canvas.height).data;
return [video.currentTime, [...pixels]]
"""
SOUND_BYTES = "return document.getElementById('video').webkitAudioDecodedByteCount"
SOURCE = "return document.getElementById('video').currentSrc"
CURRENT = """
const v = document.getElementById('video');
return v.seeking || v.readyState < 2 || !v.videoWidth ? 0 : v.currentTime
"""


@pytest.fixture(scope="module")
def watched(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Collection]]:
    home = tmp_path_factory.mktemp("formats")
    numbered = render(home / "numbered.mp4", frames=SECONDS * RATE, rate=RATE)
    uploads = home / "uploads"
    uploads.mkdir()
    for name, (picture, sound) in FILES.items():
        if name == "hevc.mkv":  # encoding takes the longest
            _converted(uploads / "hevc.mp4", uploads / name, "copy", sound)
        else:
            _converted(numbered, uploads / name, picture, sound)
    _converted(numbered, uploads / DEAF, "mpeg4", "libopus")
    (uploads / DEAF).write_bytes((uploads / DEAF).read_bytes().replace(b"A_OPUS", b"A_ZZZZ"))
    with fresh_database(postgres) as url:
        settings = collection_settings(home, url)
        index_uploads(settings)
        with serving(settings) as running:
            yield running, Collection(settings, {})


def _converted(source: Path, target: Path, picture: str, sound: str) -> None:
    tone = ("-f", "lavfi", "-i", f"sine=d={SECONDS}")
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(source), *tone]
    command += ["-map", "0:v", "-map", "1:a"]
    quickly = ("-preset", "superfast") if picture.startswith("libx26") else ()
    command += ["-c:v", picture, *quickly, "-pix_fmt", "yuv420p", "-b:v", "2M", "-c:a", sound]
    subprocess.run([*command, str(target)], check=True, timeout=120, stderr=subprocess.DEVNULL)


def _shown(page: Page) -> tuple[float, int]:
    """The player's time, and the number that is written in the picture on screen."""
    found = page.run(LOOK)
    assert isinstance(found, list)
    seconds, pixels = found
    pixels_HWC = np.array(pixels, np.uint8).reshape(BLOCK, BITS * BLOCK, 4)[:, :, :3]
    return float(seconds), read_number(pixels_HWC)


@pytest.mark.parametrize("name", FILES)
def test_it_plays_from_the_found_moment_on(
    browser: webdriver.Chrome, watched: tuple[Served, Collection], name: str
) -> None:
    served, collection = watched
    page = Page(browser, served.url)
    page.go(f"/videos/{collection.ids()[name]}?t={FOUND:g}&from={FOUND:g}&to={FOUND + 2:g}")
    wait_until(lambda: page.run(CURRENT))
    source = str(page.run(SOURCE))
    # A clip begins some seconds before the moment.
    begin = float(source.partition("from=")[2].partition("&")[0]) if "clip.mp4" in source else 0.0
    wait_until(lambda: begin + float(str(page.run(CURRENT))) > FOUND + 0.5)
    assert not page.run("return document.getElementById('video').paused")
    page.run("document.getElementById('video').pause()")
    seconds, number = _shown(page)
    assert FOUND + 0.5 < begin + seconds < FOUND + 5
    assert number / RATE == pytest.approx(begin + seconds, abs=0.1)
    if "clip.mp4" in source:
        assert int(str(page.run(SOUND_BYTES))) > 1000
        assert "without sound" not in page.find("#notice-text").text


def test_sound_that_is_lost_is_said(
    browser: webdriver.Chrome, watched: tuple[Served, Collection]
) -> None:
    served, collection = watched
    page = Page(browser, served.url)
    page.go(f"/videos/{collection.ids()[DEAF]}?t={FOUND:g}")
    wait_until(lambda: page.run(CURRENT))
    assert "without sound" in page.find("#notice-text").text
    address = f"/api/videos/{collection.ids()[DEAF]}"
    clip = served.client.get(f"{address}/clip.mp4?from=1&to=2")
    assert clip.headers["x-sound"] == "lost"
    served.client.post(f"{address}/playable")
    wait_until(lambda: served.client.get(f"{address}/playable").json()["state"] == "ready")
    assert "sound" in served.client.get(f"{address}/playable").json()["reason"]
