"""Standing queries and their hits, with what became of the message about each hit."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from psycopg.rows import kwargs_row

from siglip_pipeline.errors import WatchError, WatchNotFoundError
from siglip_pipeline.hits import Hit
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.database import Database
from siglip_pipeline.text.secret import Secret

T = TypeVar("T")

Delivery = Literal["none", "waiting", "late", "sent", "failed"]
"""``none``: there is no webhook; ``late``: an attempt failed, and another one follows; ``failed``:
no further attempt follows."""

MOST_ATTEMPTS = 8
FIRST_RETRY = timedelta(seconds=30)
"""Each wait is twice the one before: the last attempt comes about an hour after the first."""

_WATCHES = """
SELECT w.watch_id, w.name, w.query, w.min_probability, w.videos, w.webhook, w.calibration,
       w.model_key, w.embedding, h.hits, h.late, h.failed
FROM watches w
CROSS JOIN LATERAL (
    SELECT count(*) AS hits,
           count(*) FILTER (WHERE failure IS NOT NULL AND next_attempt_at IS NOT NULL) AS late,
           count(*) FILTER (
               WHERE sent_at IS NULL AND failure IS NOT NULL AND next_attempt_at IS NULL
           ) AS failed
    FROM watch_hits h WHERE h.watch_id = w.watch_id
) h
"""

_HITS = """
SELECT h.hit_id, w.name AS watch, w.query, v.path AS video, v.video_id, h.time_seconds,
       h.frame_index, h.score, h.probability, h.start_seconds, h.end_seconds,
       h.time_seconds + v.media_offset_seconds AS media_time_seconds, h.model_key, h.found_at,
       CASE WHEN h.sent_at IS NOT NULL THEN 'sent'
            WHEN h.next_attempt_at IS NOT NULL AND h.failure IS NULL THEN 'waiting'
            WHEN h.next_attempt_at IS NOT NULL THEN 'late'
            WHEN h.failure IS NOT NULL THEN 'failed'
            ELSE 'none' END AS delivery,
       h.sent_at, h.failure
FROM watch_hits h JOIN watches w USING (watch_id) JOIN videos v USING (video_id)
"""

# A hit that overlaps one that is recorded is the same moment, whichever model found it.
_RECORD = """
INSERT INTO watch_hits (watch_id, video_id, source_sha256, model_key, frame_index, time_seconds,
                        start_seconds, end_seconds, score, probability, next_attempt_at)
SELECT %(watch)s, %(video)s, %(sha256)s, %(model)s, new.frame_index, new.time_seconds,
       new.start_seconds, new.end_seconds, new.score, new.probability,
       (SELECT now() FROM watches WHERE watch_id = %(watch)s AND webhook IS NOT NULL)
FROM unnest(%(frames)s::integer[], %(times)s::float8[], %(starts)s::float8[], %(ends)s::float8[],
            %(scores)s::float8[], %(probabilities)s::float8[])
     AS new (frame_index, time_seconds, start_seconds, end_seconds, score, probability)
