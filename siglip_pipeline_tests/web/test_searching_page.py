"""What searchers do with results and the library, in headless Chromium; and axe on every page."""

import csv
import io
import time
import zipfile
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from siglip_pipeline_tests.web.browser import IN_A_BROWSER, Page
from siglip_pipeline_tests.web.conftest import Collection, sent, wait_until

pytestmark = IN_A_BROWSER

AXE = (files("selenium_axe_python") / "axe-core" / "axe.min.js").read_text()
FIRST_NAME = "return document.querySelector('.hit .name').textContent.trim()"

BROKEN_WORDS = """
const broken = [], text = arguments[0].lastChild, range = document.createRange();
for (const word of text.data.matchAll(/[^\\s/]+/g)) {
    range.setStart(text, word.index);
    range.setEnd(text, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map(box => box.top)).size > 1) broken.push(word[0]);
}
return broken
"""
"""Script: the words of an element's text that go on in the next line."""


def _drop(page: Page, picture: Path) -> None:
    script = """
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(arguments[0])], "q.png", {type: "image/png"}));
        document.dispatchEvent(
            new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    """
    page.run(script, list(picture.read_bytes()))
    wait_until(lambda: page.path().startswith("/?picture="))
    wait_until(lambda: page.all(".hit"))


@pytest.mark.parametrize("path", ["/videos", "/status", "/videos/{}"])
def test_a_picture_is_dropped_on_any_page(
    page: Page, collection: Collection, picture: Path, path: str
) -> None:
    page.go(path.format(collection.ids()["one.mp4"]))
    _drop(page, picture)
    assert page.run(FIRST_NAME) == "more/two words.webm"


def test_a_picture_search_has_an_address_and_words_are_added_to_it(
    page: Page, picture: Path
) -> None:
    page.go("/")
    _drop(page, picture)
    address = page.path()
    page.go("/")
    page.go(address)
    assert page.run(FIRST_NAME) == "more/two words.webm"
    assert page.run("return document.querySelector('.asked img').naturalWidth > 0")
    # The probability was trained for texts; of a picture it is nearly always 100%.
    assert page.all(".fit") == []
    page.find("#q").send_keys("a red circle", Keys.ENTER)
    wait_until(lambda: "q=a+red+circle" in page.path())
    assert address.partition("picture=")[2] in page.path()
    assert "Like this picture, and “a red circle”" in page.find(".asked").text
    assert page.all(".fit")
    page.find(".asked a").click()
    wait_until(lambda: "picture=" not in page.path())


def test_filters_and_page_survive_the_way_to_a_video_and_back(page: Page) -> None:
    page.go("/?q=a+star&videos=old.avi&max_per_video=2")
    search = page.path()
    page.find(".hit .open").click()
    wait_until(lambda: page.path().startswith("/videos/"))
    page.browser.refresh()
    page.press(Keys.ESCAPE)
    wait_until(lambda: page.path() == search)
    page.find(".hit .more").click()
    wait_until(lambda: "video_id=" in page.path())
    assert "videos=old.avi" in page.path()
    page.browser.back()
    wait_until(lambda: page.path() == search)


def test_hits_of_one_video_are_grouped(page: Page) -> None:
    page.go("/?q=a+star")
    groups = page.all(".group")
    assert groups
    for group in groups:
        names = {name.text for name in group.find_elements(By.CSS_SELECTOR, ".hit .name")}
        assert len(names) == 1
    page.find(".export a").click()
    wait_until(lambda: "group=0" in page.path())
    assert page.all(".group") == []
    scores = [float(text.text.split()[-1]) for text in page.all(".facts span:last-child")]
    assert scores == sorted(scores, reverse=True)


def test_a_hit_is_previewed_under_the_pointer(page: Page) -> None:
    page.go("/?like=&q=a+star&max_per_video=1")
    seen = page.run(
        """
        const length = link => link.dataset.end - link.dataset.start;
        const link = [...document.querySelectorAll('.hit .open')]
            .sort((a, b) => length(b) - length(a))[0];
        window.previewed = link.querySelector('img');
        window.still = previewed.src;
        link.dispatchEvent(new PointerEvent('pointerenter'));
        window.leave = () => link.dispatchEvent(new PointerEvent('pointerleave'));
        return link.dataset.end - link.dataset.start
        """
    )
    assert float(str(seen)) > 1
    wait_until(lambda: page.run("return previewed.src !== still"))
    page.run("leave()")
    wait_until(lambda: page.run("return previewed.src === still"))


def test_a_pointer_that_comes_back_leaves_the_hits_own_picture(page: Page) -> None:
    """The second preview began while the first showed another frame, and put that one back."""
    page.go("/?q=a+star&max_per_video=1")
    page.run(
        """
        const length = link => link.dataset.end - link.dataset.start;
        const link = [...document.querySelectorAll('.hit .open')]
            .sort((a, b) => length(b) - length(a))[0];
        window.previewed = link.querySelector('img');
        window.still = previewed.src;
        window.point = kind => link.dispatchEvent(new PointerEvent(kind));
        point('pointerenter')
        """
    )
    wait_until(lambda: page.run("return previewed.src !== still"))
    page.run("point('pointerleave'); point('pointerenter')")
    time.sleep(0.5)  # the second preview has begun: it waits for a quarter of a second
    page.run("point('pointerleave')")
    time.sleep(1.5)  # both have ended: a frame is shown for 0.6 s
    assert page.run("return previewed.src === still")


