"""Fingerprints that earlier versions stored: they stay valid, and are completed."""

from collections.abc import Iterable
from typing import Any

from siglip_pipeline.records import Upload
from siglip_pipeline.store.database import Connection

_RESTATE = """
WITH upload AS (
    SELECT video_id, short, timed, whole
    FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[]) AS known (path, short, timed, whole)
    JOIN videos USING (path)
), failed AS (
    UPDATE failures f SET source_fingerprint = whole
    FROM upload WHERE f.video_id = upload.video_id AND source_fingerprint IN (short, timed)
)
UPDATE videos v SET
    listed_fingerprint =
        CASE WHEN listed_fingerprint IN (short, timed) THEN whole ELSE listed_fingerprint END,
    source_fingerprint =
        CASE WHEN source_fingerprint IN (short, timed) THEN whole ELSE source_fingerprint END
FROM upload
WHERE v.video_id = upload.video_id
  AND (listed_fingerprint IN (short, timed) OR source_fingerprint IN (short, timed))
"""


def restate(connection: Connection, uploads: Iterable[Upload]) -> None:
    """Complete the fingerprints that earlier versions made of these files, in one statement."""
    rows = ((u.path, *u.fingerprints) for u in uploads if u.changed_at is not None)
    connection.execute(_RESTATE, columns(rows, width=4))


def columns(rows: Iterable[tuple[Any, ...]], *, width: int) -> list[list[Any]]:
    """Return rows of ``width`` values as one array per column, for ``unnest``."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]
