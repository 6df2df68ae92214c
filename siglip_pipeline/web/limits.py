"""How much one client may ask for: a token bucket per address."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_CLIENTS = 10_000


class TokenBuckets:
    """A bucket per client that fills steadily; each request takes tokens out of it.

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
        # Least recently seen first: whoever is forgotten had the time to fill up again.
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
