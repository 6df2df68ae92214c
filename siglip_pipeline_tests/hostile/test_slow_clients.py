"""Clients that send little or take little: dropped within their bounds, others are served."""

import json
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.settings import Settings
from siglip_pipeline.store import videos
from siglip_pipeline.store.database import Database
from siglip_pipeline.web.connections import MAX_ADDRESS_BYTES, MAX_HEAD_BYTES
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.web.conftest import Served, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECONDS = 1.5
"""What each phase of a request may take where a test waits for its end."""
PATIENT_SECONDS = 60.0
"""The same where connections must stay until the test has made all of them, if slowly."""
SLACK = 1.5
"""More time than a machine with nothing else to do takes."""
BUSY_SLACK = 15.0
"""The same of a busy one; a client that is not dropped stays for minutes."""
SIZE = 200 * 2**20
HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = (
    b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n"
)
PICTURE = POST.replace(b"/login", b"/api/search").replace(
    b"application/x-www-form-urlencoded", b"image/png"
)
SLOW = POST + b"Content-Length: 1000\r\n\r\n123"
"""Has begun: it does not give way to others."""
RATE = 1000

Connect = Callable[..., socket.socket]


@pytest.fixture(scope="module")
def settings(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    home = tmp_path_factory.mktemp("slow_clients")
    (home / "uploads").mkdir()
    with (home / "uploads" / "large.mp4").open("wb") as upload:
        upload.truncate(SIZE)
    with fresh_database(postgres) as url:
        with Database(url) as database, database.connection() as connection:
            videos.ensure(connection, "large.mp4")
        yield collection_settings(
            home,
            url,
            http_requests_per_second=0,
            http_body_bytes_per_second=RATE,
            http_max_body_mib=1,
            trusted_proxies="127.0.0.4",
            http_max_connections=150,
            http_max_connections_per_address=20,
        )


def limits(seconds: float) -> dict[str, float]:
    """Of each phase of a request."""
    return {f"http_{phase}_seconds": seconds for phase in ("header", "body", "write", "idle")}


@pytest.fixture(scope="module")
def served(settings: Settings) -> Iterator[Served]:
    with serving(settings, **limits(SECONDS)) as running:
        yield running


@pytest.fixture(scope="module")
def patient(settings: Settings) -> Iterator[Served]:
    with serving(settings, **limits(PATIENT_SECONDS)) as running:
        yield running


@contextmanager
def clients(served: Served) -> Iterator[Connect]:
    """Open connections, from an address of this machine and with what is sent first."""
    address = httpx.URL(served.url)
    with ExitStack() as stack:

        def connect(data: bytes = b"", *, source: str = "127.0.0.1") -> socket.socket:
            client = socket.create_connection(
                (address.host, address.port or 0), timeout=30, source_address=(source, 0)
            )
            stack.enter_context(client)
            client.sendall(data)
            return client

        yield connect


def said_until_closed(client: socket.socket) -> bytes:
    """What the server still says before it hangs up."""
    said = b""
    try:
        while block := client.recv(65536):
            said += block
    except ConnectionResetError:
        pass
    return said


def finished(body: socket.socket) -> bytes:
    """What the server answers to the rest of SLOW."""
    body.sendall(b"x" * 997)
    return body.recv(65536)


def has_hung_up(client: socket.socket, data: bytes) -> bool:
    """Send a little more, and see whether the server still listens."""
    client.settimeout(0.25)
    try:
        client.sendall(data)
        return not client.recv(65536)
    except TimeoutError:
        return False
    except OSError:
        return True


def is_served_at_once(served: Served) -> None:
    """A newcomer waits for nobody."""
    took = []
    for _ in range(5):
        began = time.monotonic()
        # Without reading certificates, which takes longer than the answer on a busy machine.
        answer = httpx.get(f"{served.url}/healthz", timeout=60, verify=False)
        assert answer.status_code == 200
        took.append(time.monotonic() - began)
    assert statistics.median(took) < SECONDS / 2, took


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", b""),
        (HEAD[:10], b"408 Request Timeout"),
        (HEAD, b"408 Request Timeout"),
        (POST + b"Content-Length: 1000\r\n\r\n123", b"408 Request Timeout"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\n123\r\n", b"408 Request Timeout"),
        (PICTURE + b"Content-Length: 1000\r\n\r\n123", b"408 Request Timeout"),
        (HEAD + b"Content-Length: 1000\r\n\r\n123", b"200 OK"),  # answered before its body came
    ],
)
def test_a_hundred_half_requests_are_dropped(
    served: Served, sent: bytes, told: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with clients(served) as connect:
        began = time.monotonic()
        slow = [connect(sent) for _ in range(100)]
        is_served_at_once(served)
        for client in slow:
            assert told in said_until_closed(client)
        assert time.monotonic() - began < SECONDS + BUSY_SLACK
    assert not caplog.records  # or each would leave a traceback in the log


DRIPS = [
    (b"", b"\r\n"),
    (HEAD + b"X: ", b"x"),
    (HEAD, b"X: y\r\n"),
    (POST + b"Content-Length: 1000\r\n\r\n", b"x"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\n123\r\n0\r\n", b"X: y\r\n"),
    (HEAD + b"Content-Length: 1000\r\n\r\n", b"x"),
    (HEAD + b"\r\n", b"\r\n"),
    (HEAD + b"\r\n" + HEAD, b"X: y\r\n"),
]


def test_a_drip_puts_off_nothing(served: Served) -> None:
    def drip(sent: bytes, drop: bytes) -> float:
        began = time.monotonic()
        client = connect(sent)
        while not has_hung_up(client, drop) and time.monotonic() - began < SECONDS + BUSY_SLACK:
            time.sleep(0.25)
        return time.monotonic() - began

    with clients(served) as connect, ThreadPoolExecutor(len(DRIPS)) as pool:
        took = pool.map(drip, *zip(*DRIPS, strict=True))
        for case, seconds in zip(DRIPS, took, strict=True):
            assert SECONDS / 2 < seconds < SECONDS + BUSY_SLACK, case


def test_all_bodies_together_are_bounded(patient: Served) -> None:
    size = 2**20  # the largest that is allowed
    with clients(patient) as connect:
        bodies = [connect(PICTURE + b"Content-Length: %d\r\n\r\n" % size) for _ in range(20)]
        for body in bodies[:16]:
            body.sendall(bytes(size - 1))
        is_served_at_once(patient)
        with suppress(OSError):
            bodies[16].sendall(bytes(size - 1))
        assert b" 503 " in bodies[16].recv(65536)
        bodies[0].sendall(b"x")
        assert b" 415 " in bodies[0].recv(65536)  # zeros are no picture


def test_a_slow_body_that_gets_on_is_read(served: Served) -> None:
    with clients(served) as connect:
        began = time.monotonic()
        client = connect(POST + b"Content-Length: 6000\r\n\r\n")
        for _ in range(10):
            time.sleep(0.3)
            client.sendall(b"x" * 600)  # twice the rate that is asked for
        assert b" 401 " in client.recv(65536)  # the form holds no key
        assert time.monotonic() - began > 1.5 * SECONDS


def test_five_hundred_idle_connections_are_in_nobodys_way(patient: Served) -> None:
    with clients(patient) as connect:
        began = time.monotonic()
        idle = [connect() for _ in range(500)]
        for client in idle[400:]:
            client.sendall(HEAD + b"\r\n")
            assert b" 200 OK" in client.recv(65536)
        is_served_at_once(patient)
        for client in idle[:350]:
            assert said_until_closed(client) == b""
        assert time.monotonic() - began < 5 + BUSY_SLACK < PATIENT_SECONDS


def test_connections_that_ask_for_nothing_more_are_dropped(served: Served) -> None:
    with clients(served) as connect:
        began = time.monotonic()
        idle = [connect(HEAD + b"\r\n") for _ in range(50)]
        for client in idle:
            assert b" 200 OK" in said_until_closed(client)
        assert SECONDS / 2 < time.monotonic() - began < SECONDS + BUSY_SLACK


def test_readers_that_take_nothing_are_dropped(served: Served) -> None:
    stream = HEAD.replace(b"/healthz", b"/api/videos/1/stream") + b"\r\n"
    with clients(served) as connect:
        slow = [connect(stream) for _ in range(60)]
        is_served_at_once(served)
        time.sleep(SECONDS + SLACK)
        for client in slow:
            assert len(said_until_closed(client)) < SIZE / 2


def test_readers_that_take_a_byte_at_a_time_are_dropped(served: Served) -> None:
    stream = HEAD.replace(b"/healthz", b"/api/videos/1/stream") + b"\r\n"
    with clients(served) as connect:
        client = connect(stream)
        began = time.monotonic()
        while time.monotonic() - began < SECONDS + SLACK:
            assert client.recv(1)
            time.sleep(0.1)
        assert len(said_until_closed(client)) < SIZE / 2


def test_a_reader_that_gets_on_has_all_of_it(served: Served) -> None:
    stream = HEAD.replace(b"/healthz", b"/api/videos/1/stream") + b"Connection: close\r\n\r\n"
    with clients(served) as connect:
        client = connect(stream)
        taken = 0
        began = time.monotonic()
        while block := client.recv(2**20):
            taken += len(block)
            time.sleep(0.02)
        assert taken > SIZE
        assert time.monotonic() - began > 1.5 * SECONDS


def test_no_address_has_more_than_its_share(patient: Served) -> None:
    with clients(patient) as connect:
        bodies = [connect(SLOW, source="127.0.0.2") for _ in range(20)]
        refused = said_until_closed(connect(HEAD, source="127.0.0.2"))
        assert b" 503 Service Unavailable" in refused
        assert b"retry-after: 5" in refused
        assert b"20 connections from 127.0.0.2 are open (SIGLIP_HTTP_MAX_CONN" in refused
        # A proxy brings many clients, and has no share.
        proxied = [connect(SLOW, source="127.0.0.4") for _ in range(25)]
        assert all(b" 401 " in finished(client) for client in proxied)  # the form holds no key
        # Other addresses have theirs, and one with idle connections has room for one that asks.
        idle = [connect(source="127.0.0.3") for _ in range(21)]
        assert said_until_closed(idle[0]) == b""
        idle[-1].sendall(HEAD + b"\r\n")
        assert b" 200 OK" in idle[-1].recv(65536)
        is_served_at_once(patient)
        assert all(b" 401 " in finished(client) for client in bodies)


def test_those_that_are_dropped_leave_room(served: Served) -> None:
    with clients(served) as connect:
        bodies = [connect(SLOW, source="127.0.0.2") for _ in range(20)]
        assert all(b" 408 " in said_until_closed(client) for client in bodies)
        again = connect(HEAD + b"\r\n", source="127.0.0.2")
        assert b" 200 OK" in again.recv(65536)


def test_more_than_there_is_room_for_are_told_so(patient: Served) -> None:
    with clients(patient) as connect:
        bodies = [connect(SLOW) for _ in range(150)]
        refused = said_until_closed(connect(HEAD))
        assert b" 503 Service Unavailable" in refused
        assert b"150 connections are open (SIGLIP_HTTP_MAX_CONNECTIONS)" in refused
        assert all(b" 401 " in finished(client) for client in bodies)
        is_served_at_once(patient)


@pytest.mark.parametrize(
    ("endless", "status"),
    [
        (HEAD + b"X: " + b"x" * 300_000, 431),
        (HEAD + b"X: y\r\n" * 50_000, 431),
        (b"GET /" + b"x" * 300_000, 414),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 300_000, 431),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 50_000, 431),
    ],
    ids=["value", "headers", "address", "trailer", "trailers"],
)
def test_heads_without_an_end_are_refused(served: Served, endless: bytes, status: int) -> None:
    with clients(served) as connect:
        client = connect()
        with ThreadPoolExecutor(1) as sender:
            sent = sender.submit(client.sendall, endless)
            said = said_until_closed(client)
        assert b" %d " % status in said or isinstance(sent.exception(), OSError)
    is_served_at_once(served)


