"""Keep a step's message invisible to other workers for as long as its worker lives.

Redis cannot tell that a consumer died. Kombu therefore gives a message to another worker once it
has been unacknowledged for ``visibility_timeout``, which would have to exceed the longest step: a
killed worker's videos would wait for hours. Renewing the time stamp while the step runs lets the
timeout be minutes, as SQS's ChangeMessageVisibility does. RabbitMQ needs none of this: it takes a
message back when the connection closes.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)


@contextmanager
def renewed_lease(app: "Celery", delivery_tag: str, *, every_seconds: float) -> Iterator[None]:
    """Renew the message's lease from a thread for the length of the block.

    If the broker does not answer, the renewal is repeated while the step continues. If the broker
    has given the message to another worker by then, the step runs twice, which must be harmless.

    Args:
        app: whose broker is Redis.
        delivery_tag: the message's, as in the task's ``request.properties``.
        every_seconds: well below the visibility timeout.
    """
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(every_seconds):
            try:
                _touch(app, delivery_tag)
            except Exception as error:
                logger.warning("the lease could not be renewed: %s", error)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1)


def _touch(app: "Celery", delivery_tag: str) -> None:
    """Set the message's time stamp in kombu's index to now; only if it is there (``XX``)."""
    with app.connection_for_write() as connection:
        channel = connection.channel()
        channel.client.zadd(channel.unacked_index_key, {delivery_tag: time.time()}, xx=True)
