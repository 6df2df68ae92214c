"""The texts that people searched for, kept for a set time so that recall is measured on them."""

import logging
from datetime import datetime

from siglip_pipeline.errors import StoreError
from siglip_pipeline.store.database import Database

logger = logging.getLogger(__name__)


class QueryLog:
    """The table of logged queries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, text: str) -> None:
        """Keep a text; who asked, and from where, is not kept."""
        with self._database.connection() as connection:
            connection.execute("INSERT INTO query_log (text) VALUES (%s)", [text])

    def record_or_warn(self, text: str) -> None:
        """Keep a text; a failure is a warning in the log, as the search itself has succeeded."""
        try:
            self.record(text)
        except StoreError as error:
            logger.warning("a query could not be logged: %s", error)

    def sample(self, *, since: datetime, count: int) -> list[str]:
        """Return up to ``count`` random texts that were asked since a time, each once."""
        with self._database.connection() as connection:
            rows = connection.execute(
                """
                SELECT text FROM (SELECT DISTINCT text FROM query_log WHERE asked_at >= %s) asked
                ORDER BY random() LIMIT %s
                """,
                [since, count],
            ).fetchall()
        return [text for (text,) in rows]

    def remove_before(self, limit: datetime) -> int:
        """Delete the texts that were asked before a time; return how many."""
        with self._database.connection() as connection:
            return connection.execute("DELETE FROM query_log WHERE asked_at < %s", [limit]).rowcount
