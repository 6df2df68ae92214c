"""Interpret the terms of a query: their vectors, and what a result shows of them."""

from collections.abc import Sequence
from dataclasses import replace

from siglip_pipeline.hits import Moment, QueryShown, TermShown
from siglip_pipeline.search.embedder import QueryEmbedder
from siglip_pipeline.search.query_terms import MomentTerm, QueryTerm, TextTerm
from siglip_pipeline.search.query_vectors import QueryVectorizer, QueryVectors
from siglip_pipeline.search.results import shown
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.video_names import stored_name

ShownVectors = tuple[QueryShown, QueryVectors]
"""A query as it was interpreted, and its vectors."""


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
        only = stored[0] if len(stored) == 1 else None
        if isinstance(only, MomentTerm):
            frame = self._vectorizer.frame(model, only.video, only.seconds)
            like = Moment(video=only.video, time_seconds=frame.time_seconds)
            return QueryShown(like=like), self._vectorizer.moment(frame)
        return self._shown(model, stored), self._vectorizer.of_terms(model, stored)

    def _shown(self, model: ModelRow, terms: Sequence[QueryTerm]) -> QueryShown:
        shown_terms = tuple(self._shown_term(model, term) for term in terms)
        if len(terms) > 1:
            return QueryShown(mix=shown_terms)
        [only] = shown_terms
        return QueryShown(
            text=only.text, image=only.image, truncated=only.truncated, tokens=only.tokens
        )

    def _shown_term(self, model: ModelRow, term: QueryTerm) -> TermShown:
        tokens = None
        if isinstance(term, TextTerm):
            tokens = self._embedder.tokens_if_cut(model, term.text)
        return replace(shown(term), truncated=tokens is not None or None, tokens=tokens)

    def _stored(self, term: QueryTerm) -> QueryTerm:
        """Return a term with the name of its video as it is stored."""
        if not isinstance(term, MomentTerm):
            return term
        return replace(term, video=stored_name(self._database, term.video))
