"""Find the hits of a query, with their probabilities.

Shapes: T texts of a mix, K hits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from siglip_pipeline.hits import MAX_K, Hit, Proof, SearchFilter, SearchRequest
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search.probability import probability_of, score_of
from siglip_pipeline.search.query_vectors import QueryVectors
from siglip_pipeline.search.ranking import CANDIDATES, Ranking
from siglip_pipeline.search.sequences import find_sequences
from siglip_pipeline.siglip.similarity import probability
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.label_scores import score_frames
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.moment_search import MomentSearch
from siglip_pipeline.text.in_words import counted


def proof_sentence(proof: Proof) -> str:
    """Return what a proof states, in words."""
    missed = "missed nothing" if proof.complete else f"missed {counted(len(proof.missed), 'hit')}"
    return (
        f"The index {missed} (recall {proof.recall:.3f}); it took "
        f"{1000 * proof.index_seconds:.1f} ms, the exact search "
        f"{1000 * proof.exact_seconds:.1f} ms."
    )


class HitFinder:
    """Find the moments nearest to a query's vectors, with the probability of each.

    Args:
        database: holds the vectors.
        min_probability: hides less probable hits, unless the filter sets its own minimum.
        ranking: what hits are ranked by.
        must_be_active: search no model but the active one.
    """

    def __init__(
        self,
        database: Database,
        *,
        min_probability: float,
        ranking: Ranking,
        must_be_active: bool = True,
    ) -> None:
        self._database = database
        self._min_probability = min_probability
        self._ranking = ranking
        self._must_be_active = must_be_active
        self._moments = MomentSearch(database)

    def find(
        self,
        model: ModelRow,
        vectors: QueryVectors,
        k: int,
        filter: SearchFilter,
        *,
        exact: bool = False,
        ef_search: int | None = None,
    ) -> tuple[Hit, ...]:
        """Return the ``k`` best moments that are probable enough, best first.

        Args:
            model: the model of the vectors.
            vectors: the query.
            k: the largest number of hits.
            filter: what may be returned.
            exact: compare every frame in scope instead of asking the index.
            ef_search: of the index; None for the value of the recall check.

        Raises:
            ActiveModelChangedError: the model is not the active one any more.
        """
        ranking = self._ranking.of(is_text=vectors.is_text)
        request = SearchRequest(
            query_QD=vectors.query_QD,
            k=max(k, CANDIDATES) if ranking.reorders else k,
            filter=filter,
            within=vectors.within,
            exact=exact,
            ef_search=ef_search,
        )
        hits = self._best(model, vectors, request)
        if ranking.reorders:
            hits = ranking.reordered(self._database, model.model_id, vectors.query_QD, filter, hits)
        return hits[:k]

    def _best(
        self, model: ModelRow, vectors: QueryVectors, request: SearchRequest
    ) -> tuple[Hit, ...]:
        """Return the hits of a request that are probable enough, by score."""
        k, least = request.k, self.least_probability(request.filter)
        if vectors.texts_TD is None:
            request = replace(request, min_score=score_of(least, model))
            return tuple(self._search(model, request))
        while True:
            found = self._search(model, request)
            rated = self._with_probabilities(model, vectors.texts_TD, vectors.negative, found)
            hits = tuple(hit for hit in rated if hit.probability >= least)
            # Hits that the texts make improbable are hidden: search for more.
            if len(hits) >= k or len(found) < request.k or request.k == MAX_K:
                return hits[:k]
            request = replace(request, k=min(4 * request.k, MAX_K))

    def sequences(
        self,
        model: ModelRow,
        texts_TD: FloatArray,
        k: int,
        filter: SearchFilter,
        *,
        within_seconds: float,
    ) -> tuple[Hit, ...]:
        """Return the best sequences of moments; see :func:`.find_sequences`."""
        return find_sequences(
            self._database,
            self._moments,
            model,
            texts_TD,
            within_seconds=within_seconds,
            k=k,
            filter=filter,
            min_probability=self.least_probability(filter),
            must_be_active=self._must_be_active,
        )

    def least_probability(self, filter: SearchFilter) -> float:
        """Return the probability below which hits are hidden."""
        least = filter.min_probability
        return self._min_probability if least is None else least

    def rated(self, model: ModelRow, vectors: QueryVectors, hit: Hit) -> Hit:
        """Return a hit with its probability for a query; that of its score if no mix has texts."""
        if vectors.texts_TD is None:
            return replace(hit, probability=probability_of(hit.score, model))
        [rated] = self._with_probabilities(model, vectors.texts_TD, vectors.negative, [hit])
        return rated

    def _search(self, model: ModelRow, request: SearchRequest) -> list[Hit]:
        return self._moments.search(model, request, must_be_active=self._must_be_active)

    def _with_probabilities(
        self,
        model: ModelRow,
        texts_TD: FloatArray,
        negative: Sequence[bool],
        hits: Sequence[Hit],
    ) -> Iterator[Hit]:
        """Yield the hits with the probability that all texts fit and no negative one does."""
        if not hits:
            return
        places = [(hit.video_id, hit.frame_index) for hit in hits]
        scores_KT = score_frames(self._database, model.model_id, places, texts_TD)
        fits_KT = probability(np.nan_to_num(scores_KT), model.logit_scale, model.logit_bias)
        wanted_KT = np.where(np.array(negative), 1 - fits_KT, fits_KT)
        for hit, fits in zip(hits, np.prod(wanted_KT, axis=1).tolist(), strict=True):
            yield replace(hit, probability=fits)
