"""Choose the kind of index for a search, its ef_search, and the server settings."""

from weakref import WeakKeyDictionary

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds import Generation, IndexKind, Scope, index_kind
from siglip_pipeline.store.kinds.effort import Effort, effort_for

# Up to this many frames in scope, an exact search is faster than an index with a filter.
EXACT_FRAMES = 20_000


def choose_kind(target: Generation, scope: Scope) -> IndexKind:
    """Return the kind of the live index, or the exact kind where few frames are in scope."""
    if scope.video_ids is not None and scope.frames <= EXACT_FRAMES:
        return index_kind("exact")
    return index_kind(target.kind)


def effort_of(
    kind: IndexKind, target: Generation, query_QD: FloatArray, ef_search: int | None = None
) -> Effort:
    """Return how far a search goes: what it asks for, or else what the recall check chose."""
    chosen = effort_for(target.parameters, query_QD) if kind.name == target.kind else None
    if ef_search is None and chosen is not None:
        return chosen
    ef_search = ef_search or kind.default_ef_search
    return Effort(ef_search=ef_search, rows=ef_search)


def set_up(
    connection: Connection,
    kind: IndexKind,
    target: Generation,
    scope: Scope,
    *,
    effort: Effort,
    rows: int,
) -> IndexKind:
    """Return what searches a scope for so many rows, and apply its server settings.

    They apply to the transaction or else to the session. A session that has the same settings from
    its last search is left as it is.
    """
    kind, ef_search = kind.within(target, scope, effort=effort, rows=rows)
    settings = kind.settings(ef_search=ef_search, rows=rows, scope=scope)
    if not connection.autocommit:
        _set(connection, settings, local=True)
    elif _SESSION_SETTINGS.get(connection) != settings:
        _set(connection, settings, local=False)
        _SESSION_SETTINGS[connection] = settings
    return kind


_SESSION_SETTINGS: WeakKeyDictionary[Connection, dict[str, str]] = WeakKeyDictionary()


def _set(connection: Connection, settings: dict[str, str], *, local: bool) -> None:
    if settings:
        values = [v for name, value in settings.items() for v in (name, value, local)]
        calls = b", ".join([b"set_config(%s, %s, %s)"] * len(settings))
        connection.execute(b"SELECT " + calls, values)