def refusal(served: Served, request: bytes) -> tuple[int, dict[str, str]]:
    """The status and the error that a request is answered with; `{}` if there is none."""
    with clients(served) as connect:
        client = connect(request)
        head, _, body = said_until_closed(client).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body).get("error", {})


LAST = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize("more", [-1, 0, 1, 38_000])
def test_long_addresses_are_refused_in_json(served: Served, more: int) -> None:
    path = b"/healthz?" if more > 0 else b"/healthz#"  # what is behind # is no parameter
    address = path.ljust(MAX_ADDRESS_BYTES + more, b"x")
    status, error = refusal(served, HEAD.replace(b"/healthz", address) + LAST)
    if more <= 0:
        assert (status, error) == (200, {})
    else:
        assert (status, error["type"]) == (414, "AddressTooLong")
        assert "longer than 32 KiB; POST /api/search" in error["message"]


def test_a_large_head_is_refused_whether_or_not_it_comes_in_one_piece(served: Served) -> None:
    begin = HEAD.replace(b"/healthz", b"/healthz#".ljust(MAX_ADDRESS_BYTES, b"x")) + b"X: "
    names = len(b"Host127.0.0.1XConnectionclose")
    fits = MAX_HEAD_BYTES - MAX_ADDRESS_BYTES - names
    assert refusal(served, begin + b"x" * fits + b"\r\n" + LAST) == (200, {})
    for more in (1, 30_000):
        status, error = refusal(served, begin + b"x" * (fits + more) + b"\r\n" + LAST)
        assert (status, error["type"]) == (431, "HeadersTooLarge")
        assert "larger than 64 KiB" in error["message"]