def test_folders_with_wildcards_in_their_names_are_picked(page: Page, client: httpx.Client) -> None:
    page.go("/")
    page.run(
        """
        const folders = { folders: [{ folder: 'Season [1]', videos: 2 }] };
        window.fetch = async () => new Response(JSON.stringify(folders))
        """
    )
    page.find("summary").click()
    page.find("[name=videos]").click()
    options = "return [...document.getElementById('places').options].map(o => o.value)"
    wait_until(lambda: page.run(options) == ["Season [[]1]/**"])
    listed = client.get("/videos", params={"folder": "Season [1]"}).text
    assert f'href="/?{urlencode({"videos": "Season [[]1]/**"})}"' in listed


def test_chosen_hits_are_exported(page: Page, client: httpx.Client, tmp_path: Path) -> None:
    page.go("/?q=a+star")
    assert not page.find(".export button").is_enabled()
    boxes = page.all(".choose input")
    for box in boxes[:2]:
        box.click()
    wait_until(lambda: page.find("#chosen").text == "2 chosen:")
    page.downloads_to(tmp_path)
    for button in page.all(".export button"):
        button.click()
        wait_until(lambda: not list(tmp_path.glob("*.crdownload")))
    wait_until(lambda: {file.name for file in tmp_path.iterdir()} == {"moments.csv", "moments.zip"})
    with (tmp_path / "moments.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    query = "&".join(f"hit={box.get_attribute('value')}" for box in boxes[:2])
    table = list(csv.DictReader(io.StringIO(client.get(f"/export?{query}").text)))
    assert [row["video"] for row in table] == [name.text for name in page.all(".hit .name")[:2]]
    archive = client.get(f"/export?{query}&format=pictures")
    assert 'filename="moments.zip"' in archive.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(sent(archive))) as pictures:
        assert len(pictures.namelist()) == 2
        assert pictures.read(pictures.namelist()[0]).startswith(b"\xff\xd8\xff")
    assert client.get("/export?hit=7").status_code == 422


def test_the_library_is_searched_sorted_and_walked(page: Page) -> None:
    page.go("/videos")
    assert len(page.all("tbody tr")) == 4
    page.find("[name=name]").send_keys("WORDS", Keys.ENTER)
    wait_until(lambda: len(page.all("tbody tr")) == 1)
    assert "more/two words.webm" in page.find("tbody").text
    page.go("/videos?state=failed")
    assert "broken <b>.mp4" in page.find("tbody").text
    assert len(page.all("tbody tr")) == 1
    page.go("/videos")
    page.find(".folders .button").click()
    wait_until(lambda: "folder=more" in page.path())
    assert len(page.all("tbody tr")) == 1
    page.go("/videos?order=largest")
    names = [row.text for row in page.all("tbody tr")]
    assert "broken" in names[-1]


def test_the_api_lists_as_the_library(client: httpx.Client) -> None:
    assert client.get("/api/folders").json() == {
        "folders": [{"folder": "more", "videos": 1}],
        "next": None,
    }
    first = client.get("/api/videos?state=indexed&order=longest&limit=2").json()
    assert (first["total"], len(first["videos"])) == (3, 2)
    assert len(client.get(first["next"]).json()["videos"]) == 1
    assert client.get("/api/videos?name=%25").json()["total"] == 0
    assert client.get("/api/videos?state=odd").status_code == 422


def test_filters_are_picked(page: Page) -> None:
    page.go("/")
    page.find("summary").click()
    page.find("[name=videos]").click()
    options = "return [...document.getElementById('places').options].map(o => o.value)"
    wait_until(lambda: page.run(options) == ["more/**"])
    page.find("[name=videos]").send_keys("ol")
    wait_until(lambda: page.run(options) == ["old.avi"])


def test_words_of_the_table_do_not_break_on_phones(page: Page) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.go("/videos")
        for cell in page.all("th, .with-shot"):
            assert page.run(BROKEN_WORDS, cell) == [], cell.text
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.usefixtures("watch", "evaluated")
def test_axe_finds_no_violation(
    page: Page, client: httpx.Client, collection: Collection, scheme: str
) -> None:
    page.colour_scheme(scheme)
    [moment, *_] = client.get("/api/watches/the gate's/calibration").json()["moments"]
    calibration = "/watches/calibration?name=the+gate's"
    video_id = collection.ids()["one.mp4"]
    paths = [
        "/",
        "/?q=a+star&videos=*.avi",
        "/videos",
        "/duplicates",
        "/watches",
        calibration,
        f"{calibration}&{moment['video_id']}.{moment['frame_index']}=yes",
        "/evaluations",
        "/status",
        "/login",
    ]
    paths += [f"/videos/{video_id}?t=4&from=4&to=6&search=q%3Da", "/videos/999999", "/explain"]
    try:
        for path in paths:
            page.go(path)
            page.run(AXE)
            found = page.browser.execute_async_script(
                "const done = arguments[0]; axe.run().then(r => done(r.violations.map("
                "v => v.id + ': ' + v.nodes.map(n => n.html).join(' | '))))"
            )
            assert found == [], (path, found)
    finally:
        page.colour_scheme("light")
        assert all("404" in fault for fault in page.faults())
