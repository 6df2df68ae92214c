"""The API for programs: parameters, bodies, vectors, batches, HEAD, gzip, other origins."""

import gzip
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from siglip_pipeline.text.secret import Secret
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.signatures import MediaSignatures
from siglip_pipeline_tests.web.conftest import Collection, Served, sent, serving

pytestmark = pytest.mark.timeout(600)

KEY = "a key of more than sixteen characters".replace(" ", "-")
ORIGIN = "https://app.example"


def _message(answer: httpx.Response) -> str:
    assert answer.status_code == 422, answer.text
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/api/search?q=x&min_propability=0.5", "did you mean min_probability?"),
        ("/api/search?q=x&limit=5", "no such parameter"),
        ("/api/similar?like=one.mp4@1&kk=5", "did you mean k?"),
        ("/api/videos?ofset=5", "did you mean offset?"),
        ("/api/videos/1?k=1", "There are none here"),
        ("/api/thumbnails/1/0.jpg?widht=160", "did you mean width?"),
        ("/api/status?x=1", "no such parameter"),
        ("/healthz?x=1", "There are none here"),
    ],
)
def test_an_unknown_parameter_names_the_nearest(
    client: httpx.Client, path: str, named: str
) -> None:
    assert named in _message(client.get(path))


def test_no_operation_takes_an_unknown_parameter(client: httpx.Client) -> None:
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        known = path.format(video_id=1, frame_index=0, picture="0" * 32, name="x")
        for method in operations:
            named = _message(client.request(method.upper(), known, params={"unknwon": "1"}))
            assert "unknwon: no such parameter" in named, path


@pytest.mark.parametrize(
    "path",
    [
        "/api/search?q=x&k=2&k=3",
        "/api/similar?like=one.mp4@1&k=2&k=2",
        "/api/videos?limit=2&limit=3",
        "/api/labels?label=x&video_id=1&video_id=2",
    ],
)
def test_a_parameter_that_is_given_twice_is_not_left_out(client: httpx.Client, path: str) -> None:
    assert "given more than once" in _message(client.get(path))


def test_lists_are_given_more_than_once(client: httpx.Client) -> None:
    for path in ("/api/search?q=x&videos=one.mp4&videos=old.avi", "/api/labels?label=x&label=y"):
        assert client.get(path).status_code == 200, path


def test_a_picture_has_each_parameter_once(client: httpx.Client, picture: Path) -> None:
    files = {"image": picture.read_bytes()}
    for address, form in ((["2"], ["3"]), ([], ["2", "3"])):
        answer = client.post("/api/search", params={"k": address}, data={"k": form}, files=files)
        assert "k: given more than once" in _message(answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/search", b'{"q": "x", "k": 2, "q": "y"}'),
        ("/api/search/batch", b'{"queries": [{"q": "x", "q": "y"}]}'),
        ("/api/embed", b'{"texts": ["x"], "texts": ["y"]}'),
        ("/api/sign", b'{"urls": [], "urls": ["/api/videos/1/stream"]}'),
    ],
)
def test_a_name_that_json_holds_twice_is_refused(
    client: httpx.Client, path: str, body: bytes
) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert "given more than once" in _message(answer)


def _booleans(schema: dict[str, Any], components: dict[str, Any]) -> tuple[Any, list[str]]:
    """A document in which each number of a schema is `true`, and where those are."""
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    kinds = {kind.get("type"): kind for kind in (schema, *schema.get("anyOf", ()))}
    if "integer" in kinds or "number" in kinds:
        return True, [""]
    if "array" in kinds:
        item, places = _booleans(kinds["array"]["items"], components)
        return [item], [f".0{place}" for place in places]
    document, found = {}, []
    for name, field in kinds.get("object", {}).get("properties", {}).items():
        value, places = _booleans(field, components)
        if places:
            document[name] = value
            found += [f".{name}{place}" for place in places]
    return document, found


