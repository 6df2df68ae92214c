"""`GET /api/explain` and its page, over the real service."""

from pathlib import Path
from urllib.parse import urlencode

import httpx

from siglip_pipeline_tests.web.conftest import Collection


def test_a_moment_and_why_it_is_not_shown(collection: Collection, client: httpx.Client) -> None:
    start, _, scene = collection.films["one.mp4"].timeline[2]
    asked = {"q": scene.caption, "moment": f"one.mp4@{start + 0.5}"}
    answer = client.get("/api/explain", params=asked).json()
    assert answer["place"] == 1
    assert answer["frame"]["frames"] > 12
    hidden = client.get("/api/explain", params={**asked, "videos": "old.avi"}).json()
    assert hidden["place"] is None
    [cause] = hidden["causes"]
    assert cause["cause"] == "filtered"
    assert "videos=old.avi" in cause["text"]

    page = client.get("/explain", params={**asked, "videos": "old.avi"}).text
    assert "It is not among the 10 hits." in page
    assert 'data-cause="filtered"' in page
    assert 'name="videos" value="old.avi"' in page, "asked again with the same filters"
    results = client.get("/", params={"q": scene.caption, "min_probability": "0.1"}).text
    link = "/explain?" + urlencode({"q": scene.caption})
    assert f'href="{link}&amp;min_probability=0.1"'.replace("&amp;", "&") in results.replace(
        "&amp;", "&"
    )


def test_what_cannot_be_explained(client: httpx.Client) -> None:
    for params, status, said in (
        ({"q": "x", "moment": "one.mp4"}, 400, "is not VIDEO@SECONDS"),
        ({"q": "x", "moment": "one.mp4@1e9"}, 422, "the time is beyond"),
        ({"q": "x" * 501, "moment": "one.mp4@1"}, 422, "the query has 501 characters"),
        ({"q": "x", "moment": "one.mp4@1", "k": "500"}, 422, "k=500: at most 100"),
        ({"moment": "one.mp4@1"}, 422, "nothing to look for: give q"),
        ({"moment": "one.mp4@1", "picture": "0" * 32}, 404, "is not kept any more"),
    ):
        answer = client.get("/api/explain", params=params)
        assert answer.status_code == status, params
        assert said in answer.json()["error"]["message"]
    missing = client.get("/api/explain", params={"q": "a", "moment": "none.mp4@1"}).json()
    assert missing["causes"][0]["cause"] == "no_video"
    assert "<form" in client.get("/explain").text


def test_a_search_by_moment_or_picture_is_explained(
    collection: Collection, client: httpx.Client, picture: Path
) -> None:
    start, _, _ = collection.films["more/two words.webm"].timeline[2]
    expected = f"more/two words.webm@{start + 0.5}"
    png = {"content-type": "image/png"}
    sent = client.post("/api/search", content=picture.read_bytes(), headers=png).json()
    kept = sent["query"]["picture"]
    ids = collection.ids()
    here = {"video_id": str(ids["more/two words.webm"]), "seconds": str(start + 0.5)}
    for asked in ({"like": expected}, here, {"picture": kept}):
        answer = client.get("/api/explain", params={**asked, "moment": expected}).json()
        assert answer["place"] == 1, asked
    for asked in (here, {"picture": kept}):
        results = client.get("/", params=asked).text.replace("&amp;", "&")
        assert f'href="/explain?{urlencode(asked)}"' in results
        page = client.get("/explain", params={**asked, "moment": expected}).text
        assert "It is shown: hit 1 of 10." in page
        for name, value in asked.items():
            assert f'name="{name}" value="{value}' in page, "asked again"
