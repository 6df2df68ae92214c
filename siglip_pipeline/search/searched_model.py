"""The model whose vectors are searched: the active one, which may change at any time."""

from collections.abc import Callable
from typing import TypeVar

from siglip_pipeline.errors import ModelChangedError, NothingIndexedError
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.search.moment_search import ActiveModelChangedError

MAX_PROMOTIONS = 5
"""How often a search is repeated because another model was promoted meanwhile."""

_T = TypeVar("_T")


class SearchedModel:
    """The active model, as last read; or one model by its key. Thread-safe.

    Args:
        models: where models are registered.
        uploads: named where nothing is indexed.
        key: of a model that is searched whether it is active or not; None for the active one.
    """

    def __init__(self, models: ModelStore, *, uploads: str, key: str | None) -> None:
        self._models = models
        self._uploads = uploads
        self._key = key
        self._last: ModelRow | None = None

    def model(self) -> ModelRow:
        """Return the model, as last read.

        Raises:
            NothingIndexedError: no index has been published yet.
            ModelNotFoundError: no model has the key.
        """
        # A local name, as another thread may reset the attribute at any time.
        model = self._last
        if model is None:
            model = self._models.active() if self._key is None else self._models.get(self._key)
        if model is None:
            raise NothingIndexedError(
                f"nothing is indexed yet; put videos into {self._uploads} and run `siglip-pipeline "
                "up`, or run `siglip-pipeline ingest FILE... --wait`"
            )
        self._last = model
        return model

    def read_again(self) -> ModelRow:
        """Return the model as it is now; raise as :meth:`model`."""
        self._last = None
        return self.model()

    def answer(self, answer: Callable[[ModelRow], _T]) -> _T:
        """Return an answer of the model; ask again if another one is promoted meanwhile.

        Raises:
            ModelChangedError: another model was promoted each time.
        """
        for _ in range(MAX_PROMOTIONS):
            try:
                return answer(self.model())
            except ActiveModelChangedError:
                self._last = None
        raise ModelChangedError(
            f"another model was promoted each of the {MAX_PROMOTIONS} times that this search "
            "was tried; search again when `siglip-pipeline models` shows one that stays active"
        )
