"""Search the live index, of any kind, for the moments nearest to a query."""

import psycopg

from siglip_pipeline.errors import NothingIndexedError, QueryError, StoreError
from siglip_pipeline.hits import Hit, SearchRequest
from siglip_pipeline.store import generations, tables
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.kinds import Generation, Scope
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.scope import resolve_scope
from siglip_pipeline.store.search.search_run import find_hits

_ATTEMPTS = 3


class ActiveModelChangedError(Exception):
    """Another model was promoted after the query was embedded: embed the query again."""


class MomentSearch:
    """Search one database. Thread-safe; reuse one object for many searches.

    The object remembers the live generation. One statement searches it and checks that it is still
    live, so most searches without filters take a single round trip.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._live: dict[int, Generation] = {}

    def search(
        self, model: ModelRow, request: SearchRequest, *, must_be_active: bool = False
    ) -> list[Hit]:
        """Return the ``k`` moments nearest to a query; fewer only if fewer exist.

        Args:
            model: the model that the query was embedded with.
            request: the query vectors, the filter and the limits.
            must_be_active: search only if the model is the one that search answers with.

        Returns:
            Hits by falling score; ties by path, then frame. The probability is that of the score.

        Raises:
            NothingIndexedError: the model has no published index.
            QueryError: a value that cannot be searched for, such as a vector of another size.
            ActiveModelChangedError: ``must_be_active``, and it is not.
        """
        shape = request.query_QD.shape
        if len(shape) != 2 or not shape[0] or shape[1] != model.dim:
            raise QueryError(f"the query has shape {shape[-1:]}, model {model.name} ({model.dim},)")
        for attempt in range(_ATTEMPTS):
            try:
                hits = self._at_once(model, request, must_be_active=must_be_active)
                if hits is not None:
                    return hits
                return self._in_snapshot(model, request, must_be_active=must_be_active)
            except StoreError as error:
                # The generation was replaced, and its tables dropped, meanwhile.
                dropped = isinstance(error.__cause__, psycopg.errors.UndefinedTable)
                if attempt == _ATTEMPTS - 1 or not dropped:
                    raise
                self._live.pop(model.model_id, None)
                with self._database.connection() as connection:  # was the model dropped?
                    _find_live(connection, model, must_be_active=must_be_active)
        raise AssertionError("unreachable")

    def _at_once(
        self, model: ModelRow, request: SearchRequest, *, must_be_active: bool
    ) -> list[Hit] | None:
        """Search the generation that was live last; None if that is not possible."""
        target = self._live.get(model.model_id)
        if target is None or request.filter.is_about_videos:
            return None
        scope = Scope(time_range=request.filter.time_range)
        with self._database.autocommit() as connection:
            return find_hits(
                connection, model, target, scope, request, must_be_active=must_be_active
            )

    def _in_snapshot(
        self, model: ModelRow, request: SearchRequest, *, must_be_active: bool
    ) -> list[Hit]:
        """Search in one snapshot, which shows a replaced video either before or after."""
        with self._database.snapshot(reading=tables.frames(model.model_id)) as connection:
            target = _find_live(connection, model, must_be_active=must_be_active)
            self._live[model.model_id] = target
            scope = resolve_scope(connection, model.model_id, request.filter)
            hits = find_hits(connection, model, target, scope, request)
            assert hits is not None, "it is live in this snapshot"
            return hits


def _find_live(connection: Connection, model: ModelRow, *, must_be_active: bool) -> Generation:
    """Return the live generation of a model.

    Raises:
        NothingIndexedError: it has none.
        ActiveModelChangedError: ``must_be_active``, and it is not.
    """
    target, active = generations.live_and_active(connection, model.model_id)
    if must_be_active and not active:
        raise ActiveModelChangedError
    if target is None:
        raise NothingIndexedError(
            f"no index is published for model {model.name} yet; materialize similarity_index"
        )
    return target
