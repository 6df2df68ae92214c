"""From the vectors of a query to hits with their probabilities.

Shapes: P parts of a mix, K hits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from siglip_pipeline.records import Hit
from siglip_pipeline.search.chances import score_of
from siglip_pipeline.search.filters import SearchFilter
from siglip_pipeline.search.vectors import QueryVectors
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.similarity import probability
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.label_scores import score_frames
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search import K_MAX, FrameHit, MomentSearch


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The answer to one query, best hit first."""

    query: dict[str, Any]
    """The query as it was understood."""
    model: str
    """Name of the model whose vectors were searched."""
    hits: tuple[Hit, ...] = field(default=())
    """Empty where nothing is as probable as was asked for: nothing here."""

    def to_json(self) -> dict[str, Any]:
        """The document that ``search --json`` prints."""
        return {
            "query": self.query,
            "model": self.model,
            "hits": [hit.to_json() for hit in self.hits],
        }


class Answers:
    """Finds the moments nearest to a query's vectors, and judges how probable each is.

    Args:
        database: where vectors are.
        settings: ``search_min_probability`` hides what is less probable.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._moments = MomentSearch(database)

    def hits(
        self, model: ModelRow, vectors: QueryVectors, k: int, chosen: SearchFilter
    ) -> tuple[Hit, ...]:
        """The ``k`` best moments that are probable enough, best first.

        Raises:
            ActiveModelChangedError: the model is not the one that search answers with any more.
        """
        least = chosen.min_probability
        least = self._settings.search_min_probability if least is None else least
        by_score = vectors.texts_PD is None
        wanted = k
        while True:
            found = self._moments.search(
                model,
                vectors.query_QD,
                k=wanted,
                videos=chosen.videos,
                time_range=chosen.time_range,
                uploaded_after=chosen.uploaded_since,
                uploaded_before=chosen.uploaded_until,
                max_per_video=chosen.max_per_video,
                min_score=score_of(least, model) if by_score else -2.0,
                within=vectors.within,
                must_be_active=True,
            )
            judged = zip(found, self._probabilities(model, vectors, found), strict=True)
            hits = [_hit(frame, chance) for frame, chance in judged if by_score or chance >= least]
            # The texts of a mix may hide some: then there are more to look at.
            if len(hits) >= k or len(found) < wanted or wanted == K_MAX:
                return tuple(hits[:k])
            wanted = min(4 * wanted, K_MAX)

    def _probabilities(
        self, model: ModelRow, vectors: QueryVectors, found: Sequence[FrameHit]
    ) -> list[float]:
        if vectors.texts_PD is None or not found:
            scores_K = np.array([frame.score for frame in found])
            chances_K: list[float] = probability(
                scores_K, model.logit_scale, model.logit_bias
            ).tolist()
            return chances_K
        places = [(frame.video_id, frame.frame_index) for frame in found]
        scores_KP = score_frames(self._database, model.model_id, places, vectors.texts_PD)
        fits_KP = probability(np.nan_to_num(scores_KP), model.logit_scale, model.logit_bias)
        chances_KP = np.where(np.array(vectors.negative), 1 - fits_KP, fits_KP)
        return [float(chance) for chance in np.prod(chances_KP, axis=1)]


def _hit(frame: FrameHit, chance: float) -> Hit:
    return Hit(
        video=frame.video,
        video_id=frame.video_id,
        time_seconds=frame.time_seconds,
        frame_index=frame.frame_index,
        score=frame.score,
        probability=chance,
        start_seconds=frame.moment_start_seconds,
        end_seconds=frame.moment_end_seconds,
    )
