"""The guard alone, around a small application: what it counts, lets through and answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from siglip_pipeline.settings import Settings
from siglip_pipeline.text.secret import Secret
from siglip_pipeline.web.guard import GUARD_ANSWERS, MAX_BODIES, SECURITY_HEADERS, Guard
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.signatures import MediaSignatures

KEY = "a-key-of-more-than-16-characters"
LIMIT = 1024
"""Bytes of the largest body."""
OWN_HEADERS = [(b"referrer-policy", b"no-referrer"), (b"vary", b"accept"), (b"vary", b"cookie")]


def guarded(
    app: Callable[[Scope, Receive, Send], Awaitable[None]],
    signatures: MediaSignatures | None = None,
    **values: Any,
) -> Guard:
    defaults = {"http_requests_per_second": 0, "http_max_body_mib": LIMIT / 2**20}
    settings = Settings.load(database_url="postgresql://unused/", **{**defaults, **values})
    return Guard(app, settings, signatures)


def request(path: str = "/api/videos", query: bytes = b"", **headers: str) -> Scope:
    sent = {"host": "localhost"} | {n.replace("_", "-"): v for n, v in headers.items()}
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "client": ("127.0.0.1", 5),
    }


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body, and send its size."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": OWN_HEADERS})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def _ask(guard: Guard, scope: Scope, *chunks: bytes) -> tuple[int, bytes, list[Any]]:
    sent: list[Message] = []
    left = [*chunks] or [b""]

    async def receive() -> Message:
        chunk = left.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    try:
        await guard(scope, receive, send)
    except HttpError as error:  # the application answers it
        return error.status_code, error.message.encode(), []
    return sent[0]["status"], sent[1]["body"], sent[0]["headers"]


def ask(guard: Guard, scope: Scope, *chunks: bytes) -> tuple[int, bytes, list[Any]]:
    answer = asyncio.run(_ask(guard, scope, *chunks))
    described = {200, 204, 303, 503} | GUARD_ANSWERS.keys()
    assert answer[0] in described, "the API's description does not name it"
    return answer


def test_a_body_has_at_most_its_limit_in_all() -> None:
    guard = guarded(_answer)
    assert ask(guard, request(), bytes(LIMIT))[:2] == (200, b"1024")
    assert ask(guard, request(), bytes(LIMIT - 1), b"x")[:2] == (200, b"1024")
    status, said, _ = ask(guard, request(), bytes(LIMIT), b"x")
    assert status == 413
    assert said == b"the body is larger than 0.000977 MiB (SIGLIP_HTTP_MAX_BODY_MIB)"
    assert ask(guard, request(), bytes(LIMIT))[0] == 200, "what was refused is forgotten"


@pytest.mark.parametrize(
    ("length", "status"),
    [("1024", 200), ("0", 200), ("1025", 413), ("-1", 413), ("1e3", 413), ("", 413), ("\xb2", 413)],
)
def test_a_body_is_refused_by_the_length_that_it_claims(length: str, status: int) -> None:
    scope = request()
    scope["headers"].append((b"content-length", length.encode("latin-1")))
    assert ask(guarded(_answer), scope)[0] == status


def test_the_bodies_of_all_requests_have_a_limit_together() -> None:
    async def fill() -> list[int]:
        going_on = asyncio.Event()

        async def hold(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await going_on.wait()
            if scope["path"] == "/api/broken":
                raise RuntimeError
            await _answer(scope, receive, send)

        guard = guarded(hold)
        held = [
            asyncio.create_task(_ask(guard, request(path), bytes(LIMIT), b""))
            for path in ["/api/broken"] + ["/api/videos"] * (MAX_BODIES - 1)
        ]
        await asyncio.sleep(0.01)
        statuses = [(await _ask(guard, request(), b"x"))[0]]
        going_on.set()
        for task in held:
            with suppress(RuntimeError):
                await task
        refilled = [_ask(guard, request(), bytes(LIMIT), b"") for _ in range(MAX_BODIES)]
        return statuses + [status for status, *_ in await asyncio.gather(*refilled)]

    assert asyncio.run(fill()) == [503] + [200] * MAX_BODIES


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/videos", 2),
        ("/api/thumbnails/1", 20),
        ("/static/app.css", 20),
        ("/api/videos/1/stream", 20),
        ("/healthz", 2),
    ],
)
def test_pictures_of_a_page_count_a_tenth(path: str, allowed: int) -> None:
    guard = guarded(_answer, http_requests_per_second=1e-3, http_request_burst=2)
    answers = [ask(guard, request(path)) for _ in range(allowed + 1)]
    assert [status for status, *_ in answers] == [200] * allowed + [429]
    _, said, headers = answers[-1]
    seconds = int(dict(headers)[b"retry-after"])
    assert 0 < seconds <= 1000
    assert f"too many requests from 127.0.0.1; try again in {seconds} s".encode() in said


def test_guesses_of_the_key_are_limited() -> None:
    guard = guarded(_answer, api_key=KEY, http_requests_per_second=1e-3, http_request_burst=2)
    guesses = [ask(guard, request(x_api_key=f"guess-{n}"))[0] for n in range(3)]
    assert guesses == [401, 401, 429]
    assert ask(guard, request(x_api_key=KEY))[0] == 429


@pytest.mark.parametrize(
    ("path", "open_to_all"),
    [
        *[("/healthz", True), ("/readyz", True), ("/login", True), ("/static/a.js", True)],
        *[("/healthz/x", False), ("/", False), ("/static", False), ("/api/videos", False)],
    ],
)
def test_what_needs_no_key(path: str, open_to_all: bool) -> None:
    guard = guarded(_answer, api_key=KEY)
    assert ask(guard, request(path))[0] == (200 if open_to_all else 401)
    assert ask(guard, request(path, x_api_key=KEY))[0] == 200


@pytest.mark.parametrize(
    ("path", "query"), [("/api/a\0b", b""), ("/", b"q=%00"), ("/", b"q=a\0"), ("/a", b"%00")]
)
def test_nul_characters_are_refused(path: str, query: bytes) -> None:
    status, said, _ = ask(guarded(_answer), request(path, query, accept="text/html"))
    assert status == 400
    assert b"the request holds a NUL character" in said


def test_a_browser_may_ask_what_it_may_request_where_there_are_media() -> None:
    asked = request(origin="https://a.example", access_control_request_method="POST")
    asked["method"] = "OPTIONS"
    values: dict[str, Any] = {"api_key": KEY, "http_cors_origins": "https://a.example"}
    status, _, headers = ask(guarded(_answer, MediaSignatures(Secret(KEY)), **values), asked)
    assert status == 204
    assert b"POST" in dict(headers)[b"access-control-allow-methods"]
    assert ask(guarded(_answer, **values), asked)[0] in (401, 403)


def test_a_host_that_is_not_this_machine_needs_a_key() -> None:
    foreign = request(host="videos.example")
    assert ask(guarded(_answer), foreign)[0] == 403
    assert ask(guarded(_answer, api_key=KEY), foreign)[0] == 401


@pytest.mark.parametrize(
    ("path", "query", "accept", "target"),
    [
        ("/videos", b"", "text/html", "%2Fvideos"),
        ("/videos", b"q=a&b=1", "text/html,*/*", "%2Fvideos%3Fq%3Da%26b%3D1"),
        ("/videos", b"", "*/*", None),
        ("/api/videos", b"", "text/html", None),
    ],
)
def test_a_person_without_a_key_is_asked_to_sign_in(
    path: str, query: bytes, accept: str, target: str | None
) -> None:
    scope = request(path, query, accept=accept)
    status, _, headers = ask(guarded(_answer, api_key=KEY), scope)
    given = dict(headers)
    assert status == (401 if target is None else 303)
    assert given.get(b"location") == (f"/login?next={target}".encode() if target else None)
    assert (b"www-authenticate" in given) == (target is None)


def test_a_header_that_an_answer_sets_itself_wins() -> None:
    _, _, headers = ask(guarded(_answer), request())
    given: Mapping[bytes, bytes] = dict(headers)
    assert len(given) == len(headers) - 1, "Vary alone is there twice"
    assert given[b"referrer-policy"] == b"no-referrer"
    assert given[b"cache-control"] == b"private, no-cache"
    for name, value in SECURITY_HEADERS.items():
        assert name == "Referrer-Policy" or given[name.lower().encode()] == value.encode()


def test_the_start_of_the_application_passes() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    asyncio.run(guarded(app)({"type": "lifespan"}, nothing, nothing))
    assert seen == ["lifespan"]
