"""Limits on the rate of each client, and on costly work of all clients together."""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from siglip_pipeline.web.http_errors import busy

MAX_CLIENTS = 10_000


class TokenBuckets:
    """A token bucket per client; each request takes tokens out of it.

    Args:
        per_second: tokens that flow in; 0: requests are not limited.
        burst: what a bucket holds.
        clock: seconds from any start.
    """

    def __init__(
        self, *, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        # Least recently seen first: a forgotten bucket had the time to fill up again.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, cost: float = 1.0) -> float:
        """Take tokens; 0.0 if there were enough, else the seconds until there are."""
        if self._per_second <= 0:
            return 0.0
        now = self._clock()
        with self._lock:
            level, seen = self._buckets.pop(client, (self._burst, now))
            level = min(self._burst, level + (now - seen) * self._per_second)
            wait = 0.0 if level >= cost else (cost - level) / self._per_second
            self._buckets[client] = (level if wait else level - cost, now)
            while len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
        return wait


class Turns:
    """A semaphore with a limit on the number of waiters.

    Args:
        at_once: how many have their turn.
        waiting: how many wait for theirs, on the event loop and not in threads.
    """

    def __init__(self, *, at_once: int, waiting: int) -> None:
        self._most = at_once + waiting
        self._taken = 0
        self._free = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and keep it while the context lasts.

        Raises:
            HttpError: 503, too many wait already.
        """
        if self._taken >= self._most:
            raise busy("pictures are being searched by or wait for their turn")
        self._taken += 1
        try:
            async with self._free:
                yield
        finally:
            self._taken -= 1
