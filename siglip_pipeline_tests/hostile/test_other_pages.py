"""What pages of other sites can have a browser send to the search service."""

from collections.abc import Iterator

import httpx
import pytest

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.web.conftest import serving

pytestmark = pytest.mark.timeout(300)

LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
FRAME = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}


@pytest.fixture(scope="module")
def client(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("other_pages")
    with (
        fresh_database(postgres) as url,
        serving(collection_settings(home, url)) as served,
    ):
        yield served.client


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "none"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "of tomorrow"},
        {"Sec-Fetch-Site": "cross-site", **FRAME},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    ],
    ids=str,
)
def test_what_another_page_sends_is_refused(
    client: httpx.Client, method: str, headers: dict[str, str]
) -> None:
    for path in ("/api/search?q=x", "/", "/login", "/api/videos"):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 403, (path, answer.text)
        assert "pages of other sites may link" in answer.json()["error"]["message"]


def test_a_form_of_another_page_cannot_sign_in(client: httpx.Client) -> None:
    answer = client.post(
        "/login", data={"key": "x"}, headers={"Sec-Fetch-Site": "cross-site", **LINK}
    )
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/", "/videos", "/status", "/login"])
def test_links_to_pages_may_be_followed(client: httpx.Client, path: str) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Accept": "text/html", **LINK}
    assert client.get(path, headers=headers).status_code == 200
    assert client.get("/api/videos", headers=headers).status_code == 403


def test_its_own_pages_people_and_programs_are_let_in(client: httpx.Client) -> None:
    own = str(client.base_url).rstrip("/")
    for headers in (
        {},
        {"Origin": own},
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none", **LINK},
        {"Host": "localhost", "Origin": "http://localhost:80"},
        {"Host": "localhost:443", "Origin": "https://LOCALHOST"},
    ):
        assert client.get("/api/videos", headers=headers).status_code == 200, headers
        # Wrong, and looked at.
        assert client.post("/login", data={"key": "x"}, headers=headers).status_code == 401
