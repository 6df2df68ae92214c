"""Search: the moments nearest to a query vector, whatever kind the live index is of."""

import psycopg

from siglip_pipeline.errors import NothingIndexedError, QueryError, StoreError
from siglip_pipeline.hits import Hit, SearchRequest
from siglip_pipeline.store import generations
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.kinds import Generation, Scope
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.scope import resolve_scope
from siglip_pipeline.store.search.search_run import find_hits

_ATTEMPTS = 3


class ActiveModelChangedError(Exception):
    """Another model has been promoted since the query was embedded: embed it again."""


class MomentSearch:
    """Searches one database. Thread-safe; keep one for many searches.

    It remembers which generation was live, and asks about that one in the same breath as whether it
    still is: most searches without filters are one question to the server.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._live: dict[int, Generation] = {}

    def search(
        self, model: ModelRow, request: SearchRequest, *, must_be_active: bool = False
    ) -> list[Hit]:
        """Return the ``k`` moments nearest to a query; fewer only when there are fewer.

        Args:
            model: the model that the query was embedded with.
            request: what is looked for, and where.
            must_be_active: search only if the model is the one that search answers with.

        Returns:
            Hits by falling score; ties by path, then frame. Their probability is the score's.

        Raises:
            NothingIndexedError: the model has no published index.
            QueryError: a value that cannot be searched for.
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
        raise AssertionError("unreachable")

    def _at_once(
        self, model: ModelRow, request: SearchRequest, *, must_be_active: bool
    ) -> list[Hit] | None:
        """Ask the generation that was live; None where that cannot be, or is not known."""
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
        """As many statements as it takes: a video that is replaced is seen before or after."""
        with self._database.snapshot() as connection:
            target, active = generations.live_and_active(connection, model.model_id)
            if must_be_active and not active:
                raise ActiveModelChangedError
            if target is None:
                raise NothingIndexedError(
                    f"no index is published for model {model.name} yet; materialize "
                    "similarity_index"
                )
            self._live[model.model_id] = target
            scope = resolve_scope(connection, model.model_id, request.filter)
            hits = find_hits(connection, model, target, scope, request)
            assert hits is not None, "it is live in this snapshot"
            return hits
