"""The JSON API against a real index."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from siglip_pipeline.hits import Hit
from siglip_pipeline.search import LabelReport
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline.web.schemas import HitAnswer, LabelsAnswer
from siglip_pipeline_tests.web.conftest import SECONDS_PER_SCENE, Collection

pytestmark = pytest.mark.timeout(600)

FRAMES = 12
"""Of each film: one a second."""


def _hits(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    hits: list[dict[str, Any]] = answer.json()["hits"]
    return hits


def test_text_finds_the_scene(client: httpx.Client, collection: Collection) -> None:
    scenes = [
        (name, start, end, scene)
        for name, film in collection.films.items()
        for start, end, scene in film.timeline
    ]
    right = 0
    for name, start, end, scene in scenes:
        (hit,) = _hits(client.get("/api/search", params={"q": scene.caption, "k": 1}))
        right += hit["video"] == name and start <= hit["time_seconds"] < end
    assert right >= 0.75 * len(scenes)


def test_a_hit_says_where_its_picture_its_page_and_its_file_are(
    client: httpx.Client, collection: Collection
) -> None:
    answer = client.get("/api/search", params={"q": "a red circle", "k": 2}).json()
    assert answer["query"] == {"text": "a red circle", "k": 2}
    assert answer["model"] == collection.settings.model_name
    for hit in answer["hits"]:
        assert -1 <= hit["score"] <= 1
        assert 0 <= hit["probability"] <= 1
        assert hit["start_seconds"] <= hit["time_seconds"] < hit["end_seconds"]
        for name, content_type in (
            ("thumbnail_url", "image/jpeg"),
            ("page_url", "text/html"),
            ("stream_url", "video/"),
        ):
            there = client.get(hit[name])
            assert there.status_code == 200
            assert there.headers["content-type"].startswith(content_type)


@pytest.mark.parametrize("as_form", [False, True])
def test_a_picture_finds_the_scene_that_it_shows(
    client: httpx.Client, collection: Collection, picture: Path, as_form: bool
) -> None:
    data = picture.read_bytes()
    sent: dict[str, Any] = (
        {"files": {"image": ("query.png", data)}}
        if as_form
        else {"content": data, "headers": {"Content-Type": "image/png"}}
    )
    hit = _hits(client.post("/api/search", params={"k": 3}, **sent))[0]
    start, end, _ = collection.films["more/two words.webm"].timeline[2]
    assert hit["video"] == "more/two words.webm"
    assert start <= hit["time_seconds"] < end


def test_a_moment_finds_itself_by_path_and_by_id(
    client: httpx.Client, collection: Collection
) -> None:
    by_path = _hits(client.get("/api/similar", params={"like": "one.mp4@5", "k": 4}))
    video_id = collection.ids()["one.mp4"]
    by_id = _hits(client.get("/api/similar", params={"video_id": video_id, "seconds": 5, "k": 4}))
    assert by_path == by_id
    assert by_path[0]["video"] == "one.mp4"
    assert by_path[0]["score"] == pytest.approx(1, abs=1e-3)
    assert by_path[0]["start_seconds"] <= 5 < by_path[0]["end_seconds"]


def test_filters_hold_for_every_kind_of_query(client: httpx.Client, picture: Path) -> None:
    chosen: dict[str, str | int] = {"videos": "*.avi", "from_seconds": 4, "to_seconds": 8, "k": 50}
    picture_headers = {"Content-Type": "image/png"}
    answers = [
        client.get("/api/search", params={"q": "a blue star", **chosen}),
        client.post(
            "/api/search", params=chosen, content=picture.read_bytes(), headers=picture_headers
        ),
        client.get("/api/similar", params={"like": "one.mp4@1", **chosen}),
    ]
    for answer in answers:
        hits = _hits(answer)
        assert hits
        assert {hit["video"] for hit in hits} == {"old.avi"}
        assert all(4 <= hit["time_seconds"] < 8 for hit in hits)


def test_what_is_improbable_can_be_hidden(client: httpx.Client) -> None:
    everything = _hits(client.get("/api/search", params={"q": "a red circle", "k": 50}))
    sure = _hits(
        client.get("/api/search", params={"q": "a red circle", "k": 50, "min_probability": 0.3})
    )
    expected = [hit["frame_index"] for hit in everything if hit["probability"] >= 0.3]
    assert len(sure) < len(everything)
    assert [hit["frame_index"] for hit in sure] == expected


def test_empty_fields_of_a_form_are_no_filters(client: httpx.Client) -> None:
    plain = client.get("/api/search", params={"q": "a star"}).json()
    empty = {"videos": "", "from_seconds": "", "uploaded_since": "", "max_per_video": ""}
    assert (
        client.get("/api/search", params={"q": "a star", **empty}).json()["hits"] == plain["hits"]
    )


def test_a_mix_is_read_as_the_command_line_reads_it(client: httpx.Client) -> None:
    answer = client.get("/api/search", params={"q": '+"a red circle" -"a blue star"'}).json()
    assert [part["weight"] for part in answer["query"]["mix"]] == [1, -1]


def test_pages_of_hits_follow_each_other(client: httpx.Client) -> None:
    whole = _hits(client.get("/api/search", params={"q": "a green square", "k": 9}))
    url: str | None = "/api/search?q=a+green+square&k=3"
    pages: list[list[dict[str, Any]]] = []
    while url and len(pages) < 3:
        answer = client.get(url)
        pages += [_hits(answer)]
        url = answer.json()["next"]
    assert [hit for page in pages for hit in page] == whole


def test_videos_are_listed_page_by_page(client: httpx.Client) -> None:
    first = client.get("/api/videos", params={"limit": 3}).json()
    second = client.get(first["next"]).json()
    assert first["total"] == second["total"] == 4
    assert second["next"] is None
    videos = first["videos"] + second["videos"]
    assert [video["video"] for video in videos] == [
        "broken <b>.mp4",
        "more/two words.webm",
        "old.avi",
        "one.mp4",
    ]
    assert [video["state"] for video in videos] == ["failed", *["indexed"] * 3]
    assert videos[0]["stage"] == "video_frames"
    assert videos[0]["reason"]
    assert {(*video["warnings"], video["media_offset_seconds"]) for video in videos} == {(0,)}


def test_a_video_has_its_frames_and_moments_in_time(
    client: httpx.Client, collection: Collection
) -> None:
    video = client.get(f"/api/videos/{collection.ids()['one.mp4']}").json()
    assert [frame["time_seconds"] for frame in video["timeline"]] == list(range(FRAMES))
    assert video["duration_seconds"] == pytest.approx(FRAMES, abs=0.1)
    assert video["info"]["codec"] == "h264"
    assert video["moments"][0]["start_seconds"] == 0
    # No moment goes over a cut between scenes.
    cuts = range(SECONDS_PER_SCENE, FRAMES, SECONDS_PER_SCENE)
    assert set(cuts) <= {moment["start_seconds"] for moment in video["moments"]}


def test_a_video_that_failed_has_no_frames(client: httpx.Client, collection: Collection) -> None:
    video = client.get(f"/api/videos/{collection.ids()['broken <b>.mp4']}").json()
    assert (video["state"], video["timeline"], video["moments"]) == ("failed", [], [])


def test_labels_say_which_words_fit_which_videos(
    client: httpx.Client, collection: Collection
) -> None:
    colours: dict[str, Any] = {"label": ["a red circle", "a blue star"], "min_probability": 0.2}
    answer = client.get("/api/labels", params=colours).json()
    assert [video["video"] for video in answer["videos"]] == sorted(collection.films)
    assert set(answer["labels"]) == set(colours["label"])
    for video in answer["videos"]:
        chances = [label["probability"] for label in video["labels"]]
        assert chances == sorted(chances, reverse=True)
        assert all(0 <= label["share"] <= 1 for label in video["labels"])
    total = sum(
        label["share"] * video["frames"]
        for video in answer["videos"]
        for label in video["labels"]
        if label["label"] == "a red circle"
    )
    assert answer["labels"]["a red circle"] == pytest.approx(total / (3 * FRAMES), abs=1e-4)
    first = client.get("/api/labels", params={**colours, "limit": 2}).json()
    second = client.get(first["next"]).json()
    assert first["videos"] + second["videos"] == answer["videos"]
    assert (first["total"], second["next"]) == (3, None)
    video_id = collection.ids()["old.avi"]
    (only,) = client.get("/api/labels", params={**colours, "video_id": video_id}).json()["videos"]
    assert only in answer["videos"]


def test_shares_of_labels_are_those_of_the_command_line() -> None:
    shares = {"a star": 1 / 3}
    answer = LabelsAnswer(model="tiny", labels=shares, videos=(), total=0, next=None)
    printed = to_json(LabelReport(model="tiny", labels=shares, videos=()))
    assert answer.model_dump(mode="json")["labels"] == printed["labels"] == {"a star": 0.333333}


def test_status_is_the_document_of_the_command_line(client: httpx.Client) -> None:
    status = client.get("/api/status").json()
    assert status["videos"]["indexed"] == 3
    assert status["vectors"] == 3 * FRAMES
    assert [failure["video"] for failure in status["failures"]] == ["broken <b>.mp4"]
    assert status["index"]["state"] == "ready"


def test_it_is_healthy_and_ready(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "named"),
    [
        ("GET", "/api/nothing", 404, "NotFound", "/api/nothing"),
        ("GET", "/nothing", 404, "NotFound", "/nothing"),
        ("GET", "/static/../app.py", 404, "NotFound", "app.py"),
        ("DELETE", "/api/search", 405, "MethodNotAllowed", "DELETE"),
        ("GET", "/api/search", 422, "ValidationError", "q"),
        ("GET", "/api/search?q=", 422, "ValidationError", "q"),
        ("GET", "/api/search?q=+", 400, "QueryError", "empty"),
        ("GET", "/api/search?q=x&k=0", 422, "ValidationError", "k"),
        ("GET", "/api/search?q=x&k=101", 422, "ValidationError", "100"),
        ("GET", "/api/search?q=x&k=many", 422, "ValidationError", "many"),
        ("GET", "/api/search?q=x&k=100&offset=950", 422, "ValidationError", "1000"),
        ("GET", "/api/search?q=" + "x" * 501, 422, "ValidationError", "500"),
        ("GET", "/api/search?q=x&videos=no.mp4", 400, "QueryError", "no.mp4"),
        ("GET", "/api/search?q=x&from_seconds=nan", 422, "ValidationError", "from_seconds"),
        ("GET", "/api/search?q=x&from_seconds=9&to_seconds=3", 400, "QueryError", "9"),
        ("GET", "/api/search?q=x&uploaded_since=soon", 422, "ValidationError", "soon"),
        ("GET", "/api/search?q=x&uploaded_since=20261130", 422, "ValidationError", "2026-11-30"),
        ("GET", "/api/search?q=x&uploaded_until=-1.5", 422, "ValidationError", "2026-11-30"),
        ("GET", "/api/search?q=%00", 400, "BadRequest", "NUL"),
        ("GET", '/api/search?q=%2B"snow', 400, "QueryError", "snow"),
        ("GET", "/api/similar", 422, "ValidationError", "VIDEO@SECONDS"),
        ("GET", "/api/similar?like=one.mp4", 400, "QueryError", "one.mp4"),
        ("GET", "/api/similar?like=../secret@1", 400, "QueryError", "../secret"),
        ("GET", "/api/similar?video_id=999999&seconds=1", 404, "NotFound", "999999"),
        ("GET", "/api/similar?video_id=99999999999999999999&seconds=1", 422, None, "video_id"),
        ("GET", "/api/labels", 422, "ValidationError", "label"),
        ("GET", "/api/labels?label=a&label=a", 400, "QueryError", "once"),
        ("GET", "/api/labels?" + "&".join(f"label={i}" for i in range(21)), 422, None, "20"),
        ("GET", "/api/labels?label=" + "x" * 501, 422, "ValidationError", "500"),
        ("GET", "/api/labels?label=a&video_id=999999", 404, "NotFound", "999999"),
        (
            "GET",
            "/api/labels?label=a&video_id=1&videos=x",
            422,
            "ValidationError",
            "either video_id",
        ),
        ("GET", "/api/videos/999999", 404, "NotFound", "999999"),
        ("GET", "/api/videos/one.mp4", 422, "ValidationError", "one.mp4"),
        ("GET", "/api/videos?limit=0", 422, "ValidationError", "limit"),
        ("GET", "/api/videos/999999/stream", 404, "NotFound", "999999"),
        ("GET", "/api/videos/..%2F..%2Fetc/stream", 404, "NotFound", ""),
        ("GET", "/api/thumbnails/999999/0.jpg", 404, "NotFound", "999999"),
        ("GET", "/api/thumbnails/1/7.png", 404, "NotFound", ""),
    ],
)
def test_every_failure_has_the_one_shape(
    client: httpx.Client, method: str, path: str, status: int, kind: str | None, named: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status, answer.text
    document = answer.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"type", "message"}
    assert kind is None or document["error"]["type"] == kind
    assert named in document["error"]["message"]


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", "image/png"),
        (b"this is no picture", "image/png"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "image/png"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, "image/jpeg"),
        (b"GIF89a", "application/octet-stream"),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x"),
        (b"--x--", "multipart/form-data"),
        (b"{}", "text/plain"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/eps"),
    ],
)
def test_a_body_that_is_no_picture_is_said_to_be_none(
    client: httpx.Client, content: bytes, content_type: str
) -> None:
    answer = client.post("/api/search", content=content, headers={"Content-Type": content_type})
    assert answer.status_code in (400, 415), answer.text
    assert set(answer.json()["error"]) == {"type", "message"}


def test_no_message_names_a_folder_of_the_server(
    client: httpx.Client, collection: Collection
) -> None:
    video_id = collection.ids()["one.mp4"]
    answer = client.get(f"/api/thumbnails/{video_id}/77777.jpg")
    assert answer.status_code == 404
    assert str(collection.settings.home) not in answer.text


def test_openapi_describes_every_path_with_examples(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) >= {
        "/api/search",
        "/api/similar",
        "/api/videos",
        "/api/videos/{video_id}",
        "/api/videos/{video_id}/stream",
        "/api/thumbnails/{video_id}/{frame_index}.jpg",
        "/api/labels",
        "/api/duplicates",
        "/api/status",
        "/healthz",
        "/readyz",
    }
    assert schema["components"]["schemas"]["SearchAnswer"]["examples"]
    for answer, field in (("HitAnswer", "score"), ("QueryShown", "tokens")):
        assert schema["components"]["schemas"][answer]["properties"][field]["description"]
    assert schema["components"]["schemas"]["ErrorAnswer"]
    error = {"$ref": "#/components/schemas/ErrorAnswer"}
    for path in schema["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert answer["content"]["application/json"]["schema"] == error


def test_addresses_of_pages_lead_to_the_frame_itself(client: httpx.Client) -> None:
    """Six digits of 3:00:11.467 are the next frame."""
    hit = Hit(
        video="long.mp4",
        video_id=1,
        time_seconds=10811.467,
        frame_index=324_344,
        score=0.5,
        probability=0.5,
        start_seconds=10811.0,
        end_seconds=10812.0,
        media_time_seconds=10811.467,
    )
    assert HitAnswer.of(hit).page_url == "/videos/1?t=10811.467"
    table = client.get("/export?hit=1:324344:10811.467:10811:10812").text
    assert table.splitlines()[1].endswith("/videos/1?t=10811.467")


def test_what_is_looked_like_is_one_click_away(
    client: httpx.Client, collection: Collection
) -> None:
    """It led to the list of videos where the best hit is of another video."""
    ids = collection.ids()
    asked = {"video_id": str(ids["one.mp4"]), "seconds": "2.5"}
    for more in ({}, {"videos": "more/**"}):
        text = client.get("/", params=asked | more).text
        assert f'More like <a href="/videos/{ids["one.mp4"]}?t=2.5">one.mp4</a>' in text
