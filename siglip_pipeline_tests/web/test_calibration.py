"""Calibrating a standing query over HTTP and on its page without scripts; nothing is stored."""

from urllib.parse import quote, urlencode

import httpx
import pytest

from siglip_pipeline.search.calibrating import SHOWN
from siglip_pipeline.stages.watch_documents import WatchShown
from siglip_pipeline_tests.web.conftest import Collection


@pytest.fixture
def address(watch: WatchShown) -> str:
    return f"/api/watches/{quote(watch.name, safe='')}/calibration"


@pytest.fixture
def path(watch: WatchShown) -> str:
    return f"/watches/calibration?{urlencode({'name': watch.name})}"


def answers(asked: dict[str, list[dict[str, object]]], *fits: bool) -> list[dict[str, object]]:
    """Answers about the first of the moments that are shown."""
    return [
        {"video": moment["video"], "frame_index": moment["frame_index"], "fits": fit}
        for moment, fit in zip(asked["moments"], fits, strict=False)
    ]


def test_answers_give_a_threshold_and_nothing_is_stored(
    client: httpx.Client, collection: Collection, watch: WatchShown, address: str
) -> None:
    asked = client.get(address).json()
    moments = asked["moments"]
    assert asked["watch"] == client.get("/api/watches").json()["watches"][0]
    assert 3 <= len(moments) <= SHOWN
    probabilities = [moment["probability"] for moment in moments]
    assert probabilities == sorted(probabilities, reverse=True)
    for moment in moments:
        assert client.get(moment["thumbnail_url"]).headers["content-type"] == "image/jpeg"
    given = answers(asked, True, True, False)
    found = client.post(address, json={"answers": given}).json()
    assert found["min_probability"] == pytest.approx(sum(probabilities[1:3]) / 2, abs=1e-5)
    assert (found["judged"], found["above"], found["right"]) == (3, 2, 2)
    assert found["precision"] == 1
    assert 0.3 < found["low"] < found["high"] == 1
    first, *lines, end = found["command"].split("\n")
    assert first.startswith("siglip-pipeline watch calibrate ")
    assert (len(lines), end) == (3, "END")
    [after] = client.get("/api/watches").json()["watches"]
    assert after["min_probability"] == watch.min_probability
    assert "calibration" not in after


def test_answers_that_cannot_be_used(client: httpx.Client, address: str) -> None:
    asked = client.get(address).json()
    [given] = answers(asked, True)
    for body, status, said in (
        ({"answers": []}, 422, "at least 1 item"),
        ({"answers": [given] * (SHOWN + 1)}, 422, f"at most {SHOWN} items"),
        ({"answers": [given], "least": 1}, 422, "least"),
        ({"answers": [given | {"sure": 1}]}, 422, "sure"),
        ({"answers": [given | {"fits": "yes"}]}, 422, "valid boolean"),
        ({"answers": [given, given]}, 400, "answer 2: frame"),
        ({"answers": [given | {"frame_index": 1}]}, 400, "is none of the"),
    ):
        answer = client.post(address, json=body)
        assert answer.status_code == status, (body, answer.text)
        assert said in answer.json()["error"]["message"]
    for missing in (client.get, client.post):
        answer = missing("/api/watches/shed/calibration")
        assert answer.status_code == (404 if missing == client.get else 422)
    unknown = client.get(address, params={"limit": 3})
    assert unknown.status_code == 422
    assert "limit: no such parameter" in unknown.json()["error"]["message"]
    gone = client.get("/watches/calibration", params={"name": "the gate's", "999.1": "yes"})
    assert gone.status_code == 400


def test_it_works_without_scripts(client: httpx.Client, address: str, path: str) -> None:
    first, second, *_ = client.get(address).json()["moments"]
    chosen = {
        f"{moment['video_id']}.{moment['frame_index']}": said
        for moment, said in ((first, "yes"), (second, "no"))
    }
    shown = client.get(f"{path}&{urlencode(chosen)}").text
    assert "Of 1 judged moment at or above it 1 fits" in shown
    assert shown.count(" checked") == 2
    assert "It is set" not in shown
