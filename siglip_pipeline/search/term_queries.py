"""Interpret the terms of a query: their vectors, and what a result shows of them."""

from collections.abc import Sequence
from dataclasses import replace

from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import Moment, QueryShown, TermShown
from siglip_pipeline.search.embedder import QueryEmbedder
from siglip_pipeline.search.query_terms import (
    SEQUENCE_ALONE,
    ImageTerm,
    MomentTerm,
    QueryTerm,
    SequenceTerm,
    TextTerm,
)
from siglip_pipeline.search.query_vectors import QueryVectorizer, QueryVectors
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.video_names import stored_name

ShownVectors = tuple[QueryShown, QueryVectors]
"""A query as it was interpreted, and its vectors."""

_Term = TextTerm | ImageTerm | MomentTerm


class TermQueries:
    """Queries that are made of terms: texts, pictures and moments."""

    def __init__(
        self, database: Database, embedder: QueryEmbedder, vectorizer: QueryVectorizer
    ) -> None:
        self._database = database
        self._embedder = embedder
        self._vectorizer = vectorizer

    def embedded(self, model: ModelRow, terms: Sequence[QueryTerm]) -> ShownVectors:
        """Return what a result shows of a query, and its vectors.

        Raises:
            QueryError: terms cancel each other, a moment has no vectors, or a sequence is mixed
                with other terms.
        """
        stored = [self._stored(term) for term in terms]
        shown = tuple(self._shown(model, term) for term in stored)
        if len(stored) > 1:
            return QueryShown(mix=shown), self._vectorizer.mix(model, stored)
        [term], [only] = stored, shown
        if isinstance(term, TextTerm):
            query = QueryShown(text=term.text, truncated=only.truncated, tokens=only.tokens)
            return query, self._vectorizer.text(model, term.text)
        if isinstance(term, ImageTerm):
            return QueryShown(image=term.name), self._vectorizer.image(model, term.image)
        frame = self._vectorizer.frame(model, term.video, term.seconds)
        like = Moment(video=term.video, time_seconds=frame.time_seconds)
        return QueryShown(like=like), self._vectorizer.moment(frame)

    def _shown(self, model: ModelRow, term: _Term) -> TermShown:
        """Return a term in the form of the ``query`` of a result."""
        if isinstance(term, TextTerm):
            tokens = self._embedder.tokens_if_cut(model, term.text)
            cut = tokens is not None or None
            return TermShown(text=term.text, weight=term.weight, truncated=cut, tokens=tokens)
        if isinstance(term, ImageTerm):
            return TermShown(image=term.name, weight=term.weight)
        like = Moment(video=term.video, time_seconds=term.seconds)
        return TermShown(like=like, weight=term.weight)

    def _stored(self, term: QueryTerm) -> _Term:
        """Return a term with the name of its video as it is stored.

        Raises:
            QueryError: it is a sequence.
        """
        if isinstance(term, SequenceTerm):
            raise QueryError(SEQUENCE_ALONE)
        if isinstance(term, MomentTerm):
            return replace(term, video=stored_name(self._database, term.video))
        return term
