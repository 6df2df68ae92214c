"""Load and read the vectors of the frames of each video, per model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from psycopg import sql

from siglip_pipeline.errors import VectorError
from siglip_pipeline.records import EmbeddingBatch, FloatArray, Stage
from siglip_pipeline.store import generations, tables, videos
from siglip_pipeline.store.copy import copy_rows
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.moments import Moments, cut_moments
from siglip_pipeline.text.in_words import counted

NORM_TOLERANCE = 1e-3

_SUMMARY = """
SELECT v.video_id, count(f.video_id), coalesce(min(l2_norm(embedding)), 1),
       coalesce(max(l2_norm(embedding)), 1)
FROM videos v LEFT JOIN {} f USING (video_id)
WHERE v.path = %s
GROUP BY v.video_id
"""

_MISCOUNTED = """
SELECT path, coalesce(f.stored, 0), i.frames
FROM ingests i
JOIN videos USING (video_id)
LEFT JOIN (SELECT video_id, count(*) AS stored FROM {} GROUP BY 1) f USING (video_id)
WHERE i.model_id = %s AND coalesce(f.stored, 0) <> i.frames
ORDER BY path
"""

_FRAMES = """
SELECT frame_index, time_seconds, embedding
FROM {} WHERE video_id = (SELECT video_id FROM videos WHERE path = %s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """The outcome of loading one video's vectors."""

    outcome: Literal["written", "current"]
    """``current`` if the same vectors were stored already, and nothing was written."""
    frames: int
    moments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVector:
    """One frame's vector."""

    frame_index: int
    time_seconds: float
    embedding_D: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSummary:
    """The number and lengths of one video's vectors under one model."""

    video_id: int
    vectors: int
    shortest: float
    """Smallest Euclidean length of a vector; 1 if there is none."""
    longest: float


class VectorStore:
    """The vectors of the frames of each video, per model."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._models: dict[int, ModelRow] = {}

    def _model(self, model_id: int) -> ModelRow:
        if model_id not in self._models:  # the fields that are read here never change
            self._models[model_id] = ModelStore(self._database).get(model_id)
        return self._models[model_id]

    def is_current(self, model_id: int, video: str, *, source_sha256: str, sampling: str) -> bool:
        """Return whether vectors of this source and sampling are stored."""
        with self._database.connection() as connection:
            row = connection.execute(
                """
                SELECT 1 FROM ingests JOIN videos USING (video_id) WHERE model_id = %s
                AND path = %s AND ingests.source_sha256 = %s AND ingests.sampling = %s
                """,
                [model_id, video, source_sha256, sampling],
            ).fetchone()
        return row is not None

    def load(
        self,
        model_id: int,
        batch: EmbeddingBatch,
        *,
        source_sha256: str,
        sampling: str,
        force: bool = False,
    ) -> LoadResult:
        """Replace a video's vectors in one transaction.

        They are searchable in the live index when the transaction ends.

        Args:
            model_id: from :meth:`ModelStore.register`.
            batch: unit vectors of all sampled frames, in time order.
            source_sha256: hash of the upload that the frames were decoded from.
            sampling: canonical text of the sampling policy.
            force: write even if the same source and sampling are stored.

        Raises:
            VectorError: a vector is not finite, not of unit length or of the wrong size, frames are
                out of order, or the video was deleted meanwhile.
            ModelNotFoundError: no such model.
        """
        model = self._model(model_id)
        check_vectors(batch, model.dim)
        with self._database.connection() as connection:
            video_id = videos.ensure(connection, batch.video)
            generations.lock_for_writing(connection, model_id, video_id)
            if (
                videos.find(connection, batch.video) != video_id
            ):  # deleted while this waited for the lock
                raise VectorError(
                    f"{batch.video}: it was deleted while it was embedded, because its upload is "
                    "gone; upload it again to make it searchable"
                )
            if not force:
                stored = _current(connection, model_id, video_id, source_sha256, sampling)
                if stored is not None:
                    videos.clear_failure(connection, video_id, Stage.VECTORS)
                    return stored
            result = _write(connection, model_id, video_id, batch, source_sha256, sampling)
            videos.clear_failure(connection, video_id, Stage.VECTORS)
        return result

    def video_of_content(self, model_id: int, *, source_sha256: str, sampling: str) -> str | None:
        """Return a video with vectors of this content and sampling; None if there is none."""
        with self._database.connection() as connection:
            row = connection.execute(
                """
                SELECT path FROM ingests JOIN videos USING (video_id) WHERE model_id = %s
                AND ingests.source_sha256 = %s AND ingests.sampling = %s
                ORDER BY path LIMIT 1
                """,
                [model_id, source_sha256, sampling],
            ).fetchone()
        return None if row is None else str(row[0])

    def summary(self, model_id: int, video: str) -> VectorSummary:
        """Return the number and lengths of a video's stored vectors."""
        query = sql.SQL(_SUMMARY).format(tables.frames(model_id))
        with self._database.connection() as connection:
            [row] = connection.execute(query, [video])
        video_id, vectors, shortest, longest = row
        return VectorSummary(video_id=video_id, vectors=vectors, shortest=shortest, longest=longest)

    def miscounted(self, model_id: int) -> dict[str, tuple[int, int]]:
        """Return ``(stored, recorded)`` numbers of vectors by path, where they differ."""
        query = sql.SQL(_MISCOUNTED).format(tables.frames(model_id))
        with self._database.connection() as connection:
            rows = connection.execute(query, [model_id]).fetchall()
        return {path: (stored, recorded) for path, stored, recorded in rows}

    def mark_outdated(self, model_id: int, videos: Sequence[str]) -> None:
        """Mark vectors to be computed again; searches use them until then."""
        with self._database.connection() as connection:
            connection.execute(
                """
                UPDATE ingests SET source_sha256 = '' FROM videos v WHERE ingests.model_id = %s
                AND v.video_id = ingests.video_id AND v.path = ANY(%s)
                """,
                [model_id, list(videos)],
            )

    def vectors(self, model_id: int, video: str) -> EmbeddingBatch:
        """Return all vectors of a video in time order; empty if there are none."""
        with self._database.connection() as connection:
            return self.read(connection, model_id, video)

    def read(self, connection: Connection, model_id: int, video: str) -> EmbeddingBatch:
        """Return :meth:`vectors`, within the caller's transaction."""
        query = sql.SQL(_FRAMES + "ORDER BY frame_index").format(tables.frames(model_id))
        rows = connection.cursor(binary=True).execute(query, [video]).fetchall()
        embeddings = [row[2].to_numpy().astype(np.float32) for row in rows]
        dim = self._model(model_id).dim
        return EmbeddingBatch(
            video=video,
            frame_index_N=np.array([row[0] for row in rows], dtype=np.int64),
            time_seconds_N=np.array([row[1] for row in rows], dtype=np.float64),
            embeddings_ND=np.array(embeddings, dtype=np.float32).reshape(-1, dim),
        )

    def nearest_frame(self, model_id: int, video: str, time_seconds: float) -> StoredVector | None:
        """Return the stored frame nearest in time, or the earlier of two; None without frames."""
        query = sql.SQL(_FRAMES + "ORDER BY abs(time_seconds - %s), frame_index LIMIT 1").format(
            tables.frames(model_id)
        )
        with self._database.connection() as connection:
            row = connection.cursor(binary=True).execute(query, [video, time_seconds]).fetchone()
        if row is None:
            return None
        return StoredVector(
            frame_index=row[0],
            time_seconds=row[1],
            embedding_D=row[2].to_numpy().astype(np.float32),
        )


def check_vectors(batch: EmbeddingBatch, dim: int) -> None:
    """Refuse vectors that would give wrong search results.

    Raises:
        VectorError: names the video and the first faulty frame.
    """
    if batch.embeddings_ND.shape[1] != dim:
        raise VectorError(
            f"{batch.video}: vectors of {batch.embeddings_ND.shape[1]} dimensions, the model has "
            f"{dim}"
        )
    if len(batch) > 1:
        behind = np.flatnonzero(np.diff(batch.frame_index_N) <= 0)
        if behind.size:
            raise VectorError(
                f"{batch.video}: frame {batch.frame_index_N[behind[0] + 1]} does not follow frame "
                f"{batch.frame_index_N[behind[0]]}; frames must be in order, each once"
            )
    # The norm is NaN or infinite if any value is: one pass finds all three faults.
    norms_N = np.sqrt(np.einsum("nd,nd->n", batch.embeddings_ND, batch.embeddings_ND))
    wrong = np.flatnonzero(~(np.abs(norms_N - 1) <= NORM_TOLERANCE))
    if wrong.size == 0:
        return
    vector_D, norm = batch.embeddings_ND[wrong[0]], norms_N[wrong[0]]
    if np.isnan(vector_D).any():
        fault = "NaN"
    elif np.isinf(vector_D).any():
        fault = "an infinite value"
    else:
        fault = f"length {norm:.4f}, which must be 1 to within {NORM_TOLERANCE}"
    raise VectorError(
        f"{batch.video}: the vector of frame {batch.frame_index_N[wrong[0]]} has {fault} "
        f"({wrong.size} of {counted(len(batch), 'vector')} at fault)"
    )


def _current(
    connection: Connection, model_id: int, video_id: int, source_sha256: str, sampling: str
) -> LoadResult | None:
    row = connection.execute(
        """
        SELECT frames, moments FROM ingests WHERE model_id = %s AND video_id = %s
        AND source_sha256 = %s AND sampling = %s
        """,
        [model_id, video_id, source_sha256, sampling],
    ).fetchone()
    return None if row is None else LoadResult(outcome="current", frames=row[0], moments=row[1])


def _write(
    connection: Connection,
    model_id: int,
    video_id: int,
    batch: EmbeddingBatch,
    source_sha256: str,
    sampling: str,
) -> LoadResult:
    """Replace a video's frames and moments, and update the live index; the caller has the lock."""
    threshold = _moment_threshold(connection, model_id)
    moments = cut_moments(
        batch.embeddings_ND, batch.frame_index_N, batch.time_seconds_N, threshold=threshold
    )
    generations.delete_rows(connection, model_id, video_id)
    _write_frames(connection, model_id, video_id, batch)
    write_moments(connection, model_id, video_id, moments)
    connection.execute(
        _RECORD,
        {
            "model": model_id,
            "video": video_id,
            "sha256": source_sha256,
            "sampling": sampling,
            "frames": len(batch),
            "moments": len(moments),
            "threshold": threshold,
        },
    )
    live = generations.live(connection, model_id)
    if live is not None:
        generations.refresh_video(connection, live, video_id)
    return LoadResult(outcome="written", frames=len(batch), moments=len(moments))


def _moment_threshold(connection: Connection, model_id: int) -> float:
    # Read under the lock, as a build may be cutting all moments with another threshold.
    [row] = connection.execute(
        "SELECT moment_threshold FROM models WHERE model_id = %s", [model_id]
    )
    return float(row[0])


def _write_frames(
    connection: Connection, model_id: int, video_id: int, batch: EmbeddingBatch
) -> None:
    copy_rows(
        connection,
        tables.frames(model_id),
        {
            "video_id": ("int4", video_id),
            "frame_index": ("int4", batch.frame_index_N),
            "time_seconds": ("float8", batch.time_seconds_N),
        },
        vector=("embedding", batch.embeddings_ND),
    )


def write_moments(connection: Connection, model_id: int, video_id: int, moments: Moments) -> None:
    """Append a video's moments; the caller has deleted the old ones."""
    copy_rows(
        connection,
        tables.moments(model_id),
        {
            "video_id": ("int4", video_id),
            "moment": ("int4", np.arange(len(moments))),
            "first_frame": ("int4", moments.first_frame_M),
            "last_frame": ("int4", moments.last_frame_M),
            "start_seconds": ("float8", moments.start_seconds_M),
            "end_seconds": ("float8", moments.end_seconds_M),
        },
    )


_RECORD = """
    INSERT INTO ingests (model_id, video_id, source_sha256, sampling, frames, moments,
                         moment_threshold)
    VALUES (%(model)s, %(video)s, %(sha256)s, %(sampling)s, %(frames)s, %(moments)s, %(threshold)s)
    ON CONFLICT (model_id, video_id) DO UPDATE SET ingest_id = DEFAULT,
        source_sha256 = excluded.source_sha256, sampling = excluded.sampling,
        frames = excluded.frames, moments = excluded.moments,
        moment_threshold = excluded.moment_threshold, finished_at = now()
"""
