"""How a kind of index is asked: which one, how hard to look, with what server settings."""

from weakref import WeakKeyDictionary

from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds import Generation, IndexKind, Scope, index_kind

# Up to so many frames, looking at each is quicker than an index with a filter, and exact.
EXACT_FRAMES = 20_000


def choose_kind(target: Generation, scope: Scope) -> IndexKind:
    """The live index, or none at all where so little is in scope that looking at it is quicker."""
    if scope.video_ids is not None and scope.frames <= EXACT_FRAMES:
        return index_kind("exact")
    return index_kind(target.kind)


def ef_search_of(kind: IndexKind, target: Generation) -> int:
    """How hard to look when nobody says."""
    if kind.name == target.kind and target.ef_search is not None:
        return target.ef_search
    return kind.default_ef_search


def apply_settings(
    connection: Connection, kind: IndexKind, *, rows: int, scope: Scope, ef_search: int
) -> None:
    """Set the server up for a search: until the transaction ends, or for the session without one.

    A session is told only what it was not told last: pooled connections serve like searches.
    """
    settings = kind.settings(ef_search=ef_search, rows=rows, scope=scope)
    if not connection.autocommit:
        _set(connection, settings, local=True)
    elif _TOLD.get(connection) != settings:
        _set(connection, settings, local=False)
        _TOLD[connection] = settings


_TOLD: WeakKeyDictionary[Connection, dict[str, str]] = WeakKeyDictionary()


def _set(connection: Connection, settings: dict[str, str], *, local: bool) -> None:
    if settings:
        values = [part for name, value in settings.items() for part in (name, value, local)]
        calls = b", ".join([b"set_config(%s, %s, %s)"] * len(settings))
        connection.execute(b"SELECT " + calls, values)
