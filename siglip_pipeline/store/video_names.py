"""Find the videos that typed names mean, in whatever Unicode form.

A name is stored as the file system gave it. macOS and some keyboards write an accent as a character
of its own, others do not; people see the same name.
"""

from collections.abc import Sequence
from unicodedata import normalize

from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.uploads.names import same_name

# To normalize takes a microsecond for each video; a path of ASCII alone is its own form.
_CANDIDATES = """
SELECT path FROM videos
WHERE path = ANY(%(names)s) OR path = ANY(%(forms)s)
      OR (octet_length(path) > length(path) AND normalize(path, NFC) = ANY(%(forms)s))
"""


def stored_name(database: Database, name: str) -> str:
    """Return the path of the video that a name means; the name itself if there is none.

    Raises:
        QueryError: several videos have the name in other Unicode forms.
    """
    with database.connection() as connection:
        return stored_names(connection, [name])[0]


def stored_names(connection: Connection, names: Sequence[str]) -> list[str]:
    """Return the path of the video that each name means; the name itself if there is none.

    A video whose path is exactly the name is preferred to those whose path is canonically
    equivalent.

    Raises:
        QueryError: several videos have a name in other Unicode forms.
    """
    if not names:
        return []
    forms = [normalize("NFC", name) for name in names]
    rows = connection.execute(_CANDIDATES, {"names": [*names], "forms": forms})
    paths = {path for (path,) in rows}
    return [name if name in paths else same_name(name, paths) or name for name in names]
