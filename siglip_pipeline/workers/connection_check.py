"""Notice that the broker went away in the moment after a worker connected.

Celery reads the first events of a new connection in `celery.worker.loops._quick_drain`, which drops
most errors. If the broker goes away in that tenth of a second, the worker waits on a closed socket
forever: it takes no step, and connects to no broker that comes back.
"""

from typing import Any, Final

from celery import bootsteps

CHECK_SECONDS: Final = 5.0


class ConnectionCheck(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Let the worker connect again once its connection is found closed; part of its consumer."""

    requires = ("celery.worker.consumer:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Look at the connection every few seconds, while no step is at work."""
        self._timer = consumer.timer.call_repeatedly(CHECK_SECONDS, self._check, (consumer,))

    def stop(self, consumer: Any) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, consumer: Any) -> None:
        if consumer.connection is not None and not consumer.connection.connected:
            # Celery takes this for a lost connection.
            raise ConnectionResetError("the broker closed the connection of this worker")
