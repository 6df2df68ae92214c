"""Store the results of comparing videos, so that no pair is compared twice.

Shapes: N frames, M moments of a video, D dimensions.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql
from psycopg.types.json import Jsonb

from siglip_pipeline.records import FloatArray, IntArray
from siglip_pipeline.similarity.alignment import Segment
from siglip_pipeline.similarity.copy_decision import DecidedSegment, FrameWeights
from siglip_pipeline.store.database import LOCK_BUILD, Connection, Database

Pair = tuple[int, int]
"""Ids of two videos, the lower one first."""

_CURRENT = """
SELECT video_id, path, ingest_id
FROM ingests JOIN videos USING (video_id)
WHERE model_id = %s AND ingests.frames > 0
ORDER BY video_id
"""

_DELETE_PAIRS = """
DELETE FROM {}
WHERE model_id = %(model)s AND (video_a = ANY(%(ids)s) OR video_b = ANY(%(ids)s))
"""

_PARTNERS = """
SELECT video_b FROM video_pairs WHERE model_id = %(model)s AND video_a = ANY(%(ids)s)
UNION
SELECT video_a FROM video_pairs WHERE model_id = %(model)s AND video_b = ANY(%(ids)s)
"""

_MISCOUNTED = """
SELECT video_id
FROM video_vectors v
LEFT JOIN (
    SELECT video_id, count(*) AS pairs
    FROM (
        SELECT video_a AS video_id FROM video_pairs WHERE model_id = %(model)s
        UNION ALL
        SELECT video_b FROM video_pairs WHERE model_id = %(model)s
    ) ends
    GROUP BY video_id
) counted USING (video_id)
WHERE v.model_id = %(model)s AND v.pairs IS DISTINCT FROM coalesce(counted.pairs, 0)
"""

_ADD_VIDEO = """
INSERT INTO video_vectors (model_id, video_id, ingest_id, rules, frames, length_seconds, embedding,
                           moments, weights)
VALUES (%(model)s, %(video_id)s, %(ingest_id)s, %(rules)s, %(frames)s, %(length_seconds)s,
        %(mean_D)s, %(moments_MD)b, %(weights_N)b)
"""

_ADD_PAIR = """
INSERT INTO video_pairs (model_id, video_a, video_b, frames_a, frames_b, segments, weak)
VALUES (%(model)s, %(a)s, %(b)s, %(frames_a)b, %(frames_b)b, %(segments)s, %(weak)s)
"""

_SIMILAR_FRAMES = """
SELECT video_a, frames_a FROM video_pairs WHERE model_id = %(model)s AND video_a = ANY(%(ids)s)
UNION ALL
SELECT video_b, frames_b FROM video_pairs WHERE model_id = %(model)s AND video_b = ANY(%(ids)s)
"""

_PAIRS_OF = """
SELECT video_a, video_b, segments, weak FROM video_pairs
WHERE model_id = %(model)s AND (video_a = ANY(%(ids)s) OR video_b = ANY(%(ids)s))
ORDER BY video_a, video_b
"""

_PUBLISH = """
INSERT INTO shared_segments (model_id, video_a, video_b, segment, start_a, end_a, start_b, end_b,
                             speed, score, evidence, duplicate, covered)
VALUES (%(model)s, %(video_a)s, %(video_b)s, %(number)s, %(start_a)s, %(end_a)s, %(start_b)s,
        %(end_b)s, %(speed)s, %(cosine)s, %(different)s, %(duplicate)s, %(covered)s)
