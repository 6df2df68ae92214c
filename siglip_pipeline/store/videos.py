"""The table of videos: the properties of each, and its progress through the stages."""

import builtins
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from siglip_pipeline.records import Stage, Upload, VideoInfo
from siglip_pipeline.store import generations
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.fingerprints import restate

VideoState = Literal["pending", "frames", "embedded", "indexed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last failure of one stage of one video."""

    video: str
    stage: str
    reason: str
    failed_at: datetime
    shard: str | None = None
    """The shard of the video in a divided collection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoWarnings:
    """What people should know of a video that is indexed all the same."""

    video: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRow:
    """A video and its progress under one model."""

    video_id: int
    video: str
    state: VideoState
    """``pending``: no result yet; ``frames``: decoded; ``embedded``: vectors stored; ``indexed``:
    searchable; ``failed``: the last run of some stage failed."""
    stage: str | None
    """The stage that failed."""
    reason: str | None
    size_bytes: int | None
    modified_at: datetime | None
    source_fingerprint: str | None
    """The listing's fingerprint when the video was decoded."""
    sha256: str | None
    sampling: str | None
    frames: int | None
    damaged_share: float | None
    duration_seconds: float | None
    info: dict[str, Any] | None
    """:class:`~siglip_pipeline.records.VideoInfo` as JSON; fractions as text."""
    warnings: list[str]
    """What people should know of its stored frames."""
    media_offset_seconds: float
    """What a player's clock shows at the first frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCounts:
    """What ``status`` shows of the videos."""

    total: int
    decoded: int
    """Videos with stored frames, searchable or not."""
    embedded: int
    """Videos with current vectors under the model, searchable or not."""
    indexed: int
    failed: int
    pending: int
    """All others: in progress, or not begun."""
    frames: int
    """Stored frames of all videos."""
    vectors: int
    """Stored vectors under the model."""
    failures: list[Failure]


# The fields of :class:`VideoRow`, in one query over all videos; %(model)s may be null.
ROWS = """
    SELECT v.video_id, v.path AS video,
           CASE WHEN f.stage IS NOT NULL THEN 'failed'
                WHEN i.video_id IS NOT NULL AND i.source_sha256 = v.source_sha256
                     AND i.sampling = v.sampling
                THEN CASE WHEN m.active_generation IS NULL THEN 'embedded' ELSE 'indexed' END
                WHEN v.source_sha256 IS NOT NULL THEN 'frames'
                ELSE 'pending' END AS state,
           f.stage, f.reason, v.size_bytes, v.modified_at, v.source_fingerprint,
           v.source_sha256 AS sha256, v.sampling, v.frames, v.damaged_share,
           v.duration_seconds, v.info, v.warnings, v.media_offset_seconds
    FROM videos v
    LEFT JOIN models m ON m.model_id = coalesce(%(model)s::integer,
                                                (SELECT model_id FROM models WHERE is_active))
    LEFT JOIN ingests i ON i.video_id = v.video_id AND i.model_id = m.model_id
    LEFT JOIN LATERAL (SELECT stage, reason FROM failures f WHERE f.video_id = v.video_id
                       ORDER BY failed_at DESC, stage LIMIT 1) f ON true
"""

_COUNTS = f"""
    WITH rows AS ({ROWS})
    SELECT count(*),
           count(*) FILTER (WHERE sha256 IS NOT NULL),
           count(*) FILTER (WHERE state IN ('embedded', 'indexed')),
           count(*) FILTER (WHERE state = 'indexed'),
           count(*) FILTER (WHERE state = 'failed'),
           coalesce(sum(frames), 0),
           (SELECT coalesce(sum(frames), 0) FROM ingests
            WHERE model_id = coalesce(%(model)s::integer,
                                      (SELECT model_id FROM models WHERE is_active)))
    FROM rows
"""

_RECORD_FRAMES = """
    UPDATE videos
    SET source_fingerprint = %s, source_sha256 = %s, sampling = %s, frames = %s, damaged_share = %s,
        duration_seconds = %s, info = %s, warnings = %s, decoded_at = now()
    WHERE video_id = %s
"""

_FINGERPRINTS = """
    SELECT path, fingerprint FROM (
        SELECT path,
               CASE WHEN f.video_id IS NULL THEN v.source_fingerprint
                    ELSE coalesce(f.source_fingerprint, listed_fingerprint, v.source_fingerprint)
                    END AS fingerprint
        FROM videos v LEFT JOIN failures f ON f.video_id = v.video_id AND f.stage = 'video_frames'
    ) worked_on
    WHERE fingerprint IS NOT NULL AND (%(videos)s::text[] IS NULL OR path = ANY(%(videos)s))
"""

_LAST_TRIES = """
    SELECT path, v.source_fingerprint, max(failed_at)
    FROM videos v LEFT JOIN failures USING (video_id)
    WHERE path = ANY(%s)
    GROUP BY video_id
"""

_OUT_OF_DATE_FRAMES = """
    SELECT path FROM videos
    WHERE source_sha256 IS NOT NULL
      AND (sampling <> %s OR listed_fingerprint <> source_fingerprint)
    ORDER BY path
"""

_OUT_OF_DATE_VECTORS = """
    SELECT path FROM videos v
    WHERE source_sha256 IS NOT NULL
      AND EXISTS (SELECT FROM ingests i WHERE i.video_id = v.video_id)
      AND NOT EXISTS (SELECT FROM ingests i
                      WHERE i.video_id = v.video_id AND i.model_id = %s
                        AND i.source_sha256 = v.source_sha256 AND i.sampling = v.sampling)
    ORDER BY path
"""

_UPSERT = """
    INSERT INTO videos (path, size_bytes, modified_at) VALUES (%s, %s, %s)
    ON CONFLICT (path) DO UPDATE SET
        size_bytes = coalesce(excluded.size_bytes, videos.size_bytes),
        modified_at = coalesce(excluded.modified_at, videos.modified_at)
    RETURNING video_id
"""


class VideoStore:
    """The table of videos."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def mark_frames_damaged(self, video: str) -> None:
        """Mark stored frames as out of date, so that no other video copies them.

        The sensor announces the video again, as if it were new.
        """
        with self._database.connection() as connection:
            connection.execute(
                """
                UPDATE videos SET sampling = '', listed_fingerprint = NULL WHERE path = %s
                AND sampling IS NOT NULL
                """,
                [video],
            )

    def record_frames(
        self,
        *,
        upload: Upload,
        info: VideoInfo,
        source_sha256: str,
        sampling: str,
        frames: int,
        damaged_share: float,
        warnings: Iterable[str] = (),
    ) -> None:
        """Record that a video was decoded, and the source and sampling of its stored frames."""
        with self._database.connection() as connection:
            video_id = _upsert(connection, upload.path, upload)
            restate(connection, [upload])  # else the one that was announced differs from this one
            connection.execute(
                _RECORD_FRAMES,
                [
                    upload.fingerprint,
                    source_sha256,
                    sampling,
                    frames,
                    damaged_share,
                    info.duration_seconds,
                    Jsonb(asdict(info) | {"time_base": str(info.time_base)}),
                    [*warnings],
                    video_id,
                ],
            )
            clear_failure(connection, video_id, Stage.FRAMES)

    def record_failure(
        self, video: str, *, stage: Stage, reason: str, upload: Upload | None = None
    ) -> None:
        """Record that a stage of a video failed; leave its stored results unchanged."""
        with self._database.connection() as connection:
            video_id = _upsert(connection, video, upload)
            connection.execute(
                """
                INSERT INTO failures (video_id, stage, reason) VALUES (%s, %s, %s)
                ON CONFLICT (video_id, stage)
                DO UPDATE SET reason = excluded.reason, failed_at = now(),
                              source_fingerprint = NULL, source_sha256 = NULL, conditions = NULL
                """,
                [video_id, stage, reason.replace("\0", "")],
            )

    def clear_failure(self, video: str, stage: Stage) -> None:
        """Record that nothing is wrong any more with a stage of a video."""
        with self._database.connection() as connection:
            clear_failure(connection, ensure(connection, video), stage)

    def get(self, video: str, *, model_id: int | None = None) -> VideoRow | None:
        """Return a video under a model (default: the active one); None if unknown."""
        rows = self._rows(sql.SQL("WHERE v.path = %(video)s"), video=video, model=model_id)
        return rows[0] if rows else None

    def list(self, *, model_id: int | None = None) -> list[VideoRow]:
        """Return all videos, sorted by path."""
        return self._rows(sql.SQL("ORDER BY v.path"), model=model_id)

    def named(self, videos: Iterable[str]) -> builtins.list[VideoRow]:
        """Return the known ones of these videos under the active model, sorted by path."""
        suffix = sql.SQL("WHERE v.path = ANY(%(videos)s) ORDER BY v.path")
        return self._rows(suffix, videos=list(videos), model=None)

    def by_id(self, video_id: int) -> VideoRow | None:
        """Return a video under the active model; None if unknown."""
        condition = sql.SQL("WHERE v.video_id = %(video)s")
        rows = self._rows(condition, video=video_id, model=None)
        return rows[0] if rows else None

    def count(self) -> int:
        """Return how many videos are known."""
        with self._database.connection() as connection:
            [row] = connection.execute("SELECT count(*) FROM videos")
        return int(row[0])

    def _rows(self, suffix: sql.Composable, **values: Any) -> builtins.list[VideoRow]:
        with (
            self._database.connection() as connection,
            connection.cursor(row_factory=class_row(VideoRow)) as cursor,
        ):
            return cursor.execute(sql.SQL(ROWS) + suffix, values).fetchall()

    def paths(self) -> set[str]:
        """Return the paths of all known videos."""
        with self._database.connection() as connection:
            return {path for (path,) in connection.execute("SELECT path FROM videos")}

    def states(self, *, model_id: int | None = None) -> dict[str, VideoState]:
        """Return the state of each video, by path."""
        return {row.video: row.state for row in self.list(model_id=model_id)}

    def counts(self, model_id: int | None = None) -> VideoCounts:
        """Return what ``status`` shows, under a model (default: the active one)."""
        with self._database.connection() as connection:
            [row] = connection.execute(_COUNTS, {"model": model_id})
        total, decoded, embedded, indexed, failed, frames, vectors = map(int, row)
        return VideoCounts(
            total=total,
            decoded=decoded,
            embedded=embedded,
            indexed=indexed,
            failed=failed,
            pending=total - indexed - failed,
            frames=frames,
            vectors=vectors,
            failures=self.failures(),
        )

    def decoded_contents(
        self, sizes: Iterable[int], sampling: str
    ) -> dict[int, dict[str, VideoRow]]:
        """Return videos of these sizes with stored frames, by size in bytes, then by SHA-256."""
        contents: dict[int, dict[str, VideoRow]] = {}
        rows = self._rows(
            sql.SQL("WHERE v.size_bytes = ANY(%(sizes)s) AND v.sampling = %(sampling)s"),
            sizes=list(sizes),
            sampling=sampling,
            model=None,
        )
        for row in rows:
            if row.size_bytes is not None and row.sha256 is not None:
                contents.setdefault(row.size_bytes, {})[row.sha256] = row
        return contents

    def out_of_date_frames(self, sampling: str) -> builtins.list[str]:
        """Return videos with frames of another sampling, or of an upload that changed since."""
        with self._database.connection() as connection:
            rows = connection.execute(_OUT_OF_DATE_FRAMES, [sampling]).fetchall()
        return [path for (path,) in rows]

    def fingerprints(self, videos: Iterable[str] | None = None) -> dict[str, str]:
        """Return by path the fingerprint of each upload when it was last decoded, or failed.

        Args:
            videos: only these; None for all.
        """
        values = {"videos": None if videos is None else list(videos)}
        with self._database.connection() as connection:
            rows = connection.execute(_FINGERPRINTS, values).fetchall()
        return dict(rows)

    def last_tries(self, videos: Iterable[str]) -> dict[str, tuple[str | None, datetime | None]]:
        """Return by path what changes with each try: the decoded file's fingerprint, the failure's
        time.
        """
        with self._database.connection() as connection:
            rows = connection.execute(_LAST_TRIES, [list(videos)]).fetchall()
        return {path: (fingerprint, failed_at) for path, fingerprint, failed_at in rows}

    def out_of_date_vectors(self, model_id: int | None) -> builtins.list[str]:
        """Return videos whose vectors are all of other frames or of other models than this one.

        A video without any vectors is pending, not out of date.
        """
        with self._database.connection() as connection:
            rows = connection.execute(_OUT_OF_DATE_VECTORS, [model_id]).fetchall()
        return [path for (path,) in rows]

    def failures(self) -> builtins.list[Failure]:
        """Return the last failure of each stage that has not succeeded since, by video."""
        with (
            self._database.connection() as connection,
            connection.cursor(row_factory=class_row(Failure)) as cursor,
        ):
            return cursor.execute(
                """
                SELECT path AS video, stage, reason, failed_at, part AS shard
                FROM failures JOIN videos USING (video_id)
                ORDER BY path, failed_at
                """
            ).fetchall()

    def warnings(self) -> builtins.list[VideoWarnings]:
        """Return the videos with warnings, sorted by path."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT path, warnings FROM videos WHERE warnings <> '{}' ORDER BY path"
            ).fetchall()
        return [VideoWarnings(video=path, warnings=tuple(warnings)) for path, warnings in rows]

    def delete(self, video: str) -> bool:
        """Delete a video with its vectors under every model; return False if it is unknown."""
        with self._database.connection() as connection:
            video_id = find(connection, video)
            if video_id is None:
                return False
            generations.remove_video(connection, video_id)
            connection.execute("DELETE FROM videos WHERE video_id = %s", [video_id])
            return True


def find(connection: Connection, video: str) -> int | None:
    """Return the id of a video; None if unknown."""
    row = connection.execute("SELECT video_id FROM videos WHERE path = %s", [video]).fetchone()
    return None if row is None else int(row[0])


def ensure(connection: Connection, video: str) -> int:
    """Return the id of a video; insert it if it is new."""
    return find(connection, video) or _upsert(connection, video, None)


def clear_failure(connection: Connection, video_id: int, stage: Stage) -> None:
    """Delete the failure of a stage that has succeeded."""
    connection.execute("DELETE FROM failures WHERE video_id = %s AND stage = %s", [video_id, stage])


def _upsert(connection: Connection, video: str, upload: Upload | None) -> int:
    [row] = connection.execute(
        _UPSERT,
        [video, upload and upload.size_bytes, upload and timestamp(upload)],
    )
    return int(row[0])


def timestamp(upload: Upload) -> datetime | None:
    """Return when the upload was last modified; None if unknown."""
    return None if upload.modified_at is None else datetime.fromtimestamp(upload.modified_at, UTC)
