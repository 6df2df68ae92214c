"""Videos that resemble each other: one vector per video, and the stretches that pairs share.

Shapes: M moments of all videos, D dimensions.
"""

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pgvector import HalfVector
from psycopg import sql
from psycopg.rows import class_row

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.alignment import (
    MIN_DIFFERENT,
    Footage,
    Matches,
    Segment,
    difference_weights,
    find_matches,
    shared_segments,
)
from siglip_pipeline.store.database import LOCK_BUILD, Connection, Database
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.moments import cut_moments
from siglip_pipeline.store.vectors import VectorStore

CANDIDATE_COSINE = 0.85
"""Two videos are compared frame by frame when some of their moments are as alike as this."""
COVERED = 0.5
"""A copy: the shared stretches are at least this share of what the shorter video shows."""
COVERED_STILL = 0.8
"""… of both videos, where so few frames differ that their order proves nothing."""
STILL_COSINE = 0.97
"""… and their frames are at least as alike as this."""
COMMON = 10
"""A stretch whose frames are in more videos than this is no news: a station's ident, an intro."""
_BLOCK = 2048
_FOOTAGE_KEPT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSegment:
    """A stretch that two videos share; ``a`` is the one that was known first."""

    video_a: str
    video_b: str
    video_a_id: int
    video_b_id: int
    start_a: float
    end_a: float
    start_b: float
    end_b: float
    speed: float
    """Seconds of b that pass in a second of a."""
    score: float
    """Mean cosine of the frames that meet."""
    evidence: float
    """How many different frames it has; 1 for a picture that stands still."""
    duplicate: bool
    """The videos are copies, or one is a copy of a part of the other."""
    covered: float
    """Share of what the shorter video shows that is in the other one, all stretches together."""

    def to_json(self) -> dict[str, Any]:
        """For ``duplicates --json`` and HTTP."""
        return {
            "video_a": self.video_a,
            "video_b": self.video_b,
            "video_a_id": self.video_a_id,
            "video_b_id": self.video_b_id,
            "start_a_seconds": round(self.start_a, 3),
            "end_a_seconds": round(self.end_a, 3),
            "start_b_seconds": round(self.start_b, 3),
            "end_b_seconds": round(self.end_b, 3),
            "speed": round(self.speed, 4),
            "score": round(self.score, 6),
            "evidence": round(self.evidence, 2),
            "duplicate": self.duplicate,
            "covered": round(self.covered, 4),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarVideo:
    """A video whose mean vector is near another one's."""

    video: str
    video_id: int
    score: float
    """Cosine similarity of the two videos' vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityReport:
    """What a comparison of all videos found."""

    model: str
    videos: int
    frames: int
    pairs_compared: int
    """Pairs whose frames were compared; the others have no moment in common."""
    duplicates: int
    """Pairs that are copies."""
    segments: int
    """Stretches that pairs share, copies or not."""
    seconds: float


Progress = Callable[[str], object]


def compare_videos(
    database: Database, model_id: int, *, progress: Progress = lambda text: None
) -> SimilarityReport:
    """Compare all videos of a model with each other, and store what they share.

    Everything is computed anew: how common a frame is depends on all videos. What was stored is
    replaced in one transaction.

    Raises:
        ModelNotFoundError: no such model.
    """
    began = time.monotonic()
    model = ModelStore(database).get(model_id)
    videos = _videos(database, model_id)
    library = _Library(database, model, videos)
    means_VD, candidates = _candidates(library, list(videos))
    progress(f"comparing {len(candidates)} pairs of {len(videos)} videos frame by frame")
    matched = {}
    for a, b in candidates:
        matches = find_matches(library[a], library[b])
        if len(matches):
            matched[a, b] = matches
    spread = _count_videos(library, matched)
    found: list[_Found] = []
    for (a, b), matches in matched.items():
        found += _judge(library, a, b, matches, spread)
    _store(database, model_id, library, means_VD, found)
    return SimilarityReport(
        model=model.name,
        videos=len(videos),
        frames=sum(library.frames.values()),
        pairs_compared=len(candidates),
        duplicates=len({(row.a, row.b) for row in found if row.duplicate}),
        segments=len(found),
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """A row to be stored."""

    a: int
    b: int
    segment: Segment
    duplicate: bool
    covered: float


class _Library:
    """The frames of videos, read when they are needed; the last ones are kept."""

    def __init__(self, database: Database, model: ModelRow, videos: dict[int, str]) -> None:
        self._vectors = VectorStore(database)
        self._kept: OrderedDict[int, Footage] = OrderedDict()
        self.model = model
        self.videos = videos
        self.frames: dict[int, int] = {}

    def __getitem__(self, video_id: int) -> Footage:
        if video_id in self._kept:
            self._kept.move_to_end(video_id)
        else:
            batch = self._vectors.vectors(self.model.model_id, self.videos[video_id])
            self.frames[video_id] = len(batch)
            self._kept[video_id] = Footage(
                time_seconds_N=batch.time_seconds_N, embeddings_ND=batch.embeddings_ND
            )
            if len(self._kept) > _FOOTAGE_KEPT:
                self._kept.popitem(last=False)
        return self._kept[video_id]


def _videos(database: Database, model_id: int) -> dict[int, str]:
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT video_id, path FROM ingests JOIN videos USING (video_id)"
            " WHERE model_id = %s AND ingests.frames > 0 ORDER BY video_id",
            [model_id],
        ).fetchall()
    return {int(video_id): str(path) for video_id, path in rows}


def _candidates(
    library: _Library, videos: Sequence[int]
) -> tuple[dict[int, FloatArray], list[tuple[int, int]]]:
    """A vector per video, and pairs of videos that have alike moments, lower id first."""
    means: dict[int, FloatArray] = {}
    moments: list[FloatArray] = []
    owners: list[int] = []
    for video_id in videos:
        footage = library[video_id]
        cut = cut_moments(
            footage.embeddings_ND,
            np.arange(len(footage.time_seconds_N)),
            footage.time_seconds_N,
            threshold=library.model.moment_threshold,
        )
        if not len(cut):
            continue
        total_D = cut.means_MD.sum(axis=0)
        means[video_id] = total_D / max(float(np.linalg.norm(total_D)), 1e-12)
        moments.append(cut.means_MD)
        owners += [video_id] * len(cut)
    if not moments:
        return means, []
    means_MD, owner_M = np.concatenate(moments), np.array(owners)
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(means_MD), _BLOCK):
        cosines = means_MD[start : start + _BLOCK] @ means_MD[start:].T
        rows, columns = np.nonzero(cosines >= CANDIDATE_COSINE)
        alike = np.stack([owner_M[start + rows], owner_M[start + columns]], axis=1)
        alike = np.unique(np.sort(alike[alike[:, 0] != alike[:, 1]], axis=1), axis=0)
        pairs.update((int(a), int(b)) for a, b in alike)
    return means, sorted(pairs)


def _count_videos(
    library: _Library, matched: dict[tuple[int, int], Matches]
) -> dict[int, FloatArray]:
    """For each frame, in how many other videos there is one like it; at least 1."""
    counts: dict[int, FloatArray] = defaultdict(lambda: np.zeros(0, np.float32))
    for (a, b), matches in matched.items():
        for video_id, frames in ((a, matches.row_N), (b, matches.column_N)):
            if video_id not in counts:
                counts[video_id] = np.zeros(library.frames[video_id], np.float32)
            counts[video_id][np.unique(frames)] += 1
    return {video_id: np.maximum(count_N, 1) for video_id, count_N in counts.items()}


def _judge(
    library: _Library, a: int, b: int, matches: Matches, spread: dict[int, FloatArray]
) -> Iterator[_Found]:
    """What two videos share, and whether that makes them copies."""
    footage = {a: library[a], b: library[b]}
    segments = shared_segments(footage[a], footage[b], matches)
    # A frame that stands still, or that many videos have, says little about what a video shows.
    weight = {v: difference_weights(footage[v].embeddings_ND) / spread[v] for v in (a, b)}
    share = {
        a: _share(weight[a], [segment.rows for segment in segments]),
        b: _share(weight[b], [segment.columns for segment in segments]),
    }
    length = {v: len(f.time_seconds_N) * f.step_seconds for v, f in footage.items()}
    covered = share[a] if length[a] <= length[b] else share[b]
    proven = max((segment.different for segment in segments), default=0.0) >= MIN_DIFFERENT
    duplicate = covered >= COVERED if proven else _same_still(segments, share)
    for segment in segments:
        common = float(np.mean(spread[a][segment.rows])) > COMMON
        # One frame is a coincidence, however much of a video it is.
        if len(segment.rows) > 1 and (
            duplicate or (segment.different >= MIN_DIFFERENT and not common)
        ):
            yield _Found(a, b, segment, duplicate, covered)


def _same_still(segments: Sequence[Segment], share: dict[int, float]) -> bool:
    alike = min((segment.cosine for segment in segments), default=0.0)
    return alike >= STILL_COSINE and min(share.values()) >= COVERED_STILL


def _share(weight_N: FloatArray, parts: Sequence[Any]) -> float:
    inside = np.zeros(len(weight_N), bool)
    for part in parts:
        # Frames between two that match are in the stretch too.
        inside[part.min() : part.max() + 1] = True
    return float(weight_N[inside].sum() / weight_N.sum())


def _store(
    database: Database,
    model_id: int,
    library: _Library,
    means_VD: dict[int, FloatArray],
    found: Sequence[_Found],
) -> None:
    numbers: dict[tuple[int, int], int] = defaultdict(int)
    rows = []
    for row in found:
        numbers[row.a, row.b] += 1
        s = row.segment
        rows.append(
            [
                *(model_id, row.a, row.b, numbers[row.a, row.b]),
                *(s.start_a, s.end_a, s.start_b, s.end_b, s.speed),
                *(s.cosine, s.different, row.duplicate, row.covered),
            ]
        )
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_BUILD, -model_id])
        for table in ("video_vectors", "shared_segments"):
            statement = sql.SQL("DELETE FROM {} WHERE model_id = %s")
            cursor.execute(statement.format(sql.Identifier(table)), [model_id])
        # A video may have been deleted since it was read.
        known = _known(connection)
        cursor.executemany(
            "INSERT INTO video_vectors (model_id, video_id, frames, embedding)"
            " VALUES (%s, %s, %s, %s)",
            [
                [model_id, video_id, library.frames[video_id], HalfVector(mean_D)]
                for video_id, mean_D in means_VD.items()
                if video_id in known
            ],
        )
        cursor.executemany(
            "INSERT INTO shared_segments (model_id, video_a, video_b, segment, start_a, end_a,"
            " start_b, end_b, speed, score, evidence, duplicate, covered)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [row for row in rows if row[1] in known and row[2] in known],
        )


def _known(connection: Connection) -> set[int]:
    rows = connection.execute("SELECT video_id FROM videos FOR KEY SHARE").fetchall()
    return {int(video_id) for (video_id,) in rows}


class VideoSimilarityStore:
    """What :func:`compare_videos` found last."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def segments(
        self,
        *,
        model_id: int | None = None,
        video: str | None = None,
        duplicates_only: bool = False,
        limit: int | None = None,
    ) -> list[SharedSegment]:
        """Stretches that videos share: copies first, then by covered share, path and time.

        Args:
            model_id: under which model; None: the active one.
            video: only with this one, on either side.
            duplicates_only: only of pairs that are copies.
            limit: at most so many.
        """
        with (
            self._database.connection() as connection,
            connection.cursor(row_factory=class_row(SharedSegment)) as cursor,
        ):
            return cursor.execute(
                "SELECT a.path AS video_a, b.path AS video_b, s.video_a AS video_a_id,"
                " s.video_b AS video_b_id, s.start_a, s.end_a, s.start_b, s.end_b, s.speed,"
                " s.score, s.evidence, s.duplicate, s.covered FROM shared_segments s"
                " JOIN videos a ON a.video_id = s.video_a JOIN videos b ON b.video_id = s.video_b"
                " WHERE s.model_id = coalesce(%(model)s::integer,"
                " (SELECT model_id FROM models WHERE is_active))"
                " AND (%(video)s::text IS NULL OR %(video)s IN (a.path, b.path))"
                " AND (s.duplicate OR NOT %(only)s)"
                " ORDER BY s.duplicate DESC, s.covered DESC, a.path, b.path, s.start_a"
                " LIMIT %(limit)s",
                {"model": model_id, "video": video, "only": duplicates_only, "limit": limit},
            ).fetchall()

    def similar(
        self, video: str, *, k: int = 10, model_id: int | None = None
    ) -> list[SimilarVideo]:
        """Videos whose vectors are nearest to a video's, best first, ties by path.

        Empty when the video is unknown, or has not been compared yet.
        """
        with (
            self._database.connection() as connection,
            connection.cursor(row_factory=class_row(SimilarVideo)) as cursor,
        ):
            return cursor.execute(
                "SELECT v.path AS video, v.video_id,"
                " greatest(-1, least(1, -(o.embedding <#> q.embedding))) AS score"
                " FROM video_vectors q JOIN videos w ON w.video_id = q.video_id"
                " JOIN video_vectors o ON o.model_id = q.model_id AND o.video_id <> q.video_id"
                " JOIN videos v ON v.video_id = o.video_id WHERE w.path = %(video)s"
                " AND q.model_id = coalesce(%(model)s::integer,"
                " (SELECT model_id FROM models WHERE is_active))"
                " ORDER BY score DESC, v.path LIMIT %(k)s",
                {"video": video, "model": model_id, "k": k},
            ).fetchall()
