"""Embed queries with the model of the stored vectors. N items, D dimensions."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from siglip_pipeline.errors import QueryError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search.query_pictures import SECONDS, Picture, read_picture
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.text_embeddings import Encoder, TextEncoder, extract_text_embeddings
from siglip_pipeline.siglip.text_tower import open_text_model
from siglip_pipeline.store.models import ModelRow

if TYPE_CHECKING:
    from siglip_pipeline.siglip.model import SiglipModel

TEXTS_KEPT = 2048
"""Texts whose vectors are cached: 9 MB at 1,152 dimensions."""

_Encoder = TypeVar("_Encoder", bound=Encoder)

_SURELY_READ = 60
"""A text of so many bytes has at most 64 tokens, those of its beginning and end included."""


class QueryEmbedder:
    """Embed texts and pictures; load each tower of the model on first use.

    Thread-safe. To embed the texts of several requests in one batch, a server can derive from this
    class, override :meth:`texts`, and pass its own object to :class:`.SearchService`.

    Args:
        options: the device and dtype. Each call names the model.
        picture_seconds: time limit for decoding one picture.
        few_texts: embed texts on the CPU without torch, which takes seconds to import: for a
            process that ends after a query or two.
    """

    def __init__(
        self,
        options: ModelOptions,
        *,
        picture_seconds: float = SECONDS,
        few_texts: bool = False,
    ) -> None:
        self._options = options
        self._few_texts = few_texts
        self._without_torch: TextEncoder | None = None
        self._picture_seconds = picture_seconds
        self._texts: OrderedDict[tuple[str, str], FloatArray] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, model: ModelRow, tower: Literal["text", "image"] = "text") -> None:
        """Load a tower now, so that the first query does not wait for it.

        Raises:
            ModelError: the model cannot be found, loaded, or put on the device.
            QueryError: the files are not those that embedded the stored vectors.
        """
        if tower == "text":
            self._text_model(model)
        else:
            self._model(model, tower)

    def texts(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
        """Return the unit vectors [N, D] of texts; cache the last ones.

        Raises:
            ModelError: the model cannot be found, loaded, or put on the device.
            QueryError: the files are not those that embedded the stored vectors.
        """
        # The text tower gets lower case, so texts that differ in case have the same vector.
        keys = [(model.key, text.lower()) for text in texts]
        found: dict[tuple[str, str], FloatArray] = {}
        with self._lock:
            for key in keys:
                if key in self._texts:
                    self._texts.move_to_end(key)
                    found[key] = self._texts[key]
        missing = list(dict.fromkeys(key for key in keys if key not in found))
        if missing:
            fresh_ND = self.embed_texts(model, [text for _, text in missing])
            found.update(zip(missing, fresh_ND, strict=True))
            with self._lock:
                self._texts.update((key, found[key]) for key in missing)
                while len(self._texts) > TEXTS_KEPT:
                    self._texts.popitem(last=False)
        return np.stack([found[key] for key in keys])

    def tokens_if_cut(self, model: ModelRow, text: str) -> int | None:
        """Return the number of a text's tokens if the model does not read all of them."""
        # A token has at least one byte: most texts need no tokenizer.
        if len(text.lower().encode()) <= _SURELY_READ:
            return None
        siglip = self._text_model(model)
        [cut] = siglip.tokenize([text]).cut_N
        return cut + siglip.recipe.text_length if cut else None

    def embed_texts(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
        """Return the unit vectors [N, D] of texts, without the cache."""
        return extract_text_embeddings(texts, model=self._text_model(model))

    def images(self, model: ModelRow, images: Sequence[Picture]) -> FloatArray:
        """Return the unit vectors [N, D] of pictures: files, bytes, or pixels, uint8 [H, W, 3].

        Raises:
            ModelError: the model cannot be found, loaded, or put on the device.
            QueryError: a file is missing, is not a picture, or takes too long to decode.
        """
        seconds = self._picture_seconds
        pictures = [
            image if isinstance(image, np.ndarray) else read_picture(image, seconds=seconds)
            for image in images
        ]
        siglip = self._model(model, "image")
        # Imported here, as torch takes seconds.
        from siglip_pipeline.siglip.embeddings import extract_image_embeddings

        return extract_image_embeddings(pictures, model=siglip)

    def _text_model(self, model: ModelRow) -> TextEncoder:
        if not self._few_texts:
            return self._model(model, "text")
        with self._lock:
            known = self._without_torch
            if known is None or known.spec.key != model.key:
                known = open_text_model(self._options_of(model)) or self._model(model, "text")
                self._without_torch = _checked(known, model)
            return known

    def _model(self, model: ModelRow, tower: Literal["text", "image"]) -> "SiglipModel":
        from siglip_pipeline.siglip.model import get_model

        return _checked(get_model(self._options_of(model), tower=tower), model)

    def _options_of(self, model: ModelRow) -> ModelOptions:
        return replace(self._options, name=model.name, revision=model.revision)


def _checked(loaded: _Encoder, model: ModelRow) -> _Encoder:
    """Return a loaded model, if it is the one of the stored vectors."""
    if loaded.spec.key != model.key:
        raise QueryError(
            f"the files of {model.name} have changed since the indexed vectors were made "
            f"({loaded.spec.key}, they are of {model.key}): put the old files back, or index "
            "the videos again"
        )
    return loaded
