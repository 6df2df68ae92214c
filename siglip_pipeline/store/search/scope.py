"""Resolve the filter of a search to the ids of videos."""

from collections.abc import Sequence
from unicodedata import normalize

import psycopg

from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import SearchFilter
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.kinds import Scope
from siglip_pipeline.store.search.globs import glob_regex, is_glob
from siglip_pipeline.store.video_names import stored_names

# One row: thousands of videos cost more to fetch one by one than to find.
_VIDEOS = """
SELECT coalesce(array_agg(video_id) FILTER (WHERE inside), '{}'),
       coalesce(sum(frames) FILTER (WHERE inside), 0)::bigint,
       coalesce(sum(moments) FILTER (WHERE inside), 0)::bigint,
       coalesce(array_agg(path) FILTER (WHERE path = ANY(%(videos)s)), '{}'), count(*)
FROM (
    SELECT v.path, v.video_id, i.frames, i.moments,
           i.frames IS NOT NULL
           AND (%(uploaded_since)s::timestamptz IS NULL OR v.modified_at >= %(uploaded_since)s)
           AND (%(uploaded_until)s::timestamptz IS NULL OR v.modified_at < %(uploaded_until)s)
           AS inside
    FROM videos v LEFT JOIN ingests i ON i.video_id = v.video_id AND i.model_id = %(model)s
    WHERE %(videos)s::text[] IS NULL OR v.path = ANY(%(videos)s) OR v.path ~ ANY(%(globs)s::text[])
          OR (octet_length(v.path) > length(v.path) AND v.path IS NOT NFC NORMALIZED
              AND normalize(v.path, NFC) ~ ANY(%(globs)s))
) video
"""


def resolve_scope(
    connection: Connection,
    model_id: int,
    filter: SearchFilter,
) -> Scope:
    """Return the videos that pass a filter, and how many frames they hold.

    Args:
        connection: in a transaction.
        model_id: the model whose vectors are searched.
        filter: its globs as :func:`~siglip_pipeline.store.search.globs.glob_regex` reads them;
            paths and globs match whatever their Unicode form.

    Raises:
        QueryError: a path is not known or that of several videos, or a glob matches nothing;
            names it.
    """
    if not filter.is_about_videos:
        return Scope(time_range=filter.time_range)
    # A file may be called like a glob.
    videos = stored_names(connection, filter.videos or ())
    globs = [pattern for pattern in filter.videos or () if is_glob(pattern)]
    forms = dict.fromkeys(form for glob in globs for form in (glob, normalize("NFC", glob)))
    values = {
        "uploaded_since": filter.uploaded_since,
        "uploaded_until": filter.uploaded_until,
        "model": model_id,
        "videos": None if filter.videos is None else videos,
        "globs": [glob_regex(glob) for glob in forms],
    }
    try:
        rows = connection.execute(_VIDEOS, values, binary=True)
        [(video_ids, frames, moments, named, count)] = rows
    except psycopg.errors.InvalidRegularExpression as error:
        raise QueryError(
            f"a pattern among {[glob[:60] for glob in globs]} cannot be used ({error}); make it "
            "simpler"
        ) from error
    _check_known(videos, globs, named, count)
    return Scope(video_ids=video_ids, frames=frames, moments=moments, time_range=filter.time_range)


def allows_video(database: Database, model_id: int, filter: SearchFilter, video: str) -> bool:
    """Return whether a filter lets the frames of a video through.

    Raises:
        QueryError: a path of the filter is not known, or a glob matches nothing.
    """
    with database.snapshot() as connection:
        scope = resolve_scope(connection, model_id, filter)
        row = connection.execute("SELECT video_id FROM videos WHERE path = %s", [video]).fetchone()
    return scope.video_ids is None or (row is not None and row[0] in scope.video_ids)


def _check_known(
    videos: Sequence[str], globs: Sequence[str], named: Sequence[str], found: int
) -> None:
    unknown = sorted(set(videos) - set(globs) - set(named))
    if unknown:
        raise QueryError(
            f"no video {unknown[0]!r} ({len(unknown)} of {len(videos)} unknown); give its path "
            "below the uploads, or a glob such as 'holiday/**'"
        )
    if globs and not found:
        raise QueryError(
            f"no video matches {globs[0]!r}; * stays within a folder, ** does not, and without a "
            "/ the pattern is about the file's name"
        )
