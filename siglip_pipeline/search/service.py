"""The one way to search, for Python, the command line and HTTP alike.

Shapes: Q vectors of one query, P parts of a mix, K hits, D dimensions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from siglip_pipeline.errors import NothingIndexedError, QueryError
from siglip_pipeline.records import FloatArray, Hit
from siglip_pipeline.search.embedder import QueryEmbedder
from siglip_pipeline.search.filters import SearchFilter
from siglip_pipeline.search.labels import (
    SURE,
    LabelReport,
    LabelScore,
    VideoLabels,
    label_sentences,
)
from siglip_pipeline.search.parts import (
    ImagePart,
    MomentPart,
    QueryPart,
    TextPart,
    check_parts,
)
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.labels import PROMPT_TEMPLATE
from siglip_pipeline.siglip.similarity import probability
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.label_scores import fit_in_videos, score_frames
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.moments import cut_moments
from siglip_pipeline.store.scope import resolve_scope
from siglip_pipeline.store.search import (
    K_MAX,
    ActiveModelChangedError,
    FrameHit,
    search_frames,
)
from siglip_pipeline.store.vectors import StoredVector, VectorStore

DEFAULT_K = 10
MAX_K = K_MAX

_TEXT_LOGITS = 2.0
"""Moments in a row are one answer to a text when their logits differ by at most this: when the odds
of the best are at most 7 times those of the others."""
_PICTURE_COSINE = 0.05
"""… and to a picture when their cosines do; half of what a moment spans at the usual threshold."""
_CLIP_VECTORS = 8


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vectors:
    """A query under one model."""

    query_QD: FloatArray
    within: float
    """Cosine by which the scores of neighbours in one moment may differ."""
    texts_PD: FloatArray | None = None
    """Texts of a mix, by which its probability is judged; None: the score itself says."""
    negative: tuple[bool, ...] = ()
    """Which of these texts must not fit."""


class SearchService:
    """Answers queries over the active model's vectors. Thread-safe; keep one for many queries.

    Text loads the text tower on first use; a picture or a clip loads the image tower; another
    moment loads no model at all. Every method takes ``k``, at most :data:`MAX_K`, and a
    :class:`.SearchFilter`; ``videos`` is a short way to set the filter's.

    Args:
        database: an open database.
        settings: says on which device queries are embedded, and which hits are hidden
            (``search_min_probability``). The model is the active one of the database, whatever
            ``model_name`` says: a query must meet vectors of its own kind.
        embedder: makes the vectors of queries; None: a :class:`.QueryEmbedder` of its own.

    Every search raises :class:`.QueryError` for a query that makes no sense, and
    :class:`.NothingIndexedError` before the first index is published.
    """

    def __init__(
        self, database: Database, settings: Settings, *, embedder: QueryEmbedder | None = None
    ) -> None:
        self._database = database
        self._settings = settings
        self._embedder = embedder or QueryEmbedder(settings)
        self._vectors = VectorStore(database)
        self._active: ModelRow | None = None

    def load(self, tower: Literal["text", "image"] = "text") -> None:
        """Load a tower of the model now, so that the first query need not wait for it.

        Raises:
            NothingIndexedError: there is no active model yet.
            ModelError: the model cannot be loaded.
        """
        self._embedder.load(self.active_model(), tower)

    def active_model(self) -> ModelRow:
        """The model that search answers with, as last seen; a search notices when it changes.

        Raises:
            NothingIndexedError: no index has been published yet.
        """
        if self._active is None:
            self._active = ModelStore(self._database).active()
        if self._active is None:
            raise NothingIndexedError(
                "nothing is indexed yet; put videos into "
                f"{self._settings.uploads} and run `siglip-pipeline up`, or run "
                "`siglip-pipeline ingest FILE... --wait`"
            )
        return self._active

    def by_text(
        self,
        text: str,
        *,
        k: int = DEFAULT_K,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Moments that show what the text says.

        Args:
            text: free text, in the words one would use for a caption; taken as it is. For
                ``+"snow" -"people"`` see :meth:`by_mix` and :func:`.parse_query`.
            k: how many moments at the most.
            videos: search these only: paths and globs.
            filter: what may be returned.

        Raises:
            QueryError: the text is empty or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        TextPart(text)  # refuses an empty one

        def embed(model: ModelRow) -> _Vectors:
            vectors_QD = self._embedder.texts(model, [text])
            return _Vectors(query_QD=vectors_QD, within=_text_within(model))

        return self._search(embed, {"text": text}, k=k, videos=videos, filter=filter)

    def by_image(
        self,
        image: Path | bytes,
        *,
        k: int = DEFAULT_K,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Moments that look like a picture.

        Args:
            image: an image file that Pillow can read, or its bytes.
            k: how many moments at the most.
            videos: search these only: paths and globs.
            filter: what may be returned. Probabilities are made for texts: pictures of the same
                thing have nearly all 1.

        Raises:
            QueryError: the file is missing or is not a picture, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """

        def embed(model: ModelRow) -> _Vectors:
            vectors_QD = self._embedder.images(model, [image])
            return _Vectors(query_QD=vectors_QD, within=_PICTURE_COSINE)

        query = {"image": ImagePart(image).name}
        return self._search(embed, query, k=k, videos=videos, filter=filter)

    def by_moment(
        self,
        video: str,
        seconds: float,
        *,
        k: int = DEFAULT_K,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Moments that look like another moment; nothing is decoded, no model is loaded.

        Args:
            video: path below UPLOADS.
            seconds: the stored frame nearest to this time is the query.
            k: how many moments at the most.
            videos: search these only: paths and globs.
            filter: what may be returned.

        Raises:
            QueryError: the video has no vectors, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        query: dict[str, Any] = {}

        def embed(model: ModelRow) -> _Vectors:
            frame = self._frame(model, video, seconds)
            query["like"] = {"video": video, "time_seconds": frame.time_seconds}
            return _Vectors(query_QD=frame.embedding_D[None], within=_PICTURE_COSINE)

        return self._search(embed, query, k=k, videos=videos, filter=filter)

    def by_clip(
        self,
        clip: Path,
        *,
        k: int = DEFAULT_K,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Moments that look like some part of a short video file.

        The clip is decoded as uploads are, in a watched process, and cut into moments as they are.
        A moment scores what the nearest part of the clip says, so that a clip of several shots
        finds the place where they follow each other as one moment.

        Args:
            clip: a video file; of a long one, the longest eight shots count.
            k: how many moments at the most.
            videos: search these only: paths and globs.
            filter: what may be returned.

        Raises:
            QueryError: the file is missing or cannot be decoded, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        from siglip_pipeline.video.clip import sample_clip

        query: dict[str, Any] = {"clip": str(clip)}

        def embed(model: ModelRow) -> _Vectors:
            frames = sample_clip(clip, self._settings)
            query["clip_frames"] = len(frames)
            moments = cut_moments(
                self._embedder.images(model, frames.jpegs),
                frames.frame_index_N,
                frames.time_seconds_N,
                threshold=model.moment_threshold,
            )
            lengths_M = moments.end_seconds_M - moments.start_seconds_M
            longest = np.sort(np.argsort(-lengths_M, kind="stable")[:_CLIP_VECTORS])
            return _Vectors(query_QD=moments.means_MD[longest], within=_PICTURE_COSINE)

        return self._search(embed, query, k=k, videos=videos, filter=filter)

    def by_mix(
        self,
        parts: Sequence[QueryPart],
        *,
        k: int = DEFAULT_K,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Moments that fit several parts at once: texts, pictures and moments, each weighted.

        The query is the sum of the parts' unit vectors times their weights, brought to length 1;
        ``score`` is the cosine with it. ``probability`` is judged by the texts alone: that each
        with a positive weight fits and none with a negative one does, as if they were independent.

        Args:
            parts: at least one with a positive weight; :func:`.parse_query` reads them from
                ``+"snow" -"people"``.
            k: how many moments at the most.
            videos: search these only: paths and globs.
            filter: what may be returned.

        Raises:
            QueryError: no positive part, parts that cancel each other, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        check_parts(parts)
        if len(parts) == 1:
            return self._by_part(parts[0], k=k, videos=videos, filter=filter)
        query = {"mix": [_part_json(part) for part in parts]}

        def embed(model: ModelRow) -> _Vectors:
            return self._mixed(model, parts)

        return self._search(embed, query, k=k, videos=videos, filter=filter)

    def label(
        self,
        labels: Sequence[str],
        *,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
        template: str = PROMPT_TEMPLATE,
    ) -> LabelReport:
        """Which labels fit which videos: zero-shot, every frame in scope is looked at.

        Args:
            labels: nouns, such as ``"a red car"``.
            videos: label these only: paths and globs.
            filter: which videos and times; ``min_probability`` (default 0.5) is what a frame needs
                to have a label; ``max_per_video`` has no meaning here.
            template: sentence with ``{label}`` in it.

        Raises:
            QueryError: labels or a template that make no sense.
            NothingIndexedError: no index has been published yet.
        """
        sentences = label_sentences(labels, template)
        chosen = (filter or SearchFilter()).narrowed_to(videos)
        sure = SURE if chosen.min_probability is None else chosen.min_probability
        model = self._fresh_model()
        vectors_LD = self._embedder.texts(model, sentences)
        by_video: dict[str, tuple[int, int, list[LabelScore]]] = {}
        with self._database.connection() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            scope = resolve_scope(
                connection,
                model.model_id,
                videos=chosen.videos,
                time_range=chosen.time_range,
                uploaded_after=chosen.uploaded_since,
                uploaded_before=chosen.uploaded_until,
            )
            for label, vector_D in zip(labels, vectors_LD, strict=True):
                for fit in fit_in_videos(
                    connection,
                    model.model_id,
                    vector_D,
                    scope=scope,
                    min_score=_score_of(sure, model),
                ):
                    score = LabelScore(
                        label=label,
                        probability=_probability(fit.best_score, model),
                        score=fit.best_score,
                        time_seconds=fit.best_seconds,
                        share=fit.fitting / fit.frames,
                    )
                    entry = by_video.setdefault(fit.video, (fit.video_id, fit.frames, []))
                    entry[2].append(score)
        return LabelReport(
            model=model.name,
            labels=tuple(labels),
            videos=tuple(
                VideoLabels(
                    video=video,
                    video_id=video_id,
                    frames=frames,
                    labels=tuple(sorted(scores, key=lambda score: -score.score)),
                )
                for video, (video_id, frames, scores) in by_video.items()
            ),
        )

    def _by_part(
        self,
        part: QueryPart,
        *,
        k: int,
        videos: Sequence[str] | None,
        filter: SearchFilter | None,
    ) -> SearchResult:
        if isinstance(part, TextPart):
            return self.by_text(part.text, k=k, videos=videos, filter=filter)
        if isinstance(part, ImagePart):
            return self.by_image(part.image, k=k, videos=videos, filter=filter)
        return self.by_moment(part.video, part.seconds, k=k, videos=videos, filter=filter)

    def _mixed(self, model: ModelRow, parts: Sequence[QueryPart]) -> _Vectors:
        texts = [part for part in parts if isinstance(part, TextPart)]
        images = [part for part in parts if isinstance(part, ImagePart)]
        moments = [part for part in parts if isinstance(part, MomentPart)]
        weighted: list[tuple[float, FloatArray]] = []
        texts_PD = None
        if texts:
            texts_PD = self._embedder.texts(model, [part.text for part in texts])
            weighted += zip([part.weight for part in texts], texts_PD, strict=True)
        if images:
            images_PD = self._embedder.images(model, [part.image for part in images])
            weighted += zip([part.weight for part in images], images_PD, strict=True)
        for part in moments:
            frame = self._frame(model, part.video, part.seconds)
            weighted.append((part.weight, frame.embedding_D))
        total_D = np.sum([weight * vector_D for weight, vector_D in weighted], axis=0)
        length = float(np.linalg.norm(total_D))
        if length < 1e-3 * max(abs(weight) for weight, _ in weighted):
            raise QueryError(
                "the parts of the query cancel each other: nothing is left to look for"
            )
        return _Vectors(
            query_QD=(total_D / length)[None].astype(np.float32),
            within=_PICTURE_COSINE if images or moments else _text_within(model),
            texts_PD=texts_PD,
            negative=tuple(part.weight < 0 for part in texts),
        )

    def _frame(self, model: ModelRow, video: str, seconds: float) -> StoredVector:
        frame = self._vectors.nearest_frame(model.model_id, video, seconds)
        if frame is None:
            raise QueryError(
                f"{video!r} has no vectors; `siglip-pipeline status` lists what is indexed"
            )
        return frame

    def _search(
        self,
        embed: Callable[[ModelRow], _Vectors],
        query: dict[str, Any],
        *,
        k: int,
        videos: Sequence[str] | None,
        filter: SearchFilter | None,
    ) -> SearchResult:
        if not 1 <= k <= MAX_K:
            raise QueryError(f"k={k}: between 1 and {MAX_K} hits can be asked for")
        chosen = (filter or SearchFilter()).narrowed_to(videos)
        while True:
            model = self.active_model()
            try:
                hits = self._hits(model, embed(model), k, chosen)
            except ActiveModelChangedError:
                self._active = None
                continue
            limits = chosen.to_json()
            document = {**query, "k": k, **({"filter": limits} if limits else {})}
            return SearchResult(query=document, model=model.name, hits=hits)

    def _hits(
        self, model: ModelRow, vectors: _Vectors, k: int, chosen: SearchFilter
    ) -> tuple[Hit, ...]:
        least = chosen.min_probability
        least = self._settings.search_min_probability if least is None else least
        by_score = vectors.texts_PD is None
        wanted = k
        while True:
            found = search_frames(
                self._database,
                model,
                vectors.query_QD,
                k=wanted,
                videos=chosen.videos,
                time_range=chosen.time_range,
                uploaded_after=chosen.uploaded_since,
                uploaded_before=chosen.uploaded_until,
                max_per_video=chosen.max_per_video,
                min_score=_score_of(least, model) if by_score else -2.0,
                within=vectors.within,
                must_be_active=True,
            )
            judged = zip(found, self._probabilities(model, vectors, found), strict=True)
            hits = [_hit(frame, chance) for frame, chance in judged if by_score or chance >= least]
            # The texts of a mix may hide some: then there are more to look at.
            if len(hits) >= k or len(found) < wanted or wanted == MAX_K:
                return tuple(hits[:k])
            wanted = min(4 * wanted, MAX_K)

    def _probabilities(
        self, model: ModelRow, vectors: _Vectors, found: Sequence[FrameHit]
    ) -> list[float]:
        if vectors.texts_PD is None or not found:
            return [_probability(frame.score, model) for frame in found]
        places = [(frame.video_id, frame.frame_index) for frame in found]
        scores_KP = score_frames(self._database, model.model_id, places, vectors.texts_PD)
        fits_KP = probability(np.nan_to_num(scores_KP), model.logit_scale, model.logit_bias)
        chances_KP = np.where(np.array(vectors.negative), 1 - fits_KP, fits_KP)
        return [float(chance) for chance in np.prod(chances_KP, axis=1)]

    def _fresh_model(self) -> ModelRow:
        self._active = None
        return self.active_model()


def _text_within(model: ModelRow) -> float:
    return _TEXT_LOGITS / math.exp(model.logit_scale)


def _probability(score: float, model: ModelRow) -> float:
    return float(probability(score, model.logit_scale, model.logit_bias))


def _score_of(chance: float, model: ModelRow) -> float:
    """The cosine at which a text has this probability: the sigmoid backwards."""
    if chance <= 0:
        return -2.0
    logit = math.inf if chance >= 1 else math.log(chance / (1 - chance))
    return (logit - model.logit_bias) / math.exp(model.logit_scale)


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


def _part_json(part: QueryPart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"text": part.text, "weight": part.weight}
    if isinstance(part, ImagePart):
        return {"image": part.name, "weight": part.weight}
    like = {"video": part.video, "time_seconds": part.seconds}
    return {"like": like, "weight": part.weight}