def test_a_boolean_is_no_number_in_any_body(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    refused = 0
    for path, operations in description["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        document, places = _booleans(schema, description["components"]["schemas"])
        if places:
            said = _message(client.post(path.format(name="x"), json=document)).split("; ")
            wrong = {place.lstrip(".") + "='True': Input should be a " for place in places}
            assert all(any(start in one for one in said) for start in wrong), (path, wrong, said)
            refused += len(places)
    assert refused >= 20, "the description has these fields"


def test_whole_numbers_may_be_written_with_a_point(client: httpx.Client) -> None:
    """JSON has one kind of number: 2.0 is 2."""
    assert len(_hits(client.post("/api/search", json={"q": "a star", "k": 2.0}))) == 2
    assert "k='2.5'" in _message(client.post("/api/search", json={"q": "a star", "k": 2.5}))


def test_the_last_of_many_names_is_refused_at_once(client: httpx.Client) -> None:
    """The event loop reads a body: nobody else is answered meanwhile."""
    names = [f'"{number}": 0' for number in range(60_000)]
    body = "{" + ", ".join([*names, names[-1]]) + "}"
    headers = {"content-type": "application/json"}
    answer = client.post("/api/search", content=body, headers=headers, timeout=10)
    assert "59999: given more than once" in _message(answer)


@pytest.mark.parametrize("kind", ["application/json", "image/jpeg"])
def test_a_compressed_body_is_refused_with_the_way_out(client: httpx.Client, kind: str) -> None:
    headers = {"content-type": kind, "content-encoding": "gzip"}
    answer = client.post("/api/search", content=gzip.compress(b'{"q": "x"}'), headers=headers)
    assert answer.status_code == 415
    assert "'gzip': send the body as it is" in answer.json()["error"]["message"]


def test_every_list_has_pages(client: httpx.Client, collection: Collection) -> None:
    assert client.get("/api/folders?limit=1").json()["next"] is None
    assert client.get("/api/folders?limit=1&offset=1").json()["folders"] == []
    address = f"/api/videos/{collection.ids()['one.mp4']}/frames"
    whole = client.get(address, params={"limit": 500}).json()
    assert whole["next"] is None
    following: str | None = f"{address}?limit=5&offset=0&from=1"
    frames = []
    while following is not None:
        page = client.get(following).json()
        assert page["total"] == client.get(address, params={"from": 1}).json()["total"]
        frames += page["frames"]
        following = page["next"]
    assert frames == [frame for frame in whole["frames"] if frame["time_seconds"] >= 1]
    assert client.get(address, params={"offset": 99}).json()["total"] == whole["total"]


def _hits(answer: httpx.Response) -> list[tuple[str, int]]:
    assert answer.status_code == 200, answer.text
    return [(hit["video"], hit["frame_index"]) for hit in answer.json()["hits"]]


def test_a_form_holds_the_filters_beside_the_picture(client: httpx.Client, picture: Path) -> None:
    files = {"image": picture.read_bytes()}
    answer = client.post(
        "/api/search", files=files, data={"k": "3", "videos": ["*.avi", "one.mp4"]}
    )
    assert len(_hits(answer)) == 3
    assert {video for video, _ in _hits(answer)} <= {"old.avi", "one.mp4"}
    assert answer.json()["query"]["filter"] == {"videos": ["*.avi", "one.mp4"]}
    by_address = client.post("/api/search?k=3&videos=*.avi&videos=one.mp4", files=files)
    assert _hits(by_address) == _hits(answer)
    assert "did you mean max_per_video?" in _message(
        client.post("/api/search", files=files, data={"max_per_vidio": "1"})
    )
    assert "k='0'" in _message(client.post("/api/search", files=files, data={"k": "0"}))


def test_words_and_a_picture_together(
    client: httpx.Client, collection: Collection, picture: Path
) -> None:
    text = collection.films["one.mp4"].timeline[1][2].caption
    files = {"image": picture.read_bytes()}
    both = client.post("/api/search", files=files, data={"q": text, "k": "20"})
    terms = both.json()["query"]["mix"]
    assert [set(term) - {"weight"} for term in terms] == [{"text"}, {"image"}]
    assert _hits(both) != _hits(client.post("/api/search", files=files, data={"k": "20"}))


def test_a_picture_is_searched_by_again_without_sending_it(
    client: httpx.Client, picture: Path
) -> None:
    first = client.post("/api/search?k=4", files={"image": picture.read_bytes()})
    name = first.json()["query"]["picture"]
    again = client.get("/api/search", params={"picture": name, "k": 8})
    assert _hits(again)[:4] == _hits(first)
    following = client.get(first.json()["next"])
    assert _hits(following) == _hits(again)[4:]
    assert client.get(f"/api/pictures/{name}.jpg").headers["content-type"] == "image/jpeg"
    unknown = client.get("/api/search", params={"picture": "0" * 32})
    assert unknown.status_code == 404
    assert "search by it again" in unknown.json()["error"]["message"]


def test_a_long_text_is_said_to_be_truncated(client: httpx.Client) -> None:
    query = client.get("/api/search", params={"q": "a red circle " * 30, "k": 1}).json()["query"]
    assert query["truncated"] is True
    assert query["tokens"] > 64
    assert "truncated" not in client.get("/api/search?q=a+star&k=1").json()["query"]


def test_vectors_go_out_and_come_in(client: httpx.Client, collection: Collection) -> None:
    texts = ["a red circle", "a blue star"]
    embedded = client.post("/api/embed", json={"texts": texts}).json()
    assert embedded["model"] == collection.settings.model_name
    vectors = [item["vector"] for item in embedded["items"]]
    assert {len(vector) for vector in vectors} == {embedded["dimensions"]}
    assert math.hypot(*vectors[0]) == pytest.approx(1, abs=1e-4)
    body = {"vector": vectors[0], "vector_kind": "text", "k": 5}
    by_vector = client.post("/api/search", json=body)
    by_text = client.get("/api/search", params={"q": texts[0], "k": 5})
    assert _hits(by_vector) == _hits(by_text)
    short = client.post("/api/search", json={"vector": [1.0, 2.0]})
    assert short.status_code == 400
    assert "numbers" in short.json()["error"]["message"]
    wrongs: list[Any] = [{"texts": "a star"}, {"text": ["a star"]}, []]
    for wrong in wrongs:
        assert client.post("/api/embed", json=wrong).status_code == 422


def test_a_picture_is_embedded(client: httpx.Client, picture: Path) -> None:
    raw = client.post(
        "/api/embed", content=picture.read_bytes(), headers={"Content-Type": "image/png"}
    )
    assert len(raw.json()["items"]) == 1
    form = client.post("/api/embed", files={"image": picture.read_bytes()})
    assert form.json() == raw.json()


def test_frames_bring_their_vectors(client: httpx.Client, collection: Collection) -> None:
    address = f"/api/videos/{collection.ids()['one.mp4']}/frames"
    frames = client.get(address, params={"include": "vector", "limit": 3}).json()["frames"]
    assert [np.linalg.norm(frame["vector"]) for frame in frames] == pytest.approx([1] * 3, abs=1e-2)
    hits = client.post("/api/search", json={"vector": frames[1]["vector"], "k": 1}).json()["hits"]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
    assert "vector" not in client.get(address).json()["frames"][0]


def test_several_searches_at_once(client: httpx.Client) -> None:
    queries: list[dict[str, Any]] = [
        {"q": "a red circle", "k": 2},
        {"like": "one.mp4@3", "k": 3, "videos": ["*.avi"]},
        {"q": "a blue star", "k": 2, "offset": 2},
    ]
    answers = client.post("/api/search/batch", json={"queries": queries}).json()["results"]
    assert answers[0] == client.get("/api/search?q=a+red+circle&k=2").json()
    similar = client.get("/api/similar?like=one.mp4@3&k=3&videos=*.avi").json()
    assert answers[1]["hits"] == similar["hits"]
    assert answers[2] == client.get("/api/search?q=a+blue+star&k=2&offset=2").json()
    wrong = client.post("/api/search/batch", json={"queries": [{"q": "x", "vidoes": ["a"]}]})
    assert "did you mean videos?" in _message(wrong)
    many = client.post("/api/search/batch", json={"queries": [{"q": "x"}] * 33})
    assert "SIGLIP_HTTP_MAX_BATCH" in _message(many)


@pytest.mark.parametrize(
    "path", ["/", "/api/search?q=a+star", "/api/videos", "/healthz", "/openapi.json", "/docs"]
)
def test_head_is_answered_as_get(client: httpx.Client, path: str) -> None:
    plain = {"Accept-Encoding": "identity"}
    head, get = client.head(path, headers=plain), client.get(path, headers=plain)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]


def test_answers_are_compressed_and_media_are_not(
    client: httpx.Client, collection: Collection
) -> None:
    accepts = {"Accept-Encoding": "gzip"}
    assert client.get("/openapi.json", headers=accepts).headers["content-encoding"] == "gzip"
    assert client.get("/static/app.css", headers=accepts).headers["content-encoding"] == "gzip"
    video = f"/api/videos/{collection.ids()['one.mp4']}"
    hits = client.get("/api/search?q=a+star&k=10", headers=accepts)
    assert "content-encoding" not in hits.headers, "compressing them takes longer than sending"
    for path in (f"{video}/stream", f"/api/thumbnails/{collection.ids()['one.mp4']}/0.jpg"):
        assert "content-encoding" not in client.get(path, headers=accepts).headers


@pytest.fixture(scope="module")
def guarded(collection: Collection) -> Iterator[Served]:
    """A service with a key, that pages of one other origin may use."""
    changes = {"api_key": KEY, "http_cors_origins": f"{ORIGIN}, http://localhost:5173"}
    with serving(collection.settings, **changes) as running:
        yield running


def test_a_listed_origin_may_use_the_api(guarded: Served) -> None:
    client = guarded.client
    preflight = client.options(
        "/api/search",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "authorization",
        },
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    browser = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    answer = client.get("/api/search?q=a+star", headers={**browser, "X-API-Key": KEY})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers
    keyless = client.get("/api/search?q=a+star", headers=browser)
    assert keyless.status_code == 401
    assert keyless.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("origin", ["https://evil.example", f"{ORIGIN}.evil.example", "null"])
def test_other_origins_may_not(guarded: Served, origin: str) -> None:
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", "X-API-Key": KEY}
    answer = guarded.client.get("/api/search?q=a+star", headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    preflight = {**headers, "Access-Control-Request-Method": "GET"}
    assert guarded.client.options("/api/search", headers=preflight).status_code == 403
    page = guarded.client.get("/", headers={**headers, "Origin": ORIGIN})
    assert page.status_code == 403, "pages are not part of the API"


def test_signed_addresses_open_media_for_some_time(guarded: Served, collection: Collection) -> None:
    video_id = collection.ids()["one.mp4"]
    paths = [f"/api/thumbnails/{video_id}/0.jpg?width=160", f"/api/videos/{video_id}/stream"]
    key = {"X-API-Key": KEY}
    assert guarded.client.get(paths[0]).status_code == 401
    signed = guarded.client.post(
        "/api/sign", json={"urls": paths, "seconds": 60}, headers=key
    ).json()["urls"]
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    for path, address in zip(paths, signed, strict=True):
        answer = guarded.client.get(address, headers=elsewhere)
        assert sent(answer) == sent(guarded.client.get(path, headers=key))
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert guarded.client.get(signed[0].replace("width=160", "width=640")).status_code == 403
    other = signed[1].replace(f"/{video_id}/", f"/{video_id + 1}/")
    assert guarded.client.get(other).status_code == 403
    query = signed[0].partition("?")[2]
    assert guarded.client.get(f"/api/search?q=a+star&{query}").status_code == 401
    refused = guarded.client.post("/api/sign", json={"urls": ["/api/status"]}, headers=key)
    assert "cannot be signed" in _message(refused)


def test_a_signature_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    signatures = MediaSignatures(Secret(KEY))
    path, _, query = signatures.sign("/api/videos/7/stream", seconds=60).partition("?")
    assert signatures.allow(path, query)
    with pytest.raises(HttpError, match="belong"):
        MediaSignatures(Secret("another-key-of-the-service")).allow(path, query)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    with pytest.raises(HttpError, match="expired"):
        signatures.allow(path, query)


def test_operations_have_stable_names_and_media_have_bodies(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    names = {
        operation["operationId"] for path in schema["paths"].values() for operation in path.values()
    }
    assert names == {
        *("search_by_text", "search_by_picture", "search_batch", "search_similar", "embed"),
        "explain",
        *(
            "list_videos",
            "list_folders",
            "get_video",
            "list_frames",
            "label_videos",
            "list_duplicates",
        ),
        *("get_thumbnail", "get_upload", "get_clip", "get_picture", "sign_urls"),
        *("get_playable", "make_playable", "get_playable_file"),
        *("list_watches", "list_watch_hits", "list_watch_moments", "calibrate_watch"),
        "list_evaluations",
        *("get_status", "healthz", "readyz"),
    }
    binary = {"type": "string", "format": "binary"}
    paths = schema["paths"]
    thumbnail = paths["/api/thumbnails/{video_id}/{frame_index}.jpg"]["get"]["responses"]["200"]
    assert thumbnail["content"]["image/jpeg"]["schema"] == binary
    upload = paths["/api/videos/{video_id}/stream"]["get"]["responses"]["206"]
    assert upload["content"]["video/*"]["schema"] == binary
    body = paths["/api/search"]["post"]["requestBody"]["content"]
    assert body["image/*"]["schema"] == binary
    assert {"image", "q", "k", "videos", "min_probability"} <= set(
        body["multipart/form-data"]["schema"]["properties"]
    )
    assert "StatusDocument" in schema["components"]["schemas"]


def test_a_client_that_is_generated_from_the_description_searches(
    served: Served, collection: Collection
) -> None:
    import aiopenapi3  # here: every process of a run collects this file

    api = aiopenapi3.OpenAPI.load_sync(f"{served.url}/openapi.json")
    found = api._.search_by_text(parameters={"q": "a red circle", "k": 2})
    assert len(found.hits) == 2
    assert found.hits[0].video in collection.films
    page = api._.list_videos(parameters={"limit": 2})
    assert page.total == 4
    video = api._.get_video(parameters={"video_id": found.hits[0].video_id})
    assert video.timeline[0].frame_index == 0
    assert api._.get_status().videos.indexed == 3
    frames = api._.list_frames(parameters={"video_id": video.video_id, "limit": 2})
    assert frames.total == 12
