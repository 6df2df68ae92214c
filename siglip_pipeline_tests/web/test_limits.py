"""Who may ask, and for how much."""

import io
import struct
import zlib
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from siglip_pipeline.errors import LaunchError
from siglip_pipeline.services.binding import check_exposure, is_loopback
from siglip_pipeline.settings import Settings
from siglip_pipeline.text.url_host import url_host
from siglip_pipeline.web.limits import TokenBuckets
from siglip_pipeline_tests.png_chunks import png_of
from siglip_pipeline_tests.web.conftest import Collection, serving

pytestmark = pytest.mark.timeout(600)

KEY = "a-key-of-more-than-16-characters"


@pytest.fixture(scope="module")
def locked(collection: Collection) -> Iterator[httpx.Client]:
    with serving(collection.settings, api_key=KEY, http_max_body_mib=0.1) as running:
        yield running.client


@pytest.mark.parametrize("path", ["/api/videos", "/api/search?q=x", "/openapi.json", "/nothing"])
def test_without_the_key_nothing_is_told(locked: httpx.Client, path: str) -> None:
    for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}):
        answer = locked.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "Unauthorized"
        assert "Bearer" in answer.headers["www-authenticate"]


@pytest.mark.parametrize("headers", [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}])
def test_the_key_opens(locked: httpx.Client, headers: dict[str, str]) -> None:
    assert locked.get("/api/videos", headers=headers).json()["total"] == 4


def test_health_needs_no_key(locked: httpx.Client) -> None:
    assert locked.get("/healthz").status_code == 200
    assert locked.get("/readyz").status_code == 200


def test_a_browser_signs_in_and_comes_back(locked: httpx.Client) -> None:
    html = {"Accept": "text/html"}
    sent_away = locked.get("/videos?offset=0", headers=html)
    assert sent_away.status_code == 303
    form = locked.get(sent_away.headers["location"], headers=html)
    assert 'value="/videos?offset=0"' in form.text
    wrong = locked.post("/login", data={"key": "wrong", "next": "/videos"}, headers=html)
    assert wrong.status_code == 401
    assert "not the key" in wrong.text
    right = locked.post("/login", data={"key": KEY, "next": "/videos"}, headers=html)
    assert (right.status_code, right.headers["location"]) == (303, "/videos")
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert KEY not in cookie
    session = {"Cookie": cookie.partition(";")[0]}
    assert locked.get("/videos", headers=session).status_code == 200
    assert locked.get("/videos", headers={"Cookie": "siglip_session=0"}).status_code == 401


@pytest.mark.parametrize("target", ["//evil.example/", "https://evil.example/", "/\\evil", "x"])
def test_signing_in_leads_to_no_other_site(locked: httpx.Client, target: str) -> None:
    answer = locked.post("/login", data={"key": KEY, "next": target})
    assert answer.headers["location"] == "/"


def test_bodies_are_limited_whether_or_not_their_size_is_said(locked: httpx.Client) -> None:
    headers = {"X-API-Key": KEY, "Content-Type": "image/png"}
    said = locked.post("/api/search", content=b"x" * 200_000, headers=headers)
    unsaid = locked.post("/api/search", content=iter([b"x" * 50_000] * 4), headers=headers)
    for answer in (said, unsaid):
        assert answer.status_code == 413
        assert "0.1 MiB" in answer.json()["error"]["message"]


def _png(width: int, height: int) -> bytes:
    """A tiny file that says it holds a huge picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return png_of((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))


@pytest.mark.parametrize("size", [(8000, 8000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_huge_picture_is_refused_by_its_header(
    client: httpx.Client, size: tuple[int, int]
) -> None:
    answer = client.post("/api/search", content=_png(*size), headers={"Content-Type": "image/png"})
    assert answer.status_code == 413, answer.text
    assert "pixels" in answer.json()["error"]["message"]


def test_a_picture_is_turned_upright(client: httpx.Client, picture: object) -> None:
    with Image.open(str(picture)) as upright:
        lying = upright.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown, it is to be turned by 90 degrees clockwise
    buffer = io.BytesIO()
    lying.save(buffer, "PNG", exif=exif)
    headers = {"Content-Type": "image/png"}
    turned = client.post("/api/search", content=buffer.getvalue(), headers=headers).json()["hits"][
        0
    ]
    with open(str(picture), "rb") as file:  # noqa: PTH123
        plain = client.post("/api/search", content=file.read(), headers=headers).json()["hits"][0]
    assert turned["frame_index"] == plain["frame_index"]
    assert turned["score"] == pytest.approx(plain["score"], abs=1e-3)


def test_a_client_that_asks_too_often_is_told_when_to_come_back(collection: Collection) -> None:
    with serving(
        collection.settings, http_requests_per_second=0.001, http_request_burst=2
    ) as running:
        answers = [running.client.get("/api/videos") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert int(answers[2].headers["retry-after"]) > 60
        assert answers[2].json()["error"]["type"] == "TooManyRequests"


def test_a_bucket_fills_with_time_and_each_client_has_its_own() -> None:
    now = [0.0]
    buckets = TokenBuckets(per_second=2, burst=4, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0]
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("b") == 0
    now[0] = 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a", cost=0.1) > 0
    now[0] = 1000.0
    assert [buckets.take("a") > 0 for _ in range(5)] == [False] * 4 + [True]


def test_a_foreign_host_name_is_refused_while_there_is_no_key(
    client: httpx.Client, locked: httpx.Client
) -> None:
    for host in ("evil.example", "evil.example:8000", "192.168.0.9", ""):
        assert client.get("/api/videos", headers={"Host": host}).status_code == 403
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/api/videos", headers={"Host": host}).status_code == 200
    headers = {"Host": "search.example", "X-API-Key": KEY}
    assert locked.get("/api/videos", headers=headers).status_code == 200


def test_other_addresses_than_loopback_need_a_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.9"):
        check_exposure(Settings.load(host=host))
    for host in ("0.0.0.0", "::", "192.168.0.9", "search.example", ""):
        with pytest.raises(LaunchError, match="SIGLIP_API_KEY"):
            check_exposure(Settings.load(host=host))
        check_exposure(Settings.load(host=host, api_key=KEY))


def test_hosts_in_urls() -> None:
    assert [url_host(h) for h in ("127.0.0.1", "::1", "0.0.0.0", "::")] == [
        "127.0.0.1",
        "[::1]",
        "127.0.0.1",
        "[::1]",
    ]
    assert is_loopback("[::1]")


@pytest.mark.parametrize("path", ["/", "/api/videos", "/nothing", "/healthz", "/api/search?q=%00"])
def test_every_answer_has_the_security_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "server" not in headers or "uvicorn" in headers["server"]
