"""Find the truth of a recall check while the index is built.

Much of a build is the work of one server process, while other cores have nothing to do. The truth
is kept, so the check that follows compares only what was loaded meanwhile.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.index.recall.kept_truths import keep_truths, read_truths
from siglip_pipeline.store.index.recall.queries import Query
from siglip_pipeline.store.index.recall.shares import scopes_to_come
from siglip_pipeline.store.index.recall.truth import Truth, find_truth
from siglip_pipeline.store.kinds import Generation, Scope

DEPTH = 100
"""The nearest frames that are found for each query."""


@contextlib.contextmanager
def truth_ahead(database: Database, target: Generation, queries: Sequence[Query]) -> Iterator[None]:
    """Find and keep the truth in a thread, while the block builds a generation.

    Wait for it at the end; end it where the block fails.
    """
    if not queries:
        yield
        return
    stop = threading.Event()

    def find() -> None:
        with database.snapshot(reading=tables.frames(target.model_id)) as connection:
            scopes = scopes_to_come(connection, target)
            truths = continue_truths(connection, target, queries, scopes, stop=stop)
        keep_truths(database, target.model_id, queries, truths)

    with ThreadPoolExecutor(1, "truth-ahead") as pool:
        try:
            found = pool.submit(find)
            yield
            found.result()
        finally:
            stop.set()


def continue_truths(
    connection: Connection,
    target: Generation,
    queries: Sequence[Query],
    scopes: dict[float, Scope],
    *,
    stop: threading.Event | None = None,
) -> dict[float, Truth]:
    """Return the truth of each scope, continued from what is kept."""
    kept = read_truths(connection, target.model_id, queries)
    known = [kept.get(share) for share in scopes]
    truths = find_truth(
        connection, target, queries, list(scopes.values()), DEPTH, known=known, stop=stop
    )
    return dict(zip(scopes, truths, strict=True))
