"""The player in headless Chromium: long films, files that no browser plays, and lost uploads."""

from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from selenium import webdriver

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.web.browser import IN_A_BROWSER, Page
from siglip_pipeline_tests.web.conftest import (
    Collection,
    Served,
    index_uploads,
    serving,
    wait_until,
)

pytestmark = IN_A_BROWSER

SECONDS, RATE = 90, 10
SIZE = (160, 120)
PLAYS = "const v = document.getElementById('video'); return v.readyState >= 2 && v.videoWidth"
CURRENT = "return document.getElementById('video').currentTime"
NATURAL_WIDTH = "return document.querySelector(arguments[0]).naturalWidth"


@pytest.fixture(scope="module")
def films(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Collection]:
    """A film longer than the strip, as a browser plays it and as none does."""
    home = tmp_path_factory.mktemp("player")
    uploads = home / "uploads"
    uploads.mkdir()
    scenes = [scene for _ in range(5) for scene in demo_scenes()][: SECONDS // 2]
    made = {
        name: render_video(
            uploads / name, scenes, seconds_per_scene=2, fps=RATE, size=SIZE, codec=codec
        )
        for name, codec in {"long.mp4": "libx264", "long.avi": "mpeg4"}.items()
    }
    (uploads / "broken.mp4").write_text("this is no film")
    with fresh_database(postgres) as url:
        settings = collection_settings(home, url)
        index_uploads(settings)
        yield Collection(settings, made)


@pytest.fixture(scope="module")
def watched(films: Collection) -> Iterator[Served]:
    with serving(films.settings) as running:
        yield running


@pytest.fixture
def page(browser: webdriver.Chrome, watched: Served) -> Page:
    page = Page(browser, watched.url)
    page.faults()
    return page


def _play(page: Page, address: str) -> None:
    page.go(address)
    wait_until(lambda: page.run(PLAYS))


def _times(page: Page) -> list[float]:
    script = "return [...document.querySelectorAll('.strip a')].map(a => Number(a.dataset.time))"
    times = page.run(script)
    assert isinstance(times, list)
    return times


def test_a_hit_late_in_a_long_film_shows_its_own_frame(page: Page, films: Collection) -> None:
    page.go(f"/videos/{films.ids()['long.mp4']}?t=63")
    assert (page.find("#video").get_attribute("poster") or "").endswith(
        f"/api/thumbnails/{films.ids()['long.mp4']}/{_frame_at(page, films, 63)}.jpg"
    )
    assert 63 in _times(page)


def _frame_at(page: Page, films: Collection, seconds: int) -> int:
    script = "return fetch(arguments[0]).then(a => a.json()).then(d => d.frames[0].frame_index)"
    address = f"/api/videos/{films.ids()['long.mp4']}/frames?from={seconds}&limit=1"
    return int(str(page.run(script, address)))


def test_the_strip_follows_the_film_and_zooms(page: Page, films: Collection) -> None:
    _play(page, f"/videos/{films.ids()['long.mp4']}?t=30")
    page.run("document.getElementById('video').pause()")
    near = _times(page)
    assert len(near) == 24
    assert min(near) < 30 < max(near)
    page.run("document.getElementById('video').currentTime = 80")
    wait_until(lambda: 80 in _times(page))
    page.find("#zoom-out").click()
    wait_until(lambda: max(_times(page)) - min(_times(page)) > 40)
    page.find("#zoom-out").click()
    wait_until(lambda: max(_times(page)) - min(_times(page)) > 80)
    page.run("document.activeElement.blur()")
    page.press("j")
    wait_until(lambda: page.run(CURRENT) in _times(page))
    page.find("#zoom-in").click()
    wait_until(lambda: max(_times(page)) - min(_times(page)) < 60)
    page.run("document.activeElement.blur()")
    page.press("-")
    wait_until(lambda: max(_times(page)) - min(_times(page)) > 80)
    page.press("+")
    wait_until(lambda: max(_times(page)) - min(_times(page)) < 60)


def test_the_found_moment_stays_marked_and_is_replayed(page: Page, films: Collection) -> None:
    _play(page, f"/videos/{films.ids()['long.mp4']}?t=41&from=40&to=44")
    found = page.find(".found").get_attribute("x")
    page.run("document.getElementById('video').currentTime = 52")
    wait_until(lambda: page.run("return !document.getElementById('video').seeking"))
    assert page.find(".found").get_attribute("x") == found
    marked = [
        float(link.get_attribute("data-time") or "nan") for link in page.all(".strip .current a")
    ]
    assert marked == [40, 41, 42, 43]
    page.find("#replay").click()
    wait_until(lambda: 40 <= page.run(CURRENT) < 44)  # type: ignore[operator]
    wait_until(lambda: not page.run("return document.getElementById('video').paused"))


def test_what_no_browser_plays_is_played_converted(page: Page, films: Collection) -> None:
    _play(page, f"/videos/{films.ids()['long.avi']}?t=63")
    assert "converted" in page.find("#notice-text").text
    assert page.find("#video").is_displayed()
    # The clip begins five seconds before.
    wait_until(lambda: page.run(CURRENT) >= 4.9)  # type: ignore[operator]
    assert "clip.mp4?from=58" in (page.find("#video").get_attribute("src") or "")
    page.run("document.getElementById('video').pause()")
    page.find("#zoom-out").click()
    page.find("#zoom-out").click()
    wait_until(lambda: 0 in _times(page))
    page.run("arguments[0].click()", page.find('.strip a[data-time="0"]'))
    wait_until(
        lambda: (
            "clip.mp4?from=0" in (page.find("#video").get_attribute("src") or "")
            and page.run(PLAYS)
        )
    )


def test_the_whole_video_is_converted_on_request(page: Page, films: Collection) -> None:
    _play(page, f"/videos/{films.ids()['long.avi']}?t=20")
    wait_until(lambda: page.find("#convert").is_displayed())
    page.find("#convert").click()
    wait_until(
        lambda: (
            "playable.mp4" in (page.find("#video").get_attribute("src") or "") and page.run(PLAYS)
        )
    )
    assert float(str(page.run("return document.getElementById('video').duration"))) > SECONDS - 1
    assert float(str(page.run(CURRENT))) >= 15
    _play(page, f"/videos/{films.ids()['long.avi']}?t=5")
    assert "playable.mp4" in (page.find("#video").get_attribute("src") or "")


def test_a_service_that_is_away_is_said_and_asked_again(page: Page, films: Collection) -> None:
    """While it is started again, e.g.: nothing was said, and the strip and the button were gone."""
    _play(page, f"/videos/{films.ids()['long.avi']}?t=20")
    shown = _times(page)
    page.offline(True)
    try:
        page.run("document.getElementById('convert').click()")
        wait_until(lambda: "the service does not answer" in page.find("#notice-text").text)
        assert page.find("#convert").is_displayed()
        page.press("+")
        page.press("-")
        assert _times(page) == shown
    finally:
        page.offline(False)
    page.faults()  # Chromium names each request that failed
    page.press("+")
    wait_until(lambda: _times(page) != shown)
    assert page.faults() == []


def test_a_link_to_the_present_moment_is_copied(page: Page, films: Collection) -> None:
    granted = {"origin": page.url, "permissions": ["clipboardReadWrite"]}
    page.browser.execute_cdp_cmd("Browser.grantPermissions", granted)
    _play(page, f"/videos/{films.ids()['long.mp4']}?t=41&from=40&to=44")
    page.run("document.getElementById('video').pause()")
    page.run("document.getElementById('video').currentTime = 52")
    wait_until(lambda: not page.run("return document.getElementById('video').seeking"))
    page.find("#copy").click()
    wait_until(lambda: page.find("#copy").text == "Copied")
    copied = str(page.run("return navigator.clipboard.readText()"))
    assert "t=52" in copied
    page.browser.get("about:blank")
    page.browser.get(copied)
    wait_until(lambda: page.run(PLAYS))
    assert float(str(page.run(CURRENT))) == pytest.approx(52, abs=3)
    assert page.find(".found").get_attribute("x")


@pytest.mark.parametrize("name", ["long.mp4", "long.avi"])
def test_the_clip_of_the_moment_is_downloaded(
    page: Page, films: Collection, tmp_path: Path, name: str
) -> None:
    page.go(f"/videos/{films.ids()[name]}?t=41&from=40&to=44")
    page.downloads_to(tmp_path)
    page.find("a[download][href*='clip.mp4']").click()
    saved = tmp_path / "long 0.40.0-0.44.0.mp4"
    wait_until(saved.exists)
    with av.open(str(saved)) as container:
        stream = container.streams.video[0]
        assert stream.codec.name == "h264"
        assert stream.frames == 4 * RATE


def test_an_upload_that_is_gone_is_said_to_be_gone(
    browser: webdriver.Chrome, films: Collection, tmp_path: Path
) -> None:
    with serving(films.settings, uploads=str(tmp_path)) as running:
        page = Page(browser, running.url)
        page.go(f"/videos/{films.ids()['long.mp4']}?t=63")
        wait_until(lambda: "The upload is gone" in page.find("#notice-text").text)
        wait_until(lambda: page.run(NATURAL_WIDTH, "#picture-at"))
        frame = _frame_at(page, films, 63)
        wait_until(lambda: f"/{frame}.jpg" in (page.find("#picture-at").get_attribute("src") or ""))


def test_a_failed_video_says_why_and_shows_no_broken_picture(page: Page, films: Collection) -> None:
    page.go(f"/videos/{films.ids()['broken.mp4']}")
    assert "text, not a video" in page.find('[role="alert"]').text
    assert page.all("video") == []
    assert all(page.run("return arguments[0].naturalWidth", image) for image in page.all("img"))
    assert page.faults() == []
