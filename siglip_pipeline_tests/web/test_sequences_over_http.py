"""Moments that follow each other, over HTTP and on the page."""

from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from siglip_pipeline_tests.web.browser import IN_A_BROWSER, Page
from siglip_pipeline_tests.web.conftest import Collection, wait_until

FILM = "one.mp4"
FIRST, SECOND = 1, 3
"""Scenes of the film."""


def asked(collection: Collection, *, within: str = "10s") -> str:
    timeline = collection.films[FILM].timeline
    first, second = (timeline[number][2].caption for number in (FIRST, SECOND))
    return f'"{first}" then "{second}" within {within}'


def assert_is_the_sequence(collection: Collection, hit: dict[str, Any]) -> None:
    assert hit["video"] == FILM
    for number, step in zip((FIRST, SECOND), hit["steps"], strict=True):
        start, end, _ = collection.films[FILM].timeline[number]
        assert start <= step["time_seconds"] < end
    first, last = hit["steps"]
    assert (hit["start_seconds"], hit["end_seconds"]) == (
        first["start_seconds"],
        last["end_seconds"],
    )
    assert hit["score"] == pytest.approx((first["score"] + last["score"]) / 2, abs=1e-5)
    assert hit["probability"] == pytest.approx(first["probability"] * last["probability"], abs=1e-5)


def test_a_sequence_is_found(client: httpx.Client, collection: Collection) -> None:
    query = asked(collection)
    answer = client.get("/api/search", params={"q": query, "k": 2}).json()
    timeline = collection.films[FILM].timeline
    assert answer["query"]["sequence"] == {
        "texts": [timeline[number][2].caption for number in (FIRST, SECOND)],
        "within_seconds": 10.0,
    }
    assert_is_the_sequence(collection, answer["hits"][0])
    posted = client.post("/api/search", json={"q": query, "k": 2}).json()
    assert posted["hits"] == answer["hits"]
    rest = client.get(answer["next"]).json()["hits"]
    assert (
        answer["hits"] + rest
        == (client.get("/api/search", params={"q": query, "k": 4}).json()["hits"])
    )


def test_filters_and_times_apply(client: httpx.Client, collection: Collection) -> None:
    def hits(query: str, **filters: str | float) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.get(
            "/api/search", params={"q": query, **filters}
        ).json()["hits"]
        return found

    query = asked(collection)
    assert {hit["video"] for hit in hits(query, videos="*.avi")} == {"old.avi"}
    start = collection.films[FILM].timeline[FIRST][1]
    later = hits(query, videos=FILM, from_seconds=start)
    assert all(step["time_seconds"] >= start for hit in later for step in hit["steps"])
    # The scenes begin four seconds apart, and each has a frame a second.
    near = hits(asked(collection, within="1s"), videos=FILM)
    for hit in near:
        first, second = hit["steps"]
        assert 0 < second["time_seconds"] - first["time_seconds"] <= 1


@pytest.mark.parametrize(
    ("query", "more", "said"),
    [
        ('"a" then', {}, "then"),
        (" then ".join(['"a"'] * 9), {}, "a sequence has 2 to 8 texts, not 9"),
        ('"a" then "b" within 0s', {}, "within"),
        ('"a" then "b"', {"like": "one.mp4@1"}, "a sequence"),
        ('"a" then "b"', {"prove": "1"}, "sequence"),
    ],
)
def test_what_is_no_sequence_is_refused(
    client: httpx.Client, query: str, more: dict[str, str], said: str
) -> None:
    answer = client.get("/api/search", params={"q": query, **more})
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


def test_the_page_shows_the_steps(client: httpx.Client, collection: Collection) -> None:
    page = unescape(client.get("/", params={"q": asked(collection)}).text)
    assert 'aria-label="Moments of the sequence"' in page
    [hit, *_] = client.get("/api/search", params={"q": asked(collection)}).json()["hits"]
    for step in hit["steps"]:
        assert f'href="/videos/{hit["video_id"]}?t={step["time_seconds"]:.10g}"' in page


class TestInABrowser:
    pytestmark = IN_A_BROWSER

    def test_a_sequence_is_typed_and_a_step_opens_its_second(
        self, page: Page, collection: Collection
    ) -> None:
        page.go("/")
        page.find("#q").send_keys(asked(collection), Keys.ENTER)
        wait_until(lambda: page.all(".hit"))
        first, second = page.all(".hit:first-child .steps a")[:2]
        start, end, _ = collection.films[FILM].timeline[SECOND]
        seconds = float(parse_qs(urlsplit(second.get_attribute("href") or "").query)["t"][0])
        assert start <= seconds < end
        assert first.text != second.text
        second.click()
        wait_until(lambda: page.path().startswith(f"/videos/{collection.ids()[FILM]}"))
        wait_until(
            lambda: page.run(
                "return document.querySelector('video').currentTime >= arguments[0]", start - 0.1
            )
        )
