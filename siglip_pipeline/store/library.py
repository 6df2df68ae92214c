"""Find videos by name, state and folder: what the page of videos and `/api/videos` list."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

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
_FOLDERS_SHOWN: Final = 500

_CONDITIONS = """
WHERE (%(name)s::text IS NULL OR position(lower(%(name)s) IN lower(video)) > 0)
  AND (%(state)s::text IS NULL OR state = %(state)s)
  AND (%(folder)s::text IS NULL OR starts_with(video, %(folder)s || '/'))
"""

_FOLDERS = """
SELECT prefix || split_part(rest, '/', 1), count(*)
FROM (SELECT %(prefix)s::text AS prefix, substr(path, length(%(prefix)s::text) + 1) AS rest
      FROM videos WHERE starts_with(path, %(prefix)s::text)) v
WHERE position('/' IN rest) > 0
GROUP BY 1 ORDER BY 1 LIMIT %(most)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFilter:
    """Which videos to list; the default is all of them."""

    name: str | None = None
    """A part of the path, in any case."""
    state: VideoState | None = None
    folder: str | None = None
    """A folder below UPLOADS, with those below it."""


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
        values = {**asdict(filter), "model": None, "limit": limit, "offset": offset}
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
            [row] = connection.execute(query, {**asdict(filter), "model": None})
        return int(row[0])

    def folders(self, folder: str | None = None) -> Sequence[Folder]:
        """Return the folders in a folder, or the topmost ones, by name."""
        values = {"prefix": f"{folder}/" if folder else "", "most": _FOLDERS_SHOWN}
        with self._database.connection() as connection:
            rows = connection.execute(_FOLDERS, values).fetchall()
        return [Folder(folder=name, videos=videos) for name, videos in rows]
