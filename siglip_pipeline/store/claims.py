"""Claims: which videos a process embeds at this moment, so that others take other ones.

A claim is an advisory lock of a session, which ends with it: a process that is killed holds none.
Claims save work and protect nothing; :meth:`.VectorStore.load` is right without them.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

from siglip_pipeline.store.database import LOCK_CLAIM, Connection, Database


class Claims:
    """The claims of one session for one model.

    When the server restarts they are gone, and a video may be embedded twice.
    """

    def __init__(self, connection: Connection, model_id: int) -> None:
        self._connection = connection
        self._model_id = model_id
        self._held: set[str] = set()

    def take(self, video: str) -> bool:
        """Claim a video; False if another process has it."""
        with suppress(psycopg.OperationalError):
            row = self._connection.execute(
                "SELECT pg_try_advisory_lock(%s, hashtext(%s))", self._key(video)
            ).fetchone()
            if row != (True,):
                return False
            self._held.add(video)
        return True

    def release(self, video: str) -> None:
        """Give a video up, if it is claimed."""
        if video in self._held:
            self._held.remove(video)
            with suppress(psycopg.OperationalError):
                self._connection.execute(
                    "SELECT pg_advisory_unlock(%s, hashtext(%s))", self._key(video)
                )

    def release_all(self) -> None:
        """Give all up."""
        for video in tuple(self._held):
            self.release(video)

    def _key(self, video: str) -> list[int | str]:
        return [LOCK_CLAIM, f"{self._model_id} {video}"]


@contextmanager
def open_claims(database: Database, model_id: int) -> Iterator[Claims]:
    """Hold a connection for claims; all are given up at the end of the block."""
    with database.autocommit() as connection:
        claims = Claims(connection, model_id)
        try:
            yield claims
        finally:
            claims.release_all()