@pytest.mark.parametrize(
    "no_request",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        HEAD + b"Content-Length: x\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
    ],
    ids=["tls", "http2", "byte", "address", "length", "chunk"],
)
def test_what_is_no_request_is_refused_in_json(served: Served, no_request: bytes) -> None:
    status, error = refusal(served, no_request)
    assert (status, error["type"]) == (400, "BadRequest")
    assert "no request of HTTP/1.1" in error["message"]


def test_requests_in_a_row_are_answered_in_order(served: Served) -> None:
    with clients(served) as connect:
        client = connect((HEAD + b"\r\n") * 50)
        answers = b""
        while answers.count(b'{"status":"ok"}') < 50:
            block = client.recv(65536)
            assert block
            answers += block
        time.sleep(SECONDS / 5)  # kept open for the next one
        client.sendall(HEAD + b"\r\n")
        assert b" 200 OK" in client.recv(65536)


def test_the_service_ends_in_spite_of_them(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    with fresh_database(postgres) as url, ExitStack() as stack:
        with serving(collection_settings(tmp_path, url)) as running:
            connect = stack.enter_context(clients(running))
            for sent in (b"", HEAD, POST + b"Content-Length: 9\r\n\r\n123", HEAD + b"\r\n"):
                for _ in range(20):
                    connect(sent)
            is_served_at_once(running)
            began = time.monotonic()
        assert time.monotonic() - began < 5 + BUSY_SLACK
