"""Run threads that communicate by queues, end together, and report their errors."""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

_PATIENCE_SECONDS = 0.1
"""How often a waiting thread checks whether it should end."""


class Stopped(Exception):
    """Raised in a thread that should end."""


class Threads:
    """The threads of one run.

    Args:
        on_crash: called with the error that ended a thread, in that thread.
    """

    def __init__(self, on_crash: Callable[[BaseException], None]) -> None:
        self._on_crash = on_crash
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def stopping(self) -> bool:
        """Return whether the threads should end."""
        return self._stop.is_set()

    def spawn(self, name: str, body: Callable[..., None], *args: Any) -> None:
        """Run ``body`` in a new thread."""

        def guarded() -> None:
            try:
                body(*args)
            except Stopped:
                pass
            except BaseException as error:
                with contextlib.suppress(Stopped):
                    self._on_crash(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Tell all threads to end, without waiting for them."""
        self._stop.set()

    def join(self) -> None:
        """Wait until all threads have ended."""
        for thread in self._threads:
            thread.join()

    def put(self, target: "queue.Queue[Any]", item: Any) -> None:
        """Put ``item`` when the queue has room.

        Raises:
            Stopped: the threads should end.
        """
        while not self.stopping:
            with contextlib.suppress(queue.Full):
                return target.put(item, timeout=_PATIENCE_SECONDS)
        raise Stopped

    def get(self, source: "queue.Queue[Any]") -> Any:
        """Return the next item when there is one.

        Raises:
            Stopped: the threads should end.
        """
        while not self.stopping:
            with contextlib.suppress(queue.Empty):
                return source.get(timeout=_PATIENCE_SECONDS)
        raise Stopped

    def wait(self, condition: threading.Condition) -> None:
        """Wait for ``condition``, which is held, to be notified; may return early.

        Raises:
            Stopped: the threads should end.
        """
        if self.stopping:
            raise Stopped
        condition.wait(timeout=_PATIENCE_SECONDS)
