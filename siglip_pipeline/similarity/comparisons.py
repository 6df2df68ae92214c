"""What comparing videos found, kept so that nothing is compared twice.

Shapes: N frames, M moments of a video, D dimensions.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg.types.json import Jsonb

from siglip_pipeline.records import FloatArray, IntArray
from siglip_pipeline.similarity.alignment import Segment
from siglip_pipeline.similarity.copy_decision import Judged, Substance
from siglip_pipeline.store.database import LOCK_BUILD, Connection, Database

Pair = tuple[int, int]
"""Ids of two videos, the lower one first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedVideo:
    """A video by itself, as it was compared."""

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
    """Two videos that have frames alike."""

    frames_a: NDArray[np.bool_]
    """Which frames of the first one have one like it in the other."""
    frames_b: NDArray[np.bool_]
    segments: tuple[Segment, ...]
    weak: tuple[Segment, ...]
    """Stretches of weaker matches, where the others hold little of either video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is known of a video from an earlier comparison."""

    ingest_id: int | None
    rules: str | None


class Comparisons:
    """What is stored of comparisons under one model. Methods that write take a transaction."""

    def __init__(self, database: Database, model_id: int) -> None:
        self._database = database
        self._model_id = model_id

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other comparisons of this model waiting."""
        with self._database.autocommit() as connection:
            key = [LOCK_BUILD, -self._model_id]
            connection.execute("SELECT pg_advisory_lock(%s, %s)", key)
            try:
                yield
            finally:
                if not connection.closed:
                    connection.execute("SELECT pg_advisory_unlock(%s, %s)", key)

    def current(self) -> dict[int, tuple[str, int]]:
        """Path and load of every video that has vectors."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT video_id, path, ingest_id FROM ingests JOIN videos USING (video_id)"
                " WHERE model_id = %s AND ingests.frames > 0 ORDER BY video_id",
                [self._model_id],
            ).fetchall()
        return {video_id: (path, ingest_id) for video_id, path, ingest_id in rows}

    def known(self) -> dict[int, Stored]:
        """Videos that were compared before."""
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
        """Mean vectors of the moments of videos, [M, D] each, by id."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT video_id, moments FROM video_vectors WHERE model_id = %s"
                " AND video_id = ANY(%s) ORDER BY video_id",
                [self._model_id, list(video_ids)],
                binary=True,
            ).fetchall()
        return {
            video_id: np.frombuffer(data, np.float16).reshape(-1, dim) for video_id, data in rows
        }

    def forget(self, connection: Connection, video_ids: Collection[int]) -> None:
        """Delete what is known of videos, with all their pairs."""
        ids = list(video_ids)
        for table in ("video_pairs", "shared_segments"):
            connection.execute(
                f"DELETE FROM {table} WHERE model_id = %(model)s"
                " AND (video_a = ANY(%(ids)s) OR video_b = ANY(%(ids)s))",
                {"model": self._model_id, "ids": ids},
            )
        connection.execute(
            "DELETE FROM video_vectors WHERE model_id = %s AND video_id = ANY(%s)",
            [self._model_id, ids],
        )

    def partners(self, connection: Connection, video_ids: Collection[int]) -> set[int]:
        """Videos that have frames like any of these."""
        rows = connection.execute(
            "SELECT video_b FROM video_pairs WHERE model_id = %(model)s AND video_a = ANY(%(ids)s)"
            " UNION SELECT video_a FROM video_pairs WHERE model_id = %(model)s"
            " AND video_b = ANY(%(ids)s)",
            {"model": self._model_id, "ids": list(video_ids)},
        ).fetchall()
        return {video_id for (video_id,) in rows}

    def miscounted(self, connection: Connection) -> set[int]:
        """Videos some of whose pairs are gone, since the other video was deleted."""
        rows = connection.execute(
            "SELECT video_id FROM video_vectors v LEFT JOIN (SELECT video_id, count(*) AS pairs"
            " FROM (SELECT video_a AS video_id FROM video_pairs WHERE model_id = %(model)s"
            " UNION ALL SELECT video_b FROM video_pairs WHERE model_id = %(model)s) ends"
            " GROUP BY video_id) counted USING (video_id)"
            " WHERE v.model_id = %(model)s AND v.pairs IS DISTINCT FROM coalesce(counted.pairs, 0)",
            {"model": self._model_id},
        ).fetchall()
        return {video_id for (video_id,) in rows}

    def add(
        self,
        connection: Connection,
        videos: Iterable[ComparedVideo],
        pairs: Mapping[Pair, ComparedPair],
        *,
        rules: str,
    ) -> None:
        """Note videos and pairs; videos that have been deleted meanwhile are left out."""
        rows = connection.execute("SELECT video_id FROM videos FOR KEY SHARE").fetchall()
        there = {video_id for (video_id,) in rows}
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO video_vectors (model_id, video_id, ingest_id, rules, frames,"
                " length_seconds, embedding, moments, weights)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %b, %b)",
                [
                    [
                        *(self._model_id, video.video_id, video.ingest_id, rules, video.frames),
                        *(video.length_seconds, HalfVector(video.mean_D)),
                        *(video.moments_MD.tobytes(), video.weights_N.tobytes()),
                    ]
                    for video in videos
                    if video.video_id in there
                ],
            )
            cursor.executemany(
                "INSERT INTO video_pairs (model_id, video_a, video_b, frames_a, frames_b, segments,"
                " weak) VALUES (%s, %s, %s, %b, %b, %s, %s)",
                [
                    [
                        *(self._model_id, a, b),
                        *(np.packbits(bits).tobytes() for bits in (pair.frames_a, pair.frames_b)),
                        *(
                            Jsonb([_plain(segment) for segment in segments])
                            for segments in (pair.segments, pair.weak)
                        ),
                    ]
                    for (a, b), pair in pairs.items()
                    if a in there and b in there
                ],
            )

    def spread(self, connection: Connection, video_ids: Collection[int]) -> None:
        """Count anew in how many other videos the frames of these are."""
        ends = connection.execute(
            "SELECT video_a, frames_a FROM video_pairs WHERE model_id = %(model)s"
            " AND video_a = ANY(%(ids)s) UNION ALL SELECT video_b, frames_b FROM video_pairs"
            " WHERE model_id = %(model)s AND video_b = ANY(%(ids)s)",
            {"model": self._model_id, "ids": list(video_ids)},
            binary=True,
        )
        frames = self._frames(connection, video_ids)
        counts = {video_id: np.zeros(count, np.float32) for video_id, count in frames.items()}
        pairs = dict.fromkeys(counts, 0)
        for video_id, bits in ends:
            pairs[video_id] += 1
            counts[video_id] += np.unpackbits(np.frombuffer(bits, np.uint8), count=frames[video_id])
        with connection.cursor() as cursor:
            cursor.executemany(
                "UPDATE video_vectors SET spread = %b, pairs = %s"
                " WHERE model_id = %s AND video_id = %s",
                [
                    [np.maximum(count_N, 1).tobytes(), pairs[video_id], self._model_id, video_id]
                    for video_id, count_N in counts.items()
                ],
            )

    def pairs_of(
        self, connection: Connection, video_ids: Collection[int]
    ) -> Iterator[tuple[Pair, tuple[Segment, ...], tuple[Segment, ...]]]:
        """Pairs with at least one of these videos, their stretches, and the weak ones."""
        rows = connection.execute(
            "SELECT video_a, video_b, segments, weak FROM video_pairs WHERE model_id = %(model)s"
            " AND (video_a = ANY(%(ids)s) OR video_b = ANY(%(ids)s)) ORDER BY video_a, video_b",
            {"model": self._model_id, "ids": list(video_ids)},
        )
        for a, b, segments, weak in rows:
            yield (
                (a, b),
                tuple(_segment(segment) for segment in segments),
                tuple(_segment(segment) for segment in weak),
            )

    def substance(self, connection: Connection, video_ids: Collection[int]) -> dict[int, Substance]:
        """What counts for telling copies, by id."""
        rows = connection.execute(
            "SELECT video_id, length_seconds, weights, spread FROM video_vectors"
            " WHERE model_id = %s AND video_id = ANY(%s)",
            [self._model_id, list(video_ids)],
            binary=True,
        ).fetchall()
        return {
            video_id: Substance(
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
        judged: Iterable[tuple[Pair, Judged]],
    ) -> None:
        """Replace what is told of pairs with at least one of these videos."""
        connection.execute(
            "DELETE FROM shared_segments WHERE model_id = %(model)s"
            " AND (video_a = ANY(%(ids)s) OR video_b = ANY(%(ids)s))",
            {"model": self._model_id, "ids": list(video_ids)},
        )
        numbers: dict[Pair, int] = {}
        rows = []
        for pair, found in judged:
            numbers[pair] = numbers.get(pair, 0) + 1
            s = found.segment
            rows.append(
                [
                    *(self._model_id, *pair, numbers[pair]),
                    *(s.start_a, s.end_a, s.start_b, s.end_b, s.speed),
                    *(s.cosine, s.different, found.duplicate, found.covered),
                ]
            )
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO shared_segments (model_id, video_a, video_b, segment, start_a, end_a,"
                " start_b, end_b, speed, score, evidence, duplicate, covered)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                rows,
            )

    def totals(self) -> tuple[int, int, int, int]:
        """Videos, their frames, pairs that are copies, and stretches."""
        with self._database.connection() as connection:
            [row] = connection.execute(
                "SELECT (SELECT count(*) FROM video_vectors WHERE model_id = %(model)s),"
                " (SELECT coalesce(sum(frames), 0) FROM video_vectors WHERE model_id = %(model)s),"
                " (SELECT count(*) FROM (SELECT DISTINCT video_a, video_b FROM shared_segments"
                " WHERE model_id = %(model)s AND duplicate) pairs),"
                " (SELECT count(*) FROM shared_segments WHERE model_id = %(model)s)",
                {"model": self._model_id},
            )
        return int(row[0]), int(row[1]), int(row[2]), int(row[3])

    def _frames(self, connection: Connection, video_ids: Collection[int]) -> dict[int, int]:
        rows = connection.execute(
            "SELECT video_id, frames FROM video_vectors WHERE model_id = %s AND video_id = ANY(%s)",
            [self._model_id, list(video_ids)],
        ).fetchall()
        return dict(rows)


def _plain(segment: Segment) -> dict[str, Any]:
    values = asdict(segment)
    return values | {name: values[name].tolist() for name in ("rows", "columns")}


def _segment(values: dict[str, Any]) -> Segment:
    arrays: dict[str, IntArray] = {
        name: np.array(values[name], np.int64) for name in ("rows", "columns")
    }
    return Segment(**(values | arrays))
