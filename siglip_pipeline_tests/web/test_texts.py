"""SQL, markup and patterns in every field that takes text: stored and answered as text."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from siglip_pipeline.errors import QueryError
from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.search import (
    MomentTerm,
    SearchFilter,
    SearchOptions,
    SearchService,
    TextTerm,
)
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline_tests.store import made
from siglip_pipeline_tests.web.conftest import Collection, Served

pytestmark = pytest.mark.timeout(600)

TEXTS = [
    "'; DROP TABLE videos; --",
    "' OR '1'='1",
    '" OR ""="',
    "x') UNION SELECT path FROM videos --",
    "%s %(videos)s {} {0} $1 :name ?",
    "\\'; DROP TABLE videos; --",
    "E'\\\\x00' $$ ; $$ /* */",
    "<script>alert(1)</script>",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "../../etc/passwd",
    "a\u202eb\u0000".replace("\u0000", ""),
    "[/b] [red]",
]


@pytest.fixture(scope="module")
def counts(collection: Collection) -> Iterator[dict[str, int]]:
    """Rows of every table, which must be the same when all is done."""
    with Database(collection.settings.database_url or "") as database:
        before = _counts(database)
        yield before
        assert _counts(database) == before


def _counts(database: Database) -> dict[str, int]:
    with database.connection() as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        return {
            name: (
                connection.execute(f'SELECT count(*) FROM "{name}"'.encode()).fetchone() or (0,)
            )[0]
            for (name,) in tables
        }


@pytest.mark.parametrize("text", TEXTS)
def test_the_query_is_answered_as_the_text_that_it_is(
    client: httpx.Client, counts: dict[str, int], text: str
) -> None:
    answer = client.get("/api/search", params={"q": text, "k": 2})
    assert answer.status_code == 200, answer.text
    assert answer.json()["query"]["text"] == text
    assert len(answer.json()["hits"]) == 2
    following = answer.json()["next"]
    assert client.get(following).json()["query"]["text"] == text
    page = client.get("/", params={"q": text})
    assert page.status_code == 200
    for live in ("<script>alert", "49"):
        assert live not in page.text.replace('height="49', "").split("<ol")[0]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("path", "name", "more"),
    [
        ("/api/search", "videos", {"q": "a red circle"}),
        ("/api/search", "uploaded_since", {"q": "a red circle"}),
        ("/api/search", "from_seconds", {"q": "a red circle"}),
        ("/api/search", "k", {"q": "a red circle"}),
        ("/api/similar", "like", {}),
        ("/api/similar", "video_id", {"seconds": "1"}),
        ("/api/duplicates", "video_id", {}),
        ("/api/videos", "offset", {}),
        ("/login", "next", {}),
    ],
)
def test_every_parameter_takes_or_refuses_it(
    client: httpx.Client,
    counts: dict[str, int],
    path: str,
    name: str,
    more: dict[str, str],
    text: str,
) -> None:
    for suffix in ("", "@1") if name == "like" else ("",):
        answer = client.get(path, params={**more, name: text + suffix})
        assert answer.status_code in (200, 400, 404, 422), answer.text
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"type", "message"}


def test_names_reasons_and_models_are_stored_as_they_are(database: Database) -> None:
    records = VideoStore(database)
    for text in TEXTS:
        AnnouncedUploads(database).register([Upload(path=text, size_bytes=1, modified_at=1.0)])
        records.record_failure(text, stage=Stage.FRAMES, reason=text)
        ModelStore(database).register(made.spec(key=text))
    assert records.paths() == set(TEXTS)
    assert {failure.video: failure.reason for failure in records.failures()} == {
        text: text for text in TEXTS
    }
    assert {model.key for model in ModelStore(database).list()} == set(TEXTS)
    for text in TEXTS:
        assert records.delete(text)
        with pytest.raises(Exception, match="no published index"):
            ModelStore(database).promote(text)
        ModelStore(database).drop(text)
    assert records.paths() == set()


def test_labels_are_words(collection: Collection, counts: dict[str, int]) -> None:
    with Database(collection.settings.database_url or "") as database:
        service = SearchService(database, SearchOptions.from_settings(collection.settings))
        labelled = service.label(TEXTS)
    assert {score.label for video in labelled.videos for score in video.labels} <= set(TEXTS)


@pytest.mark.parametrize("text", ["a\0b", "\udcff", "a\ud800"])
def test_what_is_no_text_is_refused(text: str) -> None:
    for make in (
        lambda: TextTerm(text),
        lambda: MomentTerm(text, 1.0),
        lambda: SearchFilter(videos=(text,)),
    ):
        with pytest.raises(QueryError, match="not valid Unicode"):
            make()


DIFFERENT = "".join(chr(0x4E00 + i) for i in range(900))
"""Each is compared with each wildcard when the database compiles the pattern."""


@pytest.mark.parametrize(
    "pattern",
    [
        "**/" * 13 + "x",
        "**/a" * 20,
        "**/" * 600 + "x",
        "*a" * 900,
        "[!a-z]" * 300 + "*",
        "(a+)+" * 300 + "*",
        "[" * 1000 + "*",
        "\\" * 1000 + "*",
        "{1000}" * 300 + "*",
        "?" * 1900,
        "[\u0001-\uffff]" * 300,
        DIFFERENT + "[!a]" * 250,
        "*".join(DIFFERENT),
        DIFFERENT + "?" * 1000,
    ],
    ids=lambda pattern: f"{pattern[:6]}-{pattern[-1]}",
)
def test_patterns_take_no_time_and_are_taken_or_refused(
    client: httpx.Client, counts: dict[str, int], pattern: str
) -> None:
    began = time.monotonic()
    answer = client.get("/api/search", params={"q": "x", "videos": pattern})
    assert answer.status_code in (200, 400), answer.text
    assert time.monotonic() - began < 10


def test_patterns_are_short(client: httpx.Client) -> None:
    answer = client.get("/api/search", params={"q": "x", "videos": "a" * 2001})
    assert answer.status_code == 400
    assert "at most 2000" in answer.json()["error"]["message"]
    for pattern, said in [
        (DIFFERENT[:128] + "[!b]" * 41, "41 of the wildcards * ? and [, at most 40"),
        (DIFFERENT[:128] + "?", "129 different characters beside wildcards, at most 128"),
    ]:
        answer = client.get("/api/search", params={"q": "x", "videos": pattern})
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
    many = client.get("/api/search", params={"q": "x", "videos": ["a"] * 51})
    assert many.status_code == 422


def _raw(served: Served, request: bytes) -> bytes:
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(request)
            with suppress(OSError):  # the server has hung up already
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while block := connection.recv(65536):
                answer += block
        except (ConnectionResetError, BrokenPipeError):  # it hung up in the middle: refused
            return b""
    return answer


HOST = b"Host: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 30_000 + b"\r\n",
        b"GET /?" + b"a" * 200_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"\0: \0\r\n\r\n",
        b"POST /api/search HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
        b"POST /api/search HTTP/1.1\r\n" + HOST + b"Content-Length: 1e9\r\n\r\n",
        b"POST /api/search HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\n",
        b"POST /api/search HTTP/1.1\r\n"
        + HOST
        + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /%ff%fe/\xff HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    ],
    ids=range(15),
)
def test_requests_that_are_none_are_refused_and_the_next_is_answered(
    served: Served, request_bytes: bytes
) -> None:
    answer = _raw(served, request_bytes)
    assert answer == b"" or b" 4" in answer.split(b"\r\n")[0], answer[:200]
    assert b"Traceback" not in answer
    assert httpx.get(f"{served.url}/healthz", timeout=60).status_code == 200


def test_many_parts_of_a_form_are_refused(client: httpx.Client) -> None:
    files: Any = [("image", (f"{n}.png", b"x", "image/png")) for n in range(50)]
    answer = client.post("/api/search", files=files)
    assert answer.status_code in (400, 413, 415)
    fields = {f"f{n}": "x" for n in range(500)}
    answer = client.post("/api/search", data=fields, files={"image": ("a.png", b"x")})
    assert answer.status_code in (400, 413, 415)


def test_dates_at_the_edge_of_time(client: httpx.Client) -> None:
    for text in ("0001-01-01", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "1e308"):
        answer = client.get("/api/search", params={"q": "x", "uploaded_since": text})
        assert answer.status_code in (200, 400, 422), answer.text
    assert to_json(SearchFilter(uploaded_since=datetime(1, 1, 1, tzinfo=UTC)))
