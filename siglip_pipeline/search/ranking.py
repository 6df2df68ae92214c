"""How hits are ranked, beyond the score of their best frame: SIGLIP_RANKING.

docs/search.md says what each technique does, benchmarks/results/quality.md what it gains. F frames.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from siglip_pipeline.errors import QueryError, SettingsError
from siglip_pipeline.hits import Hit, SearchFilter
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.search.hit_frames import HitFrames, score_hit_frames

CANDIDATES = 100
"""So many of the best hits by score are put in another order; those after them keep theirs."""
PROMPTS = (
    "{text}",
    "a photo of {text}",
    "a picture of {text}",
    "a video of {text}",
    "this is a photo of {text}.",
)
"""A text is embedded in each of these; its score is the mean of theirs."""
_MOST = 64
_NUMBER = re.compile(r"\d+(\.\d+)?|\.\d+")
_ALLOWED = (
    "allowed are frames:N (mean of a hit's N best frames), smooth:N (mean of a frame with N on "
    f"either side), each 1 to {_MOST}, hubness:X (X above 0, at most 2), prompts, centred, and "
    "several joined by +"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Techniques that change the order of hits; the default ranks by the best frame alone."""

    frames: int = 1
    """A hit ranks by the mean of so many of its best frames."""
    smooth: int = 0
    """A frame counts as the mean of itself and so many stored frames on either side."""
    hubness: float = 0.0
    """Subtract so many times its bias from the score of a frame: how near it is to any text."""
    prompts: bool = False
    """Embed a text in several sentences: see :data:`PROMPTS`."""
    centred: bool = False
    """In a mix of texts and pictures, subtract from each vector the mean of its kind."""

    @classmethod
    def parse(cls, text: str) -> "Ranking":
        """Read techniques such as ``frames:4+prompts``; an empty text names none.

        Raises:
            SettingsError: an unknown technique, or a number that it does not take.
        """
        chosen: dict[str, Any] = {}
        for technique in filter(None, (part.strip().lower() for part in text.split("+"))):
            name, colon, number = technique.partition(":")
            if name in ("prompts", "centred") and not colon:
                chosen[name] = True
            elif name in ("frames", "smooth") and number.isdecimal() and 1 <= int(number) <= _MOST:
                chosen[name] = int(number)
            elif name == "hubness" and _NUMBER.fullmatch(number) and 0 < float(number) <= 2:
                chosen[name] = float(number)
            else:
                raise SettingsError(
                    f"SIGLIP_RANKING={text!r}: no technique {technique!r}; {_ALLOWED}"
                )
        return cls(**chosen)

    def __str__(self) -> str:
        """Return the text that :meth:`parse` reads."""
        techniques = {
            f"frames:{self.frames}": self.frames > 1,
            f"smooth:{self.smooth}": self.smooth > 0,
            f"hubness:{self.hubness:g}": self.hubness > 0,
            "prompts": self.prompts,
            "centred": self.centred,
        }
        return "+".join(name for name, used in techniques.items() if used)

    @property
    def reorders(self) -> bool:
        """Return whether hits are ranked by more than their best frame."""
        return self.frames > 1 or self.smooth > 0 or self.hubness > 0

    def of(self, *, is_text: bool) -> "Ranking":
        """Return what holds for a query: biases are estimated from texts, and for texts."""
        return self if is_text else replace(self, hubness=0.0)

    def reordered(
        self,
        database: Database,
        model_id: int,
        query_QD: FloatArray,
        filter: SearchFilter,
        hits: Sequence[Hit],
    ) -> tuple[Hit, ...]:
        """Return hits, best first by score, in the order of their ``rank_score``.

        Args:
            database: holds the vectors.
            model_id: the model of the hits.
            query_QD: the query.
            filter: of the search.
            hits: of the search; those beyond :data:`CANDIDATES` keep their places.

        Raises:
            QueryError: no frame has a bias, which ``hubness`` needs.
        """
        candidates = hits[:CANDIDATES]
        if not candidates:
            return ()
        found = score_hit_frames(
            database,
            model_id,
            candidates,
            query_QD,
            beside=self.smooth,
            with_biases=self.hubness > 0,
            time_range=filter.time_range,
        )
        usual = self._usual_bias(found)
        ranked = [
            replace(hit, rank_score=self._rank_score(hit, frames, usual))
            for hit, frames in zip(candidates, found, strict=True)
        ]
        # Equal ones keep the order by score.
        ranked.sort(key=lambda hit: -hit.ranked_by)
        return (*ranked, *hits[CANDIDATES:])

    def _usual_bias(self, found: Sequence[HitFrames]) -> float:
        """Return the mean bias of the candidates: that of frames that have none yet."""
        if not self.hubness:
            return 0.0
        biases = np.concatenate([frames.biases_F for frames in found])
        if np.isnan(biases).all():
            raise QueryError(
                "SIGLIP_RANKING=hubness needs biases of frames, which the build of the index "
                "estimates: materialize similarity_index with this setting, or rank without it"
            )
        return float(np.nanmean(biases))

    def _rank_score(self, hit: Hit, frames: HitFrames, usual_bias: float) -> float:
        if not len(frames.scores_F):  # the video was removed or replaced meanwhile
            return hit.score - self.hubness * usual_bias
        scores_F = frames.scores_F
        if self.hubness:
            scores_F = scores_F - self.hubness * np.nan_to_num(frames.biases_F, nan=usual_bias)
        if self.smooth:
            window_W = np.ones(2 * self.smooth + 1, np.float32)
            # At the ends of a video the mean is over the frames that there are.
            counts_F = np.convolve(np.ones_like(scores_F), window_W)
            sums_F = np.convolve(scores_F, window_W)
            scores_F = (sums_F / counts_F)[self.smooth : self.smooth + len(scores_F)]
        best = np.sort(scores_F[frames.own])[-self.frames :]
        return float(best.mean())
