"""The vectors of a query: what its terms say, under one model.

Shapes: Q vectors of one query, T terms of a mix, M moments of a clip, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from siglip_pipeline.errors import QueryError
from siglip_pipeline.records import FloatArray, FrameBatch
from siglip_pipeline.search.embedder import QueryEmbedder
from siglip_pipeline.search.query_pictures import Picture
from siglip_pipeline.search.query_terms import ImageTerm, MomentTerm, QueryTerm, TextTerm
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.moments import cut_moments
from siglip_pipeline.store.vectors import StoredVector, VectorStore

_TEXT_LOGITS = 2.0
"""Moments in a row are one answer to a text when their logits differ by at most this: when the odds
of the best are at most 7 times those of the others."""
_PICTURE_COSINE = 0.05
"""… and to a picture when their cosines do; half of what a moment spans at the usual threshold."""
_CLIP_VECTORS = 8
"""Of a long clip, so many of its longest moments count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryVectors:
    """A query under one model."""

    query_QD: FloatArray
    within: float
    """Cosine by which the scores of neighbours in one moment may differ."""
    texts_TD: FloatArray | None = None
    """Texts of a mix, by which its probability is judged; None: the score itself says."""
    negative: tuple[bool, ...] = ()
    """Which of these texts must not fit."""


class QueryVectorizer:
    """Makes the vectors of queries.

    Args:
        embedder: of texts and pictures.
        vectors: where those of moments are stored.
    """

    def __init__(self, embedder: QueryEmbedder, vectors: VectorStore) -> None:
        self._embedder = embedder
        self._vectors = vectors

    def text(self, model: ModelRow, text: str) -> QueryVectors:
        """Of words."""
        return QueryVectors(query_QD=self._embedder.texts(model, [text]), within=text_within(model))

    def image(self, model: ModelRow, image: Picture) -> QueryVectors:
        """Of a picture."""
        vectors_QD = self._embedder.images(model, [image])
        return QueryVectors(query_QD=vectors_QD, within=_PICTURE_COSINE)

    def frame(self, model: ModelRow, video: str, seconds: float) -> StoredVector:
        """The stored frame nearest to a time.

        Raises:
            QueryError: the video has no vectors.
        """
        frame = self._vectors.nearest_frame(model.model_id, video, seconds)
        if frame is None:
            raise QueryError(
                f"{video!r} has no vectors; `siglip-pipeline status` lists what is indexed"
            )
        return frame

    def moment(self, frame: StoredVector) -> QueryVectors:
        """Of a stored frame."""
        return QueryVectors(query_QD=frame.embedding_D[None], within=_PICTURE_COSINE)

    def clip(self, model: ModelRow, frames: FrameBatch) -> QueryVectors:
        """Of the moments of a clip."""
        moments = cut_moments(
            self._embedder.images(model, frames.jpegs),
            frames.frame_index_N,
            frames.time_seconds_N,
            threshold=model.moment_threshold,
        )
        lengths_M = moments.end_seconds_M - moments.start_seconds_M
        longest = np.sort(np.argsort(-lengths_M, kind="stable")[:_CLIP_VECTORS])
        return QueryVectors(query_QD=moments.means_MD[longest], within=_PICTURE_COSINE)

    def mix(self, model: ModelRow, terms: Sequence[QueryTerm]) -> QueryVectors:
        """Of the weighted sum of several terms.

        Raises:
            QueryError: they cancel each other.
        """
        texts = [term for term in terms if isinstance(term, TextTerm)]
        images = [term for term in terms if isinstance(term, ImageTerm)]
        moments = [term for term in terms if isinstance(term, MomentTerm)]
        weighted: list[tuple[float, FloatArray]] = []
        texts_TD = None
        if texts:
            texts_TD = self._embedder.texts(model, [term.text for term in texts])
            weighted += zip([term.weight for term in texts], texts_TD, strict=True)
        if images:
            images_TD = self._embedder.images(model, [term.image for term in images])
            weighted += zip([term.weight for term in images], images_TD, strict=True)
        for term in moments:
            frame = self.frame(model, term.video, term.seconds)
            weighted.append((term.weight, frame.embedding_D))
        total_D = np.sum([weight * vector_D for weight, vector_D in weighted], axis=0)
        length = float(np.linalg.norm(total_D))
        if length < 1e-3 * max(abs(weight) for weight, _ in weighted):
            raise QueryError(
                "the terms of the query cancel each other: nothing is left to look for"
            )
        return QueryVectors(
            query_QD=(total_D / length)[None].astype(np.float32),
            within=_PICTURE_COSINE if images or moments else text_within(model),
            texts_TD=texts_TD,
            negative=tuple(term.weight < 0 for term in texts),
        )


def text_within(model: ModelRow) -> float:
    """Cosine that scores of neighbouring moments may differ by and be one hit, for a text."""
    return _TEXT_LOGITS / math.exp(model.logit_scale)
