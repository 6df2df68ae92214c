"""Find videos by name, state and folder: what the page of videos and `/api/videos` list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from unicodedata import normalize

from psycopg import sql
from psycopg.rows import class_row

from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import ROWS, VideoRow, VideoState

VideoOrder = Literal["path", "newest", "oldest", "longest", "largest"]

_ORDERS: Final[dict[VideoOrder, str]] = {
    "path": "video",
    "newest": "modified_at DESC NULLS LAST, video",
    "oldest": "modified_at NULLS LAST, video",
    "longest": "duration_seconds DESC NULLS LAST, video",
    "largest": "size_bytes DESC NULLS LAST, video",
}

_NFC = "CASE WHEN {0} IS NFC NORMALIZED THEN {0} ELSE normalize({0}, NFC) END"
"""The form in which names are compared; the test costs less than the conversion."""

_CONDITIONS = f"""
WHERE (%(name)s::text IS NULL OR position(lower(%(name)s) IN lower({_NFC.format("video")})) > 0)
  AND (%(state)s::text IS NULL OR state = %(state)s)
  AND (%(folder)s::text IS NULL OR starts_with({_NFC.format("video")}, %(folder)s || '/'))
"""

_FOLDERS = f"""
SELECT array_to_string(parts[:%(depth)s], '/'), count(*)
FROM (SELECT string_to_array(path, '/') AS parts
      FROM videos WHERE starts_with({_NFC.format("path")}, %(prefix)s::text)) v
WHERE cardinality(parts) > %(depth)s
GROUP BY 1 ORDER BY 1 LIMIT %(limit)s OFFSET %(offset)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFilter:
    """Which videos to list; the default is all of them."""

    name: str | None = None
    """A part of the path, in any case and Unicode form."""
    state: VideoState | None = None
    folder: str | None = None
    """A folder below UPLOADS, with those below it."""

    def values(self) -> dict[str, Any]:
        """Return the values of the conditions in SQL, which compare names in NFC."""
        return {"name": _nfc(self.name), "state": self.state, "folder": _nfc(self.folder)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder of videos."""

    folder: str
    videos: int
    """Below it, however deep."""


class Library:
    """Lists videos under the active model."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(
        self, filter: VideoFilter, *, order: VideoOrder = "path", limit: int, offset: int = 0
    ) -> list[VideoRow]:
        """Return a page of the videos that pass a filter."""
        query = sql.SQL(
            f"SELECT * FROM ({ROWS}) v {_CONDITIONS} ORDER BY {_ORDERS[order]} "
            "LIMIT %(limit)s OFFSET %(offset)s"
        )
        values = {**filter.values(), "model": None, "limit": limit, "offset": offset}
        with (
            self._database.connection() as connection,
            connection.cursor(row_factory=class_row(VideoRow)) as cursor,
        ):
            return cursor.execute(query, values).fetchall()

    def count(self, filter: VideoFilter) -> int:
        """Return how many videos pass a filter."""
        query = f"SELECT count(*) FROM ({ROWS}) v {_CONDITIONS}"
        if filter.state is None:  # the paths alone are enough
            paths = "SELECT path AS video, '' AS state FROM videos"
            query = f"SELECT count(*) FROM ({paths}) v {_CONDITIONS}"
        with self._database.connection() as connection:
            [row] = connection.execute(query, {**filter.values(), "model": None})
        return int(row[0])

    def folders(
        self, folder: str | None = None, *, limit: int = 500, offset: int = 0
    ) -> Sequence[Folder]:
        """Return the folders in a folder, or the topmost ones, by name."""
        prefix = f"{_nfc(folder)}/" if folder else ""
        depth = prefix.count("/") + 1
        values = {"prefix": prefix, "depth": depth, "limit": limit, "offset": offset}
        with self._database.connection() as connection:
            rows = connection.execute(_FOLDERS, values).fetchall()
        return [Folder(folder=name, videos=videos) for name, videos in rows]


def _nfc(name: str | None) -> str | None:
    return None if name is None else normalize("NFC", name)
