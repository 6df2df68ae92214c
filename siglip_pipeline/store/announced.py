"""Uploads as they were last announced: what the sensor compares a listing with."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from siglip_pipeline.records import Upload
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import timestamp


class AnnouncedUploads:
    """What the table of videos says about their uploads. ``part``: a folder below UPLOADS."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, uploads: Iterable[Upload]) -> dict[str, str]:
        """Note uploads as announced: new ones are pending, known ones keep their state.

        Returns:
            By path, a name for this announcement that no other one of any upload ever has.
        """
        with self._database.connection() as connection:
            rows = connection.execute(
                "INSERT INTO videos (path, size_bytes, modified_at, listed_fingerprint,"
                " announcements) SELECT *, 1 FROM unnest(%s::text[], %s::bigint[],"
                " %s::timestamptz[], %s::text[]) ON CONFLICT (path) DO UPDATE SET"
                " listed_fingerprint = excluded.listed_fingerprint, missing_since = NULL,"
                " announcements = videos.announcements + 1"
                " RETURNING path, video_id, announcements",
                _columns((u.path, u.size_bytes, timestamp(u), u.fingerprint) for u in uploads),
            ).fetchall()
        return {path: f"{video_id}.{number}" for path, video_id, number in rows}

    def note_runs(self, runs: Mapping[str, str | None]) -> None:
        """Note by path which run was asked for; None: nothing is waited for any more."""
        with self._database.connection() as connection:
            connection.execute(
                "UPDATE videos SET announced_run = run, announced_at = now()"
                " FROM unnest(%s::text[], %s::text[]) AS asked (video, run) WHERE path = video",
                [list(runs), list(runs.values())],
            )

    def unconfirmed_runs(self, *, older_than: timedelta, part: str | None = None) -> dict[str, str]:
        """By path, runs that were asked for so long ago that they must exist by now."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT path, announced_run FROM videos WHERE announced_run IS NOT NULL"
                " AND announced_at < now() - %s AND starts_with(path, %s)",
                [older_than, _below(part)],
            ).fetchall()
        return dict(rows)

    def announce_again(self, videos: Iterable[str]) -> None:
        """Have the sensor take these up as if they were new."""
        with self._database.connection() as connection:
            connection.execute(
                "UPDATE videos SET listed_fingerprint = NULL, announced_at = now()"
                " WHERE path = ANY(%s)",
                [list(videos)],
            )

    def moved_within(self, age: timedelta) -> set[str]:
        """Videos that were noted, announced, sampled or embedded so lately, by path."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT path FROM videos WHERE greatest(registered_at, announced_at, decoded_at)"
                " > now() - %(age)s UNION SELECT path FROM videos JOIN ingests USING (video_id)"
                " WHERE finished_at > now() - %(age)s",
                {"age": age},
            ).fetchall()
        return {path for (path,) in rows}

    def note_missing(self, missing: Iterable[str], *, part: str | None = None) -> None:
        """These uploads of a part, and no others, are not where they were; the first time counts.

        Args:
            missing: paths.
            part: a folder below UPLOADS, as in :class:`.UploadStore`.
        """
        with self._database.connection() as connection:
            connection.execute(
                "UPDATE videos SET missing_since ="
                " CASE WHEN path = ANY(%(missing)s) THEN coalesce(missing_since, now()) END"
                " WHERE (path = ANY(%(missing)s)) <> (missing_since IS NOT NULL)"
                " AND starts_with(path, %(below)s)",
                {"missing": list(missing), "below": _below(part)},
            )

    def note_part(self, part: str | None) -> None:
        """What lies below this folder is worked on as this part; None: the collection is whole."""
        with self._database.connection() as connection:
            connection.execute(
                "UPDATE videos SET part = %(part)s"
                " WHERE starts_with(path, %(below)s) AND part IS DISTINCT FROM %(part)s",
                {"part": part, "below": _below(part)},
            )

    def missing_for(self, grace: timedelta, *, part: str | None = None) -> list[str]:
        """Videos of a part whose uploads have been missing for longer than ``grace``, by path."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT path FROM videos WHERE missing_since < now() - %s"
                " AND starts_with(path, %s) ORDER BY path",
                [grace, _below(part)],
            ).fetchall()
        return [path for (path,) in rows]

    def listed_fingerprints(self, *, part: str | None = None) -> dict[str, str]:
        """Fingerprint of each upload of a part when it was last announced, by path; empty: not."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT path, coalesce(listed_fingerprint, '') FROM videos"
                " WHERE starts_with(path, %s)",
                [_below(part)],
            ).fetchall()
        return dict(rows)

    def count(self, *, part: str | None = None) -> int:
        """How many videos of a part are known."""
        with self._database.connection() as connection:
            [row] = connection.execute(
                "SELECT count(*) FROM videos WHERE starts_with(path, %s)", [_below(part)]
            )
        return int(row[0])


def _below(part: str | None) -> str:
    """What the paths of a part begin with; of everything, nothing in common."""
    return f"{part}/" if part else ""


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Rows as one array a column, for ``unnest``."""
    return [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
