"""Routes find a video by its name in either Unicode form, and answer with the name as stored."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.web.conftest import index_uploads, serving

STORED = {"NFC": "caf\u00e9/Caf\u00e9.mp4", "NFD": "cafe\u0301/Cafe\u0301.mp4"}
SCENES = demo_scenes()[:2]


@pytest.fixture(scope="module", params=STORED)
def service(
    request: pytest.FixtureRequest,
    postgres: EmbeddedPostgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[httpx.Client, str, str]]:
    """A client of a collection of two films, a name as it is stored, and as it is typed."""
    stored = STORED[request.param]
    home: Path = tmp_path_factory.mktemp("names")
    for name, scenes in ((stored, SCENES), ("other.mp4", SCENES[::-1])):
        path = home / "uploads" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        render_video(path, scenes, seconds_per_scene=2, fps=10)
    with fresh_database(postgres) as url:
        settings = collection_settings(home, url)
        index_uploads(settings)
        with serving(settings) as running:
            yield running.client, stored, STORED["NFD" if request.param == "NFC" else "NFC"]


def test_searches_and_labels_of_named_videos(service: tuple[httpx.Client, str, str]) -> None:
    client, stored, typed = service
    folder, _, file = typed.partition("/")
    query = SCENES[0].caption
    for pattern in (typed, f"{folder}/*", f"*/{file}", f"{file[:-4]}*"):
        asked = {"q": query, "videos": pattern}
        batch = {"queries": [{"q": query, "videos": [pattern]}]}
        for answer in (
            client.get("/api/search", params=asked),
            client.post("/api/search", json={"q": query, "videos": [pattern]}),
            client.post("/api/search/batch", json=batch),
            client.get("/api/labels", params={"label": query, "videos": pattern}),
            client.get("/", params=asked),
        ):
            assert answer.status_code == 200, answer.text
            assert stored in _text(answer), (pattern, answer.url)


def test_a_moment_to_look_like_and_one_to_explain(service: tuple[httpx.Client, str, str]) -> None:
    client, stored, typed = service
    for path in ("/api/search", "/api/similar"):
        hits = client.get(path, params={"like": f"{typed}@1"}).json()["hits"]
        assert hits[0]["video"] == stored
    asked = {"q": SCENES[0].caption, "moment": f"{typed}@1"}
    explanation = client.get("/api/explain", params=asked).json()
    assert explanation["video"] == stored
    assert explanation["place"] in (1, 2)  # the other film has the same scene


def test_videos_and_folders_that_are_listed(service: tuple[httpx.Client, str, str]) -> None:
    client, stored, typed = service
    folder = typed.partition("/")[0]
    for filter in ({"name": typed.partition("/")[2].lower()}, {"folder": folder}):
        for path in ("/api/videos", "/videos"):
            assert stored in client.get(path, params=filter).text, (path, filter)
        assert client.get("/api/videos", params=filter).json()["total"] == 1
    assert client.get("/api/folders").json()["folders"] == [
        {"folder": stored.partition("/")[0], "videos": 1}
    ]


def test_an_export_holds_the_name_as_it_is_stored(service: tuple[httpx.Client, str, str]) -> None:
    client, stored, typed = service
    [hit, *_] = client.get("/api/search", params={"q": SCENES[0].caption, "videos": typed}).json()[
        "hits"
    ]
    times = ":".join(str(hit[f"{name}_seconds"]) for name in ("time", "start", "end"))
    chosen = f"{hit['video_id']}:{hit['frame_index']}:{times}"
    table = client.get("/export", params={"hit": chosen}).text
    assert [row["video"] for row in csv.DictReader(table.splitlines())] == [stored]


def _text(answer: httpx.Response) -> str:
    """The text of an answer, with the characters that JSON writes as numbers."""
    if answer.headers["content-type"].startswith("application/json"):
        return json.dumps(answer.json(), ensure_ascii=False)
    return answer.text
