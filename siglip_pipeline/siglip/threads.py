"""Threads that work through queues, end together, and never die in silence."""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

_PATIENCE_SECONDS = 0.1
"""How often a waiting thread looks whether it should end."""


class Stopped(Exception):
    """The caller is gone: a thread should end."""


class Threads:
    """The threads of one run.

    Args:
        on_crash: is told, in the thread that it happened in, what a thread died of.
    """

    def __init__(self, on_crash: Callable[[BaseException], None]) -> None:
        self._on_crash = on_crash
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def stopping(self) -> bool:
        """Whether the threads have been told to end."""
        return self._stop.is_set()

    def spawn(self, name: str, body: Callable[..., None], *args: Any) -> None:
        """Run ``body`` in a thread of its own."""

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
        """Tell all threads to end; returns at once."""
        self._stop.set()

    def join(self) -> None:
        """Wait until all threads have ended."""
        for thread in self._threads:
            thread.join()

    def put(self, target: "queue.Queue[Any]", item: Any) -> None:
        """Put ``item`` when there is room.

        Raises:
            Stopped: the threads are to end.
        """
        while not self.stopping:
            with contextlib.suppress(queue.Full):
                return target.put(item, timeout=_PATIENCE_SECONDS)
        raise Stopped

    def get(self, source: "queue.Queue[Any]") -> Any:
        """Take the next item when there is one.

        Raises:
            Stopped: the threads are to end.
        """
        while not self.stopping:
            with contextlib.suppress(queue.Empty):
                return source.get(timeout=_PATIENCE_SECONDS)
        raise Stopped

    def wait(self, condition: threading.Condition) -> None:
        """Wait for ``condition``, which is held, to be notified; may return early.

        Raises:
            Stopped: the threads are to end.
        """
        if self.stopping:
            raise Stopped
        condition.wait(timeout=_PATIENCE_SECONDS)
