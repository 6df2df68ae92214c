"""The uploads as they were last announced, with which the sensor compares a listing."""

from collections.abc import Iterable, Mapping
from datetime import timedelta

from siglip_pipeline.records import Upload
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.fingerprints import columns, restate
from siglip_pipeline.store.videos import timestamp

_REGISTER = """
INSERT INTO videos (path, size_bytes, modified_at, listed_fingerprint, announcements)
SELECT *, 1 FROM unnest(%s::text[], %s::bigint[], %s::timestamptz[], %s::text[])
ON CONFLICT (path) DO UPDATE SET
    listed_fingerprint = excluded.listed_fingerprint,
    missing_since = NULL,
    announcements = videos.announcements + 1
RETURNING path, format('%%s.%%s at %%s', video_id, announcements, extract(epoch FROM now()))
"""

_NOTE_RUNS = """
UPDATE videos SET announced_run = run, announced_at = now()
FROM unnest(%s::text[], %s::text[]) AS requested (video, run)
WHERE path = video
"""

_UNCONFIRMED_RUNS = """
SELECT path, announced_run FROM videos
WHERE announced_run IS NOT NULL AND announced_at < now() - %s AND starts_with(path, %s)
"""

_MOVED_WITHIN = """
SELECT path FROM videos
WHERE greatest(registered_at, announced_at, decoded_at) > now() - %(age)s
UNION
SELECT path FROM videos JOIN ingests USING (video_id) WHERE finished_at > now() - %(age)s
"""

_NOTE_MISSING = """
UPDATE videos
SET missing_since = CASE WHEN path = ANY(%(missing)s) THEN coalesce(missing_since, now()) END
WHERE (path = ANY(%(missing)s)) <> (missing_since IS NOT NULL) AND starts_with(path, %(prefix)s)
"""

_NOTE_SHARD = """
UPDATE videos SET part = %(shard)s
WHERE starts_with(path, %(prefix)s) AND part IS DISTINCT FROM %(shard)s
"""

_MISSING_FOR = """
SELECT path FROM videos
WHERE missing_since < now() - %s AND starts_with(path, %s)
ORDER BY path
"""

_FINGERPRINTS = """
SELECT path, coalesce(listed_fingerprint, '') FROM videos WHERE starts_with(path, %s)
"""


class AnnouncedUploads:
    """What the table of videos holds about their uploads.

    ``shard`` is the folder below UPLOADS of a shard of the collection; None for all of it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, uploads: Iterable[Upload]) -> dict[str, str]:
        """Record uploads as announced: new ones are pending, known ones keep their state.

        Returns:
            By path, a name that is unique among all announcements of all uploads; also where a
            backup was restored, which numbers videos and announcements as they were before: Dagster
            knows the runs of the earlier ones.
        """
        uploads = list(uploads)
        rows = ((u.path, u.size_bytes, timestamp(u), u.fingerprint) for u in uploads)
        with self._database.connection() as connection:
            restate(connection, uploads)
            return dict(connection.execute(_REGISTER, columns(rows, width=4)).fetchall())

    def restate(self, uploads: Iterable[Upload]) -> None:
        """Complete the fingerprints that earlier versions made of these files; announce none."""
        with self._database.connection() as connection:
            restate(connection, uploads)

    def note_runs(self, runs: Mapping[str, str | None]) -> None:
        """Record by path which run was requested; None where none is awaited any more."""
        with self._database.connection() as connection:
            connection.execute(_NOTE_RUNS, [list(runs), list(runs.values())])

    def unconfirmed_runs(
        self, *, older_than: timedelta, shard: str | None = None
    ) -> dict[str, str]:
        """Return, by path, the unconfirmed runs that were requested longer than this ago."""
        with self._database.connection() as connection:
            rows = connection.execute(_UNCONFIRMED_RUNS, [older_than, _prefix(shard)]).fetchall()
        return dict(rows)

    def announce_again(self, videos: Iterable[str]) -> None:
        """Have the sensor announce these videos as if they were new."""
        with self._database.connection() as connection:
            connection.execute(
                """
                UPDATE videos SET listed_fingerprint = NULL, announced_at = now()
                WHERE path = ANY(%s)
                """,
                [list(videos)],
            )

    def moved_within(self, age: timedelta) -> set[str]:
        """Return the paths that were registered, announced, sampled or embedded within ``age``."""
        with self._database.connection() as connection:
            rows = connection.execute(_MOVED_WITHIN, {"age": age}).fetchall()
        return {path for (path,) in rows}

    def note_missing(self, missing: Iterable[str], *, shard: str | None = None) -> None:
        """Record which uploads of a shard are missing, and since when; all others are present."""
        with self._database.connection() as connection:
            connection.execute(_NOTE_MISSING, {"missing": list(missing), "prefix": _prefix(shard)})

    def note_shard(self, shard: str | None) -> None:
        """Record that this process serves all videos below the shard's folder as that shard."""
        with self._database.connection() as connection:
            connection.execute(_NOTE_SHARD, {"shard": shard, "prefix": _prefix(shard)})

    def missing_for(self, grace: timedelta, *, shard: str | None = None) -> list[str]:
        """Return the paths whose uploads have been missing for longer than ``grace``, sorted."""
        with self._database.connection() as connection:
            rows = connection.execute(_MISSING_FOR, [grace, _prefix(shard)]).fetchall()
        return [path for (path,) in rows]

    def listed_fingerprints(self, *, shard: str | None = None) -> dict[str, str]:
        """Return by path the fingerprint that was last announced; empty if none was."""
        with self._database.connection() as connection:
            rows = connection.execute(_FINGERPRINTS, [_prefix(shard)]).fetchall()
        return dict(rows)

    def count(self, *, shard: str | None = None) -> int:
        """Return how many videos of a shard are known."""
        with self._database.connection() as connection:
            [row] = connection.execute(
                "SELECT count(*) FROM videos WHERE starts_with(path, %s)", [_prefix(shard)]
            )
        return int(row[0])


def _prefix(shard: str | None) -> str:
    """Return what the paths of a shard begin with; empty for the whole collection."""
    return f"{shard}/" if shard else ""
