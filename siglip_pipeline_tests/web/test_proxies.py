"""Who the client is: the peer, unless a proxy that is trusted names another one."""

import httpx
import pytest

from siglip_pipeline.errors import SettingsError
from siglip_pipeline.settings import Settings
from siglip_pipeline.web.proxies import behind_proxies, one_client, parse_networks
from siglip_pipeline_tests.web.conftest import Collection, serving

pytestmark = pytest.mark.timeout(600)

TRUSTED = parse_networks("10.0.0.0/8, 127.0.0.1, fd00::/8")


def client(peer: str, *headers: str, trusted: str = "10.0.0.0/8, 127.0.0.1, fd00::/8") -> str:
    scope = {
        "type": "http",
        "client": (peer, 1234),
        "scheme": "http",
        "headers": [(b"x-forwarded-for", value.encode()) for value in headers],
    }
    return str(behind_proxies(scope, parse_networks(trusted))["client"][0])


@pytest.mark.parametrize(
    ("expected", "peer", "headers"),
    [
        ("192.0.2.1", "192.0.2.1", ["203.0.113.9"]),
        ("203.0.113.9", "10.0.0.1", ["203.0.113.9"]),
        ("203.0.113.9", "10.0.0.1", ["1.1.1.1, 203.0.113.9"]),
        ("203.0.113.9", "10.0.0.1", ["1.1.1.1, 203.0.113.9, 10.7.7.7"]),
        ("203.0.113.9", "10.0.0.1", ["1.1.1.1", "203.0.113.9", "10.7.7.7"]),
        ("10.0.0.9", "10.0.0.1", ["10.0.0.9, 10.0.0.2"]),
        ("203.0.113.9", "::ffff:10.0.0.1", ["::ffff:203.0.113.9"]),
        ("203.0.113.9", "10.0.0.1", ["203.0.113.9:4711"]),
        ("2001:db8::1", "fd00::1", ["[2001:db8::1]:4711"]),
        ("10.0.0.1", "10.0.0.1", []),
        ("10.0.0.1", "10.0.0.1", ["somebody"]),
        ("10.0.0.2", "10.0.0.1", ["203.0.113.9, unknown, 10.0.0.2"]),
        ("10.0.0.1", "10.0.0.1", [""]),
        ("testclient", "testclient", ["203.0.113.9"]),
    ],
)
def test_the_client_is_the_last_that_is_no_proxy(
    expected: str, peer: str, headers: list[str]
) -> None:
    assert client(peer, *headers) == expected


def test_nobody_is_trusted_without_being_named() -> None:
    assert client("127.0.0.1", "203.0.113.9", trusted="") == "127.0.0.1"


def test_a_unix_socket_has_no_address() -> None:
    scope: dict[str, object] = {"type": "http", "client": None, "headers": []}
    assert behind_proxies(scope, TRUSTED) is scope


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.1/8", "10.0.0.1;10.0.0.2"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="SIGLIP_TRUSTED_PROXIES"):
        Settings.load(trusted_proxies=text)


def statuses(url: str, addresses: list[str]) -> list[int]:
    with httpx.Client(base_url=url, timeout=60, verify=False) as http:
        return [
            http.get("/api/videos", headers={"X-Forwarded-For": address}).status_code
            for address in addresses
        ]


def test_the_limit_is_of_the_peer_or_of_whom_a_trusted_proxy_names(collection: Collection) -> None:
    limit = {"http_requests_per_second": 0.01, "http_request_burst": 2}
    others = [f"203.0.113.{number}" for number in range(4)]
    with serving(collection.settings, **limit) as running:
        assert statuses(running.url, others) == [200, 200, 429, 429]
    with serving(collection.settings, trusted_proxies="127.0.0.0/8", **limit) as running:
        assert statuses(running.url, others) == [200, 200, 200, 200]
        assert statuses(running.url, [others[0]] * 2) == [200, 429]
        # Who has one address of IPv6 has a whole network of them.
        own = [f"2001:db8:0:1::{number:x}" for number in range(4)]
        assert statuses(running.url, own) == [200, 200, 429, 429]
        assert statuses(running.url, ["2001:db8:0:2::1"]) == [200]


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("testclient", "testclient"),
    ],
)
def test_what_counts_as_one_client(host: str, client: str) -> None:
    assert one_client(host) == client


def test_a_cookie_is_secure_where_the_proxy_adds_tls(collection: Collection) -> None:
    key = "a-key-of-sixteen-characters"
    for trusted, secure in ((None, False), ("127.0.0.1", True)):
        changes = {"api_key": key, "trusted_proxies": trusted}
        with serving(collection.settings, **changes) as running:
            answer = running.client.post(
                "/login", data={"key": key}, headers={"X-Forwarded-Proto": "https"}
            )
            assert ("Secure" in answer.headers["set-cookie"]) is secure