WHERE NOT EXISTS (
    SELECT FROM watch_hits old
    WHERE old.watch_id = %(watch)s AND old.video_id = %(video)s
      AND old.start_seconds < new.end_seconds AND old.end_seconds > new.start_seconds
)
"""

# The next attempt is set before this one is made: no other process makes it meanwhile, and one that
# is killed in it is followed by another. Messages of watches whose last one failed come last.
_CLAIM = """
UPDATE watch_hits h
SET attempts = h.attempts + 1, next_attempt_at = now() + %(first)s * 2 ^ h.attempts
FROM watches w
WHERE w.watch_id = h.watch_id AND w.webhook IS NOT NULL AND h.hit_id = (
    SELECT hit_id FROM watch_hits WHERE next_attempt_at <= now()
      AND watch_id NOT IN (SELECT watch_id FROM watches WHERE name = ANY(%(besides)s))
    ORDER BY watch_id IN (
        SELECT watch_id FROM watch_hits WHERE failure IS NOT NULL AND next_attempt_at IS NOT NULL
    ), next_attempt_at, hit_id LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING h.hit_id, w.webhook
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A standing query."""

    watch_id: int
    name: str
    query: str
    min_probability: float
    videos: tuple[str, ...] | None
    """Paths and globs; None: all videos."""
    webhook: Secret | None
    calibration: dict[str, Any] | None
    model_key: str | None
    """The model of the vector."""
    embedding_D: FloatArray | None = field(compare=False)
    hits: int
    late: int
    """Hits whose message failed so far."""
    failed: int
    """Hits whose message failed for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchHit:
    """A moment that a standing query found."""

    hit_id: int
    watch: str
    query: str
    hit: Hit
    model_key: str
    found_at: datetime
    delivery: Delivery
    sent_at: datetime | None
    failure: str | None
    """Why the last attempt to send it failed."""


class WatchStore:
    """The tables of standing queries and of their hits."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        name: str,
        query: str,
        *,
        min_probability: float,
        videos: Sequence[str] | None = None,
        webhook: Secret | None = None,
    ) -> Watch:
        """Add a standing query.

        Raises:
            WatchError: there is one of this name.
        """
        with self._database.connection() as connection:
            added = connection.execute(
                """
                INSERT INTO watches (name, query, min_probability, videos, webhook)
                VALUES (%s, %s, %s, %s, %s) ON CONFLICT (name) DO NOTHING RETURNING watch_id
                """,
                [
                    name,
                    query,
                    min_probability,
                    None if videos is None else [*videos],
                    webhook and webhook.reveal(),
                ],
            ).fetchone()
        if added is None:
            raise WatchError(
                f"there is a watch {name!r}; take another name, or remove it first with "
                "`siglip-pipeline watch remove`"
            )
        return self.get(name)

    def all(self) -> list[Watch]:
        """Return all standing queries, by name."""
        return self._watches("ORDER BY w.name", [])

    def totals(self) -> tuple[int, int, int, int]:
        """Return the numbers of watches, hits, late and failed messages; reads no vectors."""
        columns = (
            "count(*), coalesce(sum(hits), 0), coalesce(sum(late), 0), coalesce(sum(failed), 0)"
        )
        with self._database.connection() as connection:
            row = connection.execute(f"SELECT {columns} FROM ({_WATCHES}) w").fetchone()
        assert row is not None
        watches, hits, late, failed = map(int, row)
        return watches, hits, late, failed

    def get(self, name: str) -> Watch:
        """Return one.

        Raises:
            WatchNotFoundError: there is none of this name; names those that exist.
        """
        found = self._watches("WHERE w.name = %s", [name])
        if not found:
            names = ", ".join(watch.name for watch in self.all()) or "none"
            raise WatchNotFoundError(f"there is no watch {name!r}; there are: {names}")
        return found[0]

    def remove(self, name: str) -> None:
        """Remove one with its hits.

        Raises:
            WatchNotFoundError: there is none of this name.
        """
        watch = self.get(name)
        with self._database.connection() as connection:
            connection.execute("DELETE FROM watches WHERE watch_id = %s", [watch.watch_id])

    def set_vector(self, watch_id: int, model_key: str, embedding_D: FloatArray) -> None:
        """Store the query's vector under a model."""
        from pgvector import HalfVector  # imports numpy, which `status` does without

        with self._database.connection() as connection:
            connection.execute(
                "UPDATE watches SET model_key = %s, embedding = %s WHERE watch_id = %s",
                [model_key, HalfVector(embedding_D), watch_id],
            )

    def set_threshold(
        self, watch_id: int, min_probability: float, calibration: Mapping[str, Any]
    ) -> None:
        """Store the threshold that a calibration chose, and what it found."""
        with self._database.connection() as connection:
            connection.execute(
                "UPDATE watches SET min_probability = %s, calibration = %s WHERE watch_id = %s",
                [min_probability, json.dumps(calibration), watch_id],
            )

    def record(
        self,
        watch: Watch,
        video_id: int,
        hits: Sequence[Hit],
        *,
        source_sha256: str,
        model_key: str,
    ) -> int:
        """Record the hits that overlap none that is recorded; return how many these are.

        Hits of an earlier content of the video are removed. A video or watch that was removed
        meanwhile has no hits.
        """
        values = {
            "watch": watch.watch_id,
            "video": video_id,
            "sha256": source_sha256,
            "model": model_key,
            "frames": [hit.frame_index for hit in hits],
            "times": [hit.time_seconds for hit in hits],
            "starts": [hit.start_seconds for hit in hits],
            "ends": [hit.end_seconds for hit in hits],
            "scores": [hit.score for hit in hits],
            "probabilities": [hit.probability for hit in hits],
        }
        with self._database.connection() as connection:
            # Two runs over one video follow each other.
            both = connection.execute(
                """
                SELECT FROM watches w, videos v WHERE w.watch_id = %(watch)s
                AND v.video_id = %(video)s FOR NO KEY UPDATE OF v FOR KEY SHARE OF w
                """,
                values,
            ).fetchone()
            if both is None:
                return 0
            connection.execute(
                """
                DELETE FROM watch_hits WHERE watch_id = %(watch)s AND video_id = %(video)s
                AND source_sha256 <> %(sha256)s
                """,
                values,
            )
            return connection.execute(_RECORD, values).rowcount

    def hits(self, name: str | None = None, *, limit: int = 50, offset: int = 0) -> list[WatchHit]:
        """Return the hits of a watch, or of all, newest first."""
        return self._hits(
            "WHERE %(name)s::text IS NULL OR w.name = %(name)s "
            "ORDER BY h.hit_id DESC LIMIT %(limit)s OFFSET %(offset)s",
            {"name": name, "limit": limit, "offset": offset},
        )

    def of_video(self, video_id: int) -> list[WatchHit]:
        """Return the hits of all watches in a video, newest first."""
        return self._hits(
            "WHERE v.video_id = %(video)s ORDER BY h.hit_id DESC", {"video": video_id}
        )

    def claim(self, *, besides: Collection[str] = ()) -> tuple[WatchHit, Secret] | None:
        """Return a hit whose message is due, with the address; None if none is.

        No other process gets it before the time of the next attempt.

        Args:
            besides: names of watches whose messages wait.
        """
        with self._database.connection() as connection:
            row = connection.execute(
                _CLAIM, {"first": FIRST_RETRY, "besides": [*besides]}
            ).fetchone()
        if row is None:
            return None
        # The video may have been deleted in between, and its hits with it.
        found = self._hits("WHERE h.hit_id = %(hit)s", {"hit": row[0]})
        return (found[0], Secret(row[1])) if found else None

    def note_sent(self, hit_id: int) -> None:
        """Record that the message about a hit was taken."""
        with self._database.connection() as connection:
            connection.execute(
                """
                UPDATE watch_hits SET sent_at = now(), next_attempt_at = NULL, failure = NULL
                WHERE hit_id = %s
                """,
                [hit_id],
            )

    def note_failure(self, hit_id: int, failure: str) -> None:
        """Record why an attempt failed; the last one is followed by no other."""
        with self._database.connection() as connection:
            connection.execute(
                """
                UPDATE watch_hits SET failure = %s,
                    next_attempt_at = CASE WHEN attempts < %s THEN next_attempt_at END
                WHERE hit_id = %s
                """,
                [failure, MOST_ATTEMPTS, hit_id],
            )

    def _watches(self, suffix: str, values: Sequence[Any]) -> list[Watch]:
        return self._rows(_watch, f"{_WATCHES} {suffix}", values)

    def _hits(self, suffix: str, values: Mapping[str, Any]) -> list[WatchHit]:
        return self._rows(_watch_hit, f"{_HITS} {suffix}", values)

    def _rows(
        self, record: Callable[..., T], query: str, values: Sequence[Any] | Mapping[str, Any]
    ) -> list[T]:
        with (
            self._database.connection() as connection,
            connection.cursor(row_factory=kwargs_row(record)) as cursor,
        ):
            return cursor.execute(query, values).fetchall()


def _watch(
    *, videos: list[str] | None, webhook: str | None, embedding: Any, **others: Any
) -> Watch:
    return Watch(
        videos=None if videos is None else tuple(videos),
        webhook=None if webhook is None else Secret(webhook),
        embedding_D=None if embedding is None else embedding.to_numpy().astype("float32"),
        **others,
    )


def _watch_hit(
    *,
    hit_id: int,
    watch: str,
    query: str,
    model_key: str,
    found_at: datetime,
    delivery: Delivery,
    sent_at: datetime | None,
    failure: str | None,
    **hit: Any,
) -> WatchHit:
    return WatchHit(
        hit_id=hit_id,
        watch=watch,
        query=query,
        hit=Hit(**hit),
        model_key=model_key,
        found_at=found_at,
        delivery=delivery,
        sent_at=sent_at,
        failure=failure,
    )
