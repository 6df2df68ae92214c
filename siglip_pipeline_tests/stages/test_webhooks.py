"""Messages about the hits of standing queries, to a real receiver."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from siglip_pipeline.errors import WatchError
from siglip_pipeline.stages.watch_documents import WatchShown
from siglip_pipeline.stages.webhooks import Deliveries, check_webhook, post_json, send_due
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.store.watches import FIRST_RETRY, MOST_ATTEMPTS, WatchHit, WatchStore
from siglip_pipeline.text.secret import Secret
from siglip_pipeline_tests.search.test_watching import LEAST, QUERY, VIDEO, Tower, match
from siglip_pipeline_tests.stages.receiver import Receiver, receiving
from siglip_pipeline_tests.store import made


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def store(database: Database, receiver: Receiver) -> WatchStore:
    """One hit of a watch with a webhook, not sent yet."""
    made.collection(database, videos=4)
    store = WatchStore(database)
    store.add("gate", QUERY, min_probability=LEAST, webhook=Secret(receiver.url))
    assert match(database, Tower()) == 1
    return store


def send(store: WatchStore) -> Deliveries:
    return send_due(store, page_address=lambda path: f"https://page.example/{path}")


def hit(store: WatchStore) -> WatchHit:
    [found] = store.hits()
    return found


def pass_time(database: Database, by: timedelta) -> None:
    with database.connection() as connection:
        connection.execute("UPDATE watch_hits SET next_attempt_at = next_attempt_at - %s", [by])


def test_a_hit_is_sent_once(store: WatchStore, receiver: Receiver, database: Database) -> None:
    assert hit(store).delivery == "waiting"
    assert send(store) == Deliveries(sent=1, failed=0)
    found = hit(store)
    assert (found.delivery, found.failure) == ("sent", None)
    assert found.sent_at is not None
    [message] = receiver.posted
    assert message == {
        "id": found.hit_id,
        "text": f"gate: {VIDEO} at 0:00.0 ({found.hit.probability:.0%})",
        "watch": "gate",
        "query": QUERY,
        "video": VIDEO,
        "video_id": found.hit.video_id,
        "time_seconds": found.hit.time_seconds,
        "media_time_seconds": found.hit.media_time_seconds,
        "start_seconds": 0,
        "end_seconds": 8,
        "score": pytest.approx(found.hit.score, abs=1e-6),
        "probability": pytest.approx(found.hit.probability, abs=1e-6),
        "found_at": found.found_at.isoformat(),
        "url": f"https://page.example/videos/{found.hit.video_id}?t={found.hit.time_seconds:g}",
    }
    assert match(database, Tower()) == 0
    pass_time(database, timedelta(days=1))
    assert send(store) == Deliveries(sent=0, failed=0)
    assert len(receiver.posted) == 1


def test_two_senders_at_once_send_once(
    database: Database, store: WatchStore, receiver: Receiver
) -> None:
    with database.connection() as connection:
        connection.execute(
            """
            INSERT INTO watch_hits (watch_id, video_id, source_sha256, model_key, frame_index,
                time_seconds, start_seconds, end_seconds, score, probability, next_attempt_at)
            SELECT watch_id, video_id, source_sha256, model_key, n, n, 100 + n, 101 + n, score,
                probability, now() FROM watch_hits, generate_series(1, 39) n
            """
        )
    with ThreadPoolExecutor(4) as pool:
        done = [*pool.map(lambda _: send(store), range(4))]
    assert sum(one.sent for one in done) == 40
    assert sorted(message["id"] for message in receiver.posted) == sorted(
        found.hit_id for found in store.hits()
    )


def test_a_failed_message_is_sent_again_later_and_later(
    store: WatchStore, receiver: Receiver, database: Database
) -> None:
    receiver.answers = [500, 503]
    assert send(store) == Deliveries(sent=0, failed=1)
    found = hit(store)
    assert found.delivery == "late"
    assert found.failure == "HTTPError: HTTP Error 500: Internal Server Error"
    assert store.get("gate").late == 1
    assert send(store) == Deliveries(sent=0, failed=0), "not at once"
    pass_time(database, FIRST_RETRY)
    assert send(store).failed == 1
    pass_time(database, FIRST_RETRY)
    assert send(store) == Deliveries(sent=0, failed=0), "the second wait is longer"
    pass_time(database, FIRST_RETRY)
    assert send(store).sent == 1
    assert hit(store).delivery == "sent"
    assert (store.get("gate").late, store.get("gate").failed) == (0, 0)
    assert len({message["id"] for message in receiver.posted}) == 1


def test_a_message_is_given_up_after_the_last_attempt(
    store: WatchStore, receiver: Receiver, database: Database
) -> None:
    receiver.answers = [500] * 100
    for _ in range(MOST_ATTEMPTS + 3):
        send(store)
        pass_time(database, timedelta(days=1))
    assert len(receiver.posted) == MOST_ATTEMPTS
    assert hit(store).delivery == "failed"
    assert (store.get("gate").late, store.get("gate").failed) == (0, 1)


@pytest.mark.parametrize("status", [302, 307])
def test_no_redirect_is_followed(store: WatchStore, receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    assert send(store).failed == 1
    assert receiver.asked == ["POST /hooks/T0P-S3CRET"]


def test_no_message_shows_the_address(store: WatchStore, database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/hooks/T0P-S3CRET?key=S3CRET-T00"
    with database.connection() as connection:
        connection.execute("UPDATE watches SET webhook = %s", [url])
    assert send(store).failed == 1
    failure = hit(store).failure
    assert failure is not None
    assert "refused" in failure
    assert "S3CRET" not in failure
    shown = WatchShown.of(store.get("gate"))
    assert shown.webhook == f"http://127.0.0.1:{port}"
    assert "S3CRET" not in repr(store.get("gate")) + repr(shown)


def test_a_slow_receiver_is_given_up(
    store: WatchStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siglip_pipeline.stages.webhooks._TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with database.connection() as connection:
            connection.execute("UPDATE watches SET webhook = %s", [url])
        began = datetime.now()
        assert send(store).failed == 1
        assert datetime.now() - began < timedelta(seconds=5)
    assert "timed out" in (hit(store).failure or "")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-server\r\n", "the answer is no HTTP (BadStatusLine)"),
        (b"", "the answer is no HTTP (RemoteDisconnected)"),
        (b"HTTP/1.1 500 a\0b\r\nContent-Length: 0\r\n\r\n", "HTTP Error 500: a b"),
    ],
)
def test_an_answer_that_is_no_http_is_a_failure(
    store: WatchStore, database: Database, answer: bytes, said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/S3CRET"
        with database.connection() as connection:
            connection.execute("UPDATE watches SET webhook = %s", [url])
        assert send(store) == Deliveries(sent=0, failed=1)
    failure = hit(store).failure or ""
    assert said in failure
    assert "S3CRET" not in failure


def test_addresses_that_do_not_answer_hold_up_no_other_watch(
    store: WatchStore,
    database: Database,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two watches with five messages each get no answer; three attempts take the whole time."""
    monkeypatch.setattr("siglip_pipeline.stages.webhooks._TIMEOUT_SECONDS", 0.4)
    monkeypatch.setattr("siglip_pipeline.stages.webhooks._BUDGET_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with database.connection() as connection:
            connection.execute(
                """
                WITH dead AS (
                    INSERT INTO watches (name, query, min_probability, webhook)
                    VALUES ('a', 'x', 0.5, %(dead)s), ('b', 'x', 0.5, %(dead)s) RETURNING watch_id
                )
                INSERT INTO watch_hits (watch_id, video_id, source_sha256, model_key, frame_index,
                    time_seconds, start_seconds, end_seconds, score, probability, next_attempt_at)
                SELECT dead.watch_id, video_id, source_sha256, model_key, n, n, n, n + 1, score,
                    probability, now() - interval '1 minute'
                FROM watch_hits, dead, generate_series(1, 5) n
                """,
                {"dead": dead},
            )
        assert send(store) == Deliveries(sent=1, failed=2)
        with database.connection() as connection:
            connection.execute(
                """
                UPDATE watch_hits SET sent_at = NULL, next_attempt_at = now()
                FROM watches w WHERE w.watch_id = watch_hits.watch_id AND w.name = 'gate'
                """
            )
        monkeypatch.setattr("siglip_pipeline.stages.webhooks._BUDGET_SECONDS", 0.2)
        assert send(store) == Deliveries(sent=1, failed=1), "what answers comes first"
    assert len(receiver.posted) == 2


def test_what_is_deleted_is_not_sent(
    store: WatchStore, receiver: Receiver, database: Database
) -> None:
    VideoStore(database).delete(VIDEO)
    assert send(store) == Deliveries(sent=0, failed=0)
    assert receiver.posted == []


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://host/x", "gopher://host/", "host/x", "https://", ""),
        *("https://user:secret@host/", "http://host:port/", "http://[::1/"),
        *("https://host/a secret", "https://host/secret\n", "https://host/secret\x7f"),
        *("https://host/secr\u00e9t", "https://h\u00f6st/secret"),
    ],
)
def test_only_http_addresses_are_taken(url: str) -> None:
    with pytest.raises(WatchError, match="--webhook: give the address of a service") as refused:
        check_webhook(Secret(url))
    assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="is no http or https URL of a host"):
        post_json(Secret(url), {})
