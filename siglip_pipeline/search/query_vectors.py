"""Compute the vectors of a query under one model.

Shapes: Q vectors of one query, T terms of a mix, M moments of a clip, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from siglip_pipeline.errors import QueryError
from siglip_pipeline.records import FloatArray, FrameBatch
from siglip_pipeline.search.embedder import QueryEmbedder
from siglip_pipeline.search.query_pictures import Picture
from siglip_pipeline.search.query_terms import (
    ImageTerm,
    MomentTerm,
    QueryTerm,
    TextTerm,
)
from siglip_pipeline.search.ranking import PROMPTS, Ranking
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.modality_means import modality_means
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.moments import cut_moments
from siglip_pipeline.store.vectors import StoredVector, VectorStore

_TEXT_LOGITS = 2.0
"""Neighbouring moments are one hit for a text if their logits differ by at most this: if the odds
of the best are at most 7 times those of the others."""
_PICTURE_COSINE = 0.05
"""Neighbouring moments are one hit for a picture if their cosines differ by at most this."""
_CLIP_VECTORS = 8
"""The number of a clip's longest moments that form the query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryVectors:
    """A query under one model."""

    query_QD: FloatArray
    within: float
    """Cosine by which the scores of neighbouring moments in one hit may differ."""
    is_text: bool = False
    """Whether it is made of texts alone."""
    texts_TD: FloatArray | None = None
    """Texts of a mix, which give its probability; None to derive it from the score."""
    negative: tuple[bool, ...] = ()
    """Which of these texts must not fit."""


class QueryVectorizer:
    """Compute the vectors of queries.

    Args:
        embedder: embeds texts and pictures.
        database: holds the vectors of moments.
        ranking: whether texts are embedded in several sentences, and mixes centred.
    """

    def __init__(self, embedder: QueryEmbedder, database: Database, ranking: Ranking) -> None:
        self._embedder = embedder
        self._database = database
        self._ranking = ranking

    def text(self, model: ModelRow, text: str) -> QueryVectors:
        """Return the vectors of a text."""
        return QueryVectors(
            query_QD=self.texts(model, [text]), within=text_within(model), is_text=True
        )

    def image(self, model: ModelRow, image: Picture) -> QueryVectors:
        """Return the vectors of a picture."""
        vectors_QD = self._embedder.images(model, [image])
        return QueryVectors(query_QD=vectors_QD, within=_PICTURE_COSINE)

    def vector(
        self, model: ModelRow, vector_D: npt.ArrayLike, kind: Literal["picture", "text"]
    ) -> QueryVectors:
        """Return a given vector, at length 1.

        Raises:
            QueryError: it is of another size, or has no direction.
        """
        try:
            given_D = np.asarray(vector_D, np.float32)
        except (TypeError, ValueError) as error:
            raise QueryError(f"the vector is no list of numbers: {error}") from error
        if given_D.shape != (model.dim,):
            raise QueryError(
                f"the vector has shape {given_D.shape}; model {model.name} has {model.dim} numbers"
            )
        length = float(np.linalg.norm(given_D))
        if not 1e-6 < length < math.inf:
            raise QueryError("the vector has no direction: all 0, or a number that is not finite")
        is_text = kind == "text"
        return QueryVectors(
            query_QD=(given_D / length)[None],
            within=text_within(model) if is_text else _PICTURE_COSINE,
            is_text=is_text,
        )

    def frame(self, model: ModelRow, video: str, seconds: float) -> StoredVector:
        """Return the stored frame nearest to a time.

        Raises:
            QueryError: the video has no vectors.
        """
        frame = VectorStore(self._database).nearest_frame(model.model_id, video, seconds)
        if frame is None:
            raise QueryError(
                f"{video!r} has no vectors; check the name, or see whether it failed or waits: "
                "`siglip-pipeline status`"
            )
        return frame

    def moment(self, frame: StoredVector) -> QueryVectors:
        """Return the vectors of a stored frame."""
        return QueryVectors(query_QD=frame.embedding_D[None], within=_PICTURE_COSINE)

    def clip(self, model: ModelRow, frames: FrameBatch) -> QueryVectors:
        """Return the vectors of the longest moments of a clip."""
        moments = cut_moments(
            self._embedder.images(model, frames.jpegs),
            frames.frame_index_N,
            frames.time_seconds_N,
            threshold=model.moment_threshold,
        )
        lengths_M = moments.end_seconds_M - moments.start_seconds_M
        longest = np.sort(np.argsort(-lengths_M, kind="stable")[:_CLIP_VECTORS])
        return QueryVectors(query_QD=moments.means_MD[longest], within=_PICTURE_COSINE)

    def texts(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
        """Return the vectors [N, D] of texts: unit vectors, or the means of several prompts."""
        if not self._ranking.prompts:
            return self._embedder.texts(model, texts)
        prompts = [prompt.format(text=text) for text in texts for prompt in PROMPTS]
        vectors_ND = self._embedder.texts(model, prompts)
        means_ND: FloatArray = vectors_ND.reshape(len(texts), len(PROMPTS), -1).mean(axis=1)
        return means_ND

    def mix(self, model: ModelRow, terms: Sequence[QueryTerm]) -> QueryVectors:
        """Return the vectors of the weighted sum of several terms.

        Raises:
            QueryError: the terms cancel each other.
        """
        texts = [term for term in terms if isinstance(term, TextTerm)]
        images = [term for term in terms if isinstance(term, ImageTerm)]
        moments = [term for term in terms if isinstance(term, MomentTerm)]
        weighted: dict[str, list[tuple[float, FloatArray]]] = {"text": [], "picture": []}
        texts_TD = None
        if texts:
            texts_TD = self.texts(model, [term.text for term in texts])
            weighted["text"] += zip([term.weight for term in texts], texts_TD, strict=True)
        if images:
            images_TD = self._embedder.images(model, [term.image for term in images])
            weighted["picture"] += zip([term.weight for term in images], images_TD, strict=True)
        for term in moments:
            frame = self.frame(model, term.video, term.seconds)
            weighted["picture"].append((term.weight, frame.embedding_D))
        means = self._means(model) if self._ranking.centred and all(weighted.values()) else {}
        total_D = np.sum(
            [
                weight * (vector_D - means.get(kind, 0))
                for kind, of_kind in weighted.items()
                for weight, vector_D in of_kind
            ],
            axis=0,
        )
        length = float(np.linalg.norm(total_D))
        if length < 1e-3 * max(abs(term.weight) for term in terms):
            raise QueryError(
                "the terms of the query cancel each other: nothing is left to look for"
            )
        return QueryVectors(
            query_QD=(total_D / length)[None].astype(np.float32),
            within=_PICTURE_COSINE if images or moments else text_within(model),
            is_text=not (images or moments),
            texts_TD=texts_TD,
            negative=tuple(term.weight < 0 for term in texts),
        )

    def _means(self, model: ModelRow) -> dict[str, FloatArray]:
        means = modality_means(self._database, model.model_id)
        if len(means) < 2:
            raise QueryError(
                "SIGLIP_RANKING=centred needs the queries of the recall check, with vectors of "
                f"texts: build the index of model {model.name} again, or rank without it"
            )
        return means


def text_within(model: ModelRow) -> float:
    """Return by how much the scores of neighbouring moments in one hit may differ, for a text."""
    return _TEXT_LOGITS / math.exp(model.logit_scale)