"""

_TOTALS = """
SELECT (SELECT count(*) FROM video_vectors WHERE model_id = %(model)s),
       (SELECT coalesce(sum(frames), 0) FROM video_vectors WHERE model_id = %(model)s),
       (SELECT count(*) FROM (SELECT DISTINCT video_a, video_b FROM shared_segments
                              WHERE model_id = %(model)s AND duplicate) pairs),
       (SELECT count(*) FROM shared_segments WHERE model_id = %(model)s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedVideo:
    """What is stored of a video by itself."""

    video_id: int
    ingest_id: int
    frames: int
    length_seconds: float
    mean_D: FloatArray
    """Unit vector in the direction of the mean of its moments."""
    moments_MD: NDArray[np.float16]
    weights_N: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedPair:
    """Two videos that share segments."""

    frames_a: NDArray[np.bool_]
    """Which frames of the first video have a similar one in the second."""
    frames_b: NDArray[np.bool_]
    segments: tuple[Segment, ...]
    weak: tuple[Segment, ...]
    """Segments of weaker matches; sought if the others hold little of both videos."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The vectors and rules under which a video was compared."""

    ingest_id: int | None
    rules: str | None


class Comparisons:
    """The stored comparisons of one model. Methods that write take a transaction."""

    def __init__(self, database: Database, model_id: int) -> None:
        self._database = database
        self._model_id = model_id

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock for which other comparisons of this model wait."""
        with self._database.autocommit() as connection:
            key = [LOCK_BUILD, -self._model_id]
            connection.execute("SELECT pg_advisory_lock(%s, %s)", key)
            try:
                yield
            finally:
                if not connection.closed:
                    connection.execute("SELECT pg_advisory_unlock(%s, %s)", key)

    def current(self) -> dict[int, tuple[str, int]]:
        """Return the path and ingest id of every video with vectors, by video id."""
        with self._database.connection() as connection:
            rows = connection.execute(_CURRENT, [self._model_id]).fetchall()
        return {video_id: (path, ingest_id) for video_id, path, ingest_id in rows}

    def known(self) -> dict[int, Stored]:
        """Return the videos that were compared before, by id."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT video_id, ingest_id, rules FROM video_vectors WHERE model_id = %s",
                [self._model_id],
            ).fetchall()
        return {
            video_id: Stored(ingest_id=ingest_id, rules=rules)
            for video_id, ingest_id, rules in rows
        }

    def moments(self, video_ids: Collection[int], dim: int) -> dict[int, NDArray[np.float16]]:
        """Return the mean vectors of the moments of videos, float16 [M, D], by video id."""
        with self._database.connection() as connection:
            rows = connection.execute(
                """
                SELECT video_id, moments FROM video_vectors WHERE model_id = %s
                AND video_id = ANY(%s) ORDER BY video_id
                """,
                [self._model_id, list(video_ids)],
                binary=True,
            ).fetchall()
        return {
            video_id: np.frombuffer(data, np.float16).reshape(-1, dim) for video_id, data in rows
        }

    def forget(self, connection: Connection, video_ids: Collection[int]) -> None:
        """Delete what is stored of videos and of all their pairs."""
        ids = list(video_ids)
        for table in ("video_pairs", "shared_segments"):
            connection.execute(
                sql.SQL(_DELETE_PAIRS).format(sql.Identifier(table)),
                {"model": self._model_id, "ids": ids},
            )
        connection.execute(
            "DELETE FROM video_vectors WHERE model_id = %s AND video_id = ANY(%s)",
            [self._model_id, ids],
        )

    def partners(self, connection: Connection, video_ids: Collection[int]) -> set[int]:
        """Return the videos that share frames with any of these."""
        rows = connection.execute(
            _PARTNERS, {"model": self._model_id, "ids": list(video_ids)}
        ).fetchall()
        return {video_id for (video_id,) in rows}

    def miscounted(self, connection: Connection) -> set[int]:
        """Return the videos whose stored number of pairs is wrong, as another video was deleted."""
        rows = connection.execute(_MISCOUNTED, {"model": self._model_id}).fetchall()
        return {video_id for (video_id,) in rows}

    def add(
        self,
        connection: Connection,
        videos: Iterable[ComparedVideo],
        pairs: Mapping[Pair, ComparedPair],
        *,
        rules: str,
    ) -> None:
        """Store videos and pairs; omit videos that have been deleted meanwhile."""
        rows = connection.execute("SELECT video_id FROM videos FOR KEY SHARE").fetchall()
        existing = {video_id for (video_id,) in rows}
        with connection.cursor() as cursor:
            cursor.executemany(
                _ADD_VIDEO,
                [
                    asdict(video)
                    | {
                        "model": self._model_id,
                        "rules": rules,
                        "mean_D": HalfVector(video.mean_D),
                        "moments_MD": video.moments_MD.tobytes(),
                        "weights_N": video.weights_N.tobytes(),
                    }
                    for video in videos
                    if video.video_id in existing
                ],
            )
            cursor.executemany(
                _ADD_PAIR,
                [
                    {
                        "model": self._model_id,
                        "a": a,
                        "b": b,
                        "frames_a": np.packbits(pair.frames_a).tobytes(),
                        "frames_b": np.packbits(pair.frames_b).tobytes(),
                        "segments": Jsonb([_to_json(segment) for segment in pair.segments]),
                        "weak": Jsonb([_to_json(segment) for segment in pair.weak]),
                    }
                    for (a, b), pair in pairs.items()
                    if a in existing and b in existing
                ],
            )

    def update_spread(self, connection: Connection, video_ids: Collection[int]) -> None:
        """Count in how many other videos each frame of these videos has a similar one."""
        ends = connection.execute(
            _SIMILAR_FRAMES, {"model": self._model_id, "ids": list(video_ids)}, binary=True
        )
        frames = self._frames(connection, video_ids)
        counts = {video_id: np.zeros(count, np.float32) for video_id, count in frames.items()}
        pairs = dict.fromkeys(counts, 0)
        for video_id, bits in ends:
            pairs[video_id] += 1
            counts[video_id] += np.unpackbits(np.frombuffer(bits, np.uint8), count=frames[video_id])
        with connection.cursor() as cursor:
            cursor.executemany(
                """
                UPDATE video_vectors SET spread = %b, pairs = %s
                WHERE model_id = %s AND video_id = %s
                """,
                [
                    [np.maximum(count_N, 1).tobytes(), pairs[video_id], self._model_id, video_id]
                    for video_id, count_N in counts.items()
                ],
            )

    def pairs_of(
        self, connection: Connection, video_ids: Collection[int]
    ) -> Iterator[tuple[Pair, tuple[Segment, ...], tuple[Segment, ...]]]:
        """Yield pairs with at least one of these videos, with their segments and weak segments."""
        rows = connection.execute(_PAIRS_OF, {"model": self._model_id, "ids": list(video_ids)})
        for a, b, segments, weak in rows:
            yield (
                (a, b),
                tuple(_segment(segment) for segment in segments),
                tuple(_segment(segment) for segment in weak),
            )

    def frame_weights(
        self, connection: Connection, video_ids: Collection[int]
    ) -> dict[int, FrameWeights]:
        """Return what the copy decision weighs, by video id."""
        rows = connection.execute(
            """
            SELECT video_id, length_seconds, weights, spread FROM video_vectors
            WHERE model_id = %s AND video_id = ANY(%s)
            """,
            [self._model_id, list(video_ids)],
            binary=True,
        ).fetchall()
        return {
            video_id: FrameWeights(
                length_seconds=length,
                weights_N=np.frombuffer(weights, np.float32),
                spread_N=np.frombuffer(spread, np.float32),
            )
            for video_id, length, weights, spread in rows
        }

    def publish(
        self,
        connection: Connection,
        video_ids: Collection[int],
        decided: Iterable[tuple[Pair, DecidedSegment]],
    ) -> None:
        """Replace the published segments of pairs with at least one of these videos."""
        connection.execute(
            sql.SQL(_DELETE_PAIRS).format(sql.Identifier("shared_segments")),
            {"model": self._model_id, "ids": list(video_ids)},
        )
        numbers: Counter[Pair] = Counter()
        rows = []
        for pair, found in decided:
            numbers[pair] += 1
            rows.append(
                asdict(found.segment)
                | {
                    "model": self._model_id,
                    "video_a": pair[0],
                    "video_b": pair[1],
                    "number": numbers[pair],
                    "duplicate": found.duplicate,
                    "covered": found.covered,
                }
            )
        with connection.cursor() as cursor:
            cursor.executemany(_PUBLISH, rows)

    def totals(self) -> tuple[int, int, int, int]:
        """Return the number of videos, of their frames, of pairs of copies, and of segments."""
        with self._database.connection() as connection:
            [row] = connection.execute(_TOTALS, {"model": self._model_id})
        return int(row[0]), int(row[1]), int(row[2]), int(row[3])

    def _frames(self, connection: Connection, video_ids: Collection[int]) -> dict[int, int]:
        rows = connection.execute(
            "SELECT video_id, frames FROM video_vectors WHERE model_id = %s AND video_id = ANY(%s)",
            [self._model_id, list(video_ids)],
        ).fetchall()
        return dict(rows)


def _to_json(segment: Segment) -> dict[str, Any]:
    values = asdict(segment)
    return values | {name: values[name].tolist() for name in ("rows", "columns")}


def _segment(values: dict[str, Any]) -> Segment:
    arrays: dict[str, IntArray] = {
        name: np.array(values[name], np.int64) for name in ("rows", "columns")
    }
    return Segment(**(values | arrays))
