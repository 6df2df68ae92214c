"""Search, for Python, the command line and HTTP."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from siglip_pipeline.hits import (
    Hit,
    Moment,
    Proof,
    QueryShown,
    SearchFilter,
    SearchResult,
    SequenceShown,
    check_range,
)
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search.embedder import QueryEmbedder
from siglip_pipeline.search.explaining import Explanation, explain_moment
from siglip_pipeline.search.label_search import LabelReport, label_sentences, label_videos
from siglip_pipeline.search.query_pictures import Picture
from siglip_pipeline.search.query_terms import (
    WITHIN_SECONDS,
    ImageTerm,
    MomentTerm,
    QueryTerm,
    SequenceTerm,
    TextTerm,
    check_terms,
)
from siglip_pipeline.search.query_vectors import QueryVectorizer
from siglip_pipeline.search.receipts import Receipt, parse_pin, prove_hits, reproduction
from siglip_pipeline.search.results import HitFinder
from siglip_pipeline.search.search_options import SearchOptions
from siglip_pipeline.search.searched_model import SearchedModel
from siglip_pipeline.search.term_queries import ShownVectors, TermQueries
from siglip_pipeline.siglip.prompt_template import PROMPT_TEMPLATE
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.search.index_state import index_state
from siglip_pipeline.store.video_names import stored_name
from siglip_pipeline.video.frame_store import FrameStore

DEFAULT_K = 10


class _Found(NamedTuple):
    """A query as it was interpreted, its hits, and a proof of them."""

    query: QueryShown
    hits: tuple[Hit, ...]
    proof: Proof | None = None


class SearchService:
    """Search the active model's vectors. Thread-safe; reuse one object for many queries.

    A text loads the text tower on first use, a picture or a clip the image tower; a moment of a
    stored video loads no model. Every method takes ``k``, at most :data:`MAX_K`, and a
    :class:`.SearchFilter`; ``videos`` is a short way to set the filter's.

    Args:
        database: an open database.
        options: the device that embeds queries, and which hits are hidden
            (``search_min_probability``). The model is the active one of the database, not the one
            of ``model_name``, as vectors of different models cannot be compared.
        embedder: embeds queries; None for a new :class:`.QueryEmbedder`.
        model_key: search this model's index instead of the active one's.

    Every search raises :class:`.QueryError` for an invalid query, and
    :class:`.NothingIndexedError` before the first index is published.
    """

    def __init__(
        self,
        database: Database,
        options: SearchOptions,
        *,
        embedder: QueryEmbedder | None = None,
        model_key: str | None = None,
    ) -> None:
        self._database = database
        self._options = options
        self._embedder = embedder or QueryEmbedder(
            options.model, picture_seconds=options.picture_seconds
        )
        self._vectorizer = QueryVectorizer(self._embedder, database, options.ranking)
        self._queries = TermQueries(database, self._embedder, self._vectorizer)
        self._finder = HitFinder(
            database,
            min_probability=options.min_probability,
            ranking=options.ranking,
            must_be_active=model_key is None,
        )
        self._searched = SearchedModel(ModelStore(database), uploads=options.uploads, key=model_key)

    def load(self, tower: Literal["text", "image"] = "text") -> None:
        """Load a tower of the model now, so that the first query does not wait for it.

        Raises:
            NothingIndexedError: there is no active model yet.
            ModelError: the model cannot be loaded.
        """
        self._embedder.load(self.active_model(), tower)

    def active_model(self) -> ModelRow:
        """Return the active model, as last read; a search notices if it has changed.

        With ``model_key``, return that model.

        Raises:
            NothingIndexedError: no index has been published yet.
            ModelNotFoundError: no model has ``model_key``.
        """
        return self._searched.model()

    def by_text(
        self,
        text: str,
        *,
        k: int = DEFAULT_K,
        offset: int = 0,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Return moments that show what a text describes.

        Args:
            text: free text, such as a caption, used as it is. For
                ``+"snow" -"people"`` see :meth:`by_mix` and :func:`.parse_query`.
            k: the largest number of hits.
            offset: skip so many of the best hits.
            videos: search only these: paths and globs.
            filter: what may be returned.

        Raises:
            QueryError: the text is empty or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        return self.by_mix([TextTerm(text)], k=k, offset=offset, videos=videos, filter=filter)

    def by_image(
        self,
        image: Picture,
        *,
        k: int = DEFAULT_K,
        offset: int = 0,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Return moments that resemble a picture.

        Args:
            image: a file, its bytes, or pixels, uint8 [H, W, 3]. Files and bytes are decoded in a
                child process (``picture_seconds``).
            k: the largest number of hits.
            offset: skip so many of the best hits.
            videos: search only these: paths and globs.
            filter: what may be returned. Probabilities are calibrated for texts: similar pictures
                nearly all have 1.

        Raises:
            QueryError: the file is missing, is no picture or takes too long to decode, or ``k`` is
                out of range.
            NothingIndexedError: no index has been published yet.
        """
        return self.by_mix([ImageTerm(image)], k=k, offset=offset, videos=videos, filter=filter)

    def by_vector(
        self,
        vector_D: npt.ArrayLike,
        *,
        kind: Literal["picture", "text"] = "picture",
        k: int = DEFAULT_K,
        offset: int = 0,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Return moments near a vector of the active model: of :meth:`vectors_of_texts`, say.

        Args:
            vector_D: as many numbers as the model has dimensions, of any length but 0.
            kind: what the vector is of; neighbouring moments are joined accordingly.
            k: the largest number of hits.
            offset: skip so many of the best hits.
            videos: search only these: paths and globs.
            filter: what may be returned.

        Raises:
            QueryError: the vector has another size or no direction, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """

        def embed(model: ModelRow) -> ShownVectors:
            vectors = self._vectorizer.vector(model, vector_D, kind)
            return QueryShown(vector=kind), vectors

        return self._search(embed, k=k, offset=offset, videos=videos, filter=filter)

    def by_texts(
        self,
        texts: Sequence[str],
        *,
        k: int = DEFAULT_K,
        offset: int = 0,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> list[SearchResult]:
        """Return the result of :meth:`by_text` for each text; embed them all in one batch."""
        self.vectors_of_texts(texts)
        return [
            self.by_text(text, k=k, offset=offset, videos=videos, filter=filter) for text in texts
        ]

    def vectors_of_texts(self, texts: Sequence[str]) -> tuple[ModelRow, FloatArray]:
        """Return the active model and its unit vectors [N, D] of texts; they are cached.

        Raises:
            QueryError: a text is empty.
            NothingIndexedError: no index has been published yet.
        """
        for text in texts:
            TextTerm(text)
        model = self.active_model()
        if not texts:
            return model, np.empty((0, model.dim), np.float32)
        return model, self._embedder.texts(model, texts)

    def vectors_of_images(self, images: Sequence[Picture]) -> tuple[ModelRow, FloatArray]:
        """Return the active model and its unit vectors [N, D] of pictures.

        Raises:
            QueryError: a file is missing, or is no picture.
            NothingIndexedError: no index has been published yet.
        """
        model = self.active_model()
        return model, self._embedder.images(model, images)

    def tokens_if_cut(self, text: str) -> int | None:
        """Return the number of a text's tokens if the active model does not read all of them."""
        return self._embedder.tokens_if_cut(self.active_model(), text)

    def thumbnail(self, hit: Hit) -> bytes:
        """Return the stored frame of a hit, as JPEG.

        Raises:
            FrameStoreError: it is not stored any more.
        """
        return FrameStore(self._options.frame_store).thumbnail(hit.video, hit.frame_index)

    def by_moment(
        self,
        video: str,
        seconds: float,
        *,
        k: int = DEFAULT_K,
        offset: int = 0,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Return moments that resemble another moment, without decoding or loading a model.

        Args:
            video: path below UPLOADS.
            seconds: the stored frame nearest to this time is the query.
            k: the largest number of hits.
            offset: skip so many of the best hits.
            videos: search only these: paths and globs.
            filter: what may be returned.

        Raises:
            QueryError: the video has no vectors, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        terms = [MomentTerm(video, seconds)]
        return self.by_mix(terms, k=k, offset=offset, videos=videos, filter=filter)

    def by_clip(
        self,
        clip: Path,
        *,
        k: int = DEFAULT_K,
        offset: int = 0,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Return moments that resemble a section of a short video file.

        The clip is decoded and cut into moments as uploads are. A moment scores by the nearest
        section of the clip, so a clip of several shots finds the place where they follow each
        other as one hit.

        Args:
            clip: a video file; its eight longest moments form the query.
            k: the largest number of hits.
            offset: skip so many of the best hits.
            videos: search only these: paths and globs.
            filter: what may be returned.

        Raises:
            QueryError: the file is missing or cannot be decoded, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        from siglip_pipeline.video.clip import sample_clip

        def embed(model: ModelRow) -> ShownVectors:
            frames = sample_clip(clip, self._options.decode)
            query = QueryShown(clip=str(clip), clip_frames=len(frames))
            return query, self._vectorizer.clip(model, frames)

        return self._search(embed, k=k, offset=offset, videos=videos, filter=filter)

    def by_mix(
        self,
        terms: Sequence[QueryTerm],
        *,
        k: int = DEFAULT_K,
        offset: int = 0,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Return moments that fit several weighted terms: texts, pictures and moments.

        The query is the normalised sum of the terms' unit vectors times their weights; ``score``
        is the cosine with it. ``probability`` is that all texts with a positive weight fit and none
        with a negative weight does, computed as if they were independent.

        Args:
            terms: at least one with a positive weight; :func:`.parse_query` reads them from
                ``+"snow" -"people"``.
            k: the largest number of hits.
            offset: skip so many of the best hits.
            videos: search only these: paths and globs.
            filter: what may be returned.

        Raises:
            QueryError: no positive term, terms that cancel each other, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        check_terms(terms)
        only = terms[0] if len(terms) == 1 else None
        if isinstance(only, SequenceTerm):
            return self.by_sequence(
                only.texts,
                within_seconds=only.within_seconds,
                k=k,
                offset=offset,
                filter=(filter or SearchFilter()).narrowed_to(videos),
            )

        def embed(model: ModelRow) -> ShownVectors:
            return self._queries.embedded(model, terms)

        return self._search(embed, k=k, offset=offset, videos=videos, filter=filter)

    def label(
        self,
        labels: Sequence[str],
        *,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
        template: str = PROMPT_TEMPLATE,
    ) -> LabelReport:
        """Score how well labels fit videos: zero-shot, over every frame in scope.

        Args:
            labels: nouns, such as ``"a red car"``.
            videos: label these only: paths and globs.
            filter: which videos and times; a frame has a label from ``min_probability`` (default
                0.5) on; ``max_per_video`` is ignored.
            template: a sentence with ``{label}`` in it.

        Raises:
            QueryError: invalid labels, or an invalid template.
            NothingIndexedError: no index has been published yet.
        """
        chosen = (filter or SearchFilter()).narrowed_to(videos)
        sentences = label_sentences(labels, template)
        # Labels do not notice a promoted model as a search does: read it again.
        model = self._searched.read_again()
        vectors_LD = self._embedder.texts(model, sentences)
        return label_videos(self._database, model, labels, vectors_LD, chosen)

    def by_sequence(
        self,
        texts: Sequence[str],
        *,
        within_seconds: float = WITHIN_SECONDS,
        k: int = DEFAULT_K,
        offset: int = 0,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Return moments of one video that follow each other, one for each text.

        A hit spans its ``steps``; its score is the mean of theirs, its probability the product.

        Args:
            texts: what the moments show, in their order.
            within_seconds: longest time from the best frame of one moment to that of the next.
            k: the largest number of hits; one for each first moment.
            offset: skip so many of the best hits.
            filter: what may be returned; ``min_probability`` is of each moment.

        Raises:
            QueryError: fewer than two texts, an empty one, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        term = SequenceTerm(tuple(texts), within_seconds)
        query = QueryShown(
            sequence=SequenceShown(texts=term.texts, within_seconds=term.within_seconds)
        )

        def find(model: ModelRow, most: int, chosen: SearchFilter) -> _Found:
            vectors_TD = self._vectorizer.texts(model, term.texts)
            hits = self._finder.sequences(
                model, vectors_TD, most, chosen, within_seconds=term.within_seconds
            )
            return _Found(query, hits)

        return self._answer(find, k=k, offset=offset, videos=None, filter=filter)

    def with_receipt(
        self,
        terms: Sequence[QueryTerm],
        receipt: Receipt,
        *,
        k: int = DEFAULT_K,
        offset: int = 0,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Search as :meth:`by_mix`, and return the answer with a receipt.

        Args:
            terms: the query.
            receipt: a proof, a pin, or the check of one. A pinned model that still has its index is
                searched, even if another one is active.
            k: the largest number of hits.
            offset: skip so many of the best hits.
            filter: what may be returned.

        Raises:
            QueryError: the query or the pin is invalid.
            NothingIndexedError: no index has been published yet.
        """
        service, reproduced = self, None
        if receipt.pin is not None:
            reproduced = reproduction(self._database, receipt.pin)
            if reproduced.same:
                service = self._of_model(parse_pin(receipt.pin).model_key)
        search = service._prove if receipt.prove else service.by_mix
        result = search(terms, k=k, offset=offset, filter=filter)
        if not receipt.permalink and reproduced is None:
            return result
        state = None
        if receipt.permalink:
            state = index_state(self._database, service.active_model().key)
        return replace(
            result,
            pin=None if state is None else str(state),
            reproduced=reproduced,
        )

    def least_probability(self, filter: SearchFilter) -> float:
        """Return the probability below which a search hides hits."""
        return self._finder.least_probability(filter)

    def _of_model(self, key: str) -> "SearchService":
        """Return a service that searches a model, active or not, with the same embedder."""
        if self.active_model().key == key:
            return self
        return SearchService(self._database, self._options, embedder=self._embedder, model_key=key)

    def _prove(
        self, terms: Sequence[QueryTerm], *, k: int, offset: int, filter: SearchFilter | None
    ) -> SearchResult:
        """Search by the index and exactly; return the hits of the index, and the proof."""
        check_terms(terms)

        def find(model: ModelRow, most: int, chosen: SearchFilter) -> _Found:
            query, vectors = self._queries.embedded(model, terms)
            return _Found(query, *prove_hits(self._finder, model, vectors, most, chosen))

        return self._answer(find, k=k, offset=offset, videos=None, filter=filter)

    def explain(
        self,
        terms: Sequence[QueryTerm],
        video: str,
        seconds: float,
        *,
        k: int = DEFAULT_K,
        filter: SearchFilter | None = None,
    ) -> Explanation:
        """Say why a search does not show a moment, or where it does.

        Searches everything in scope exactly, so it takes longer than a search.

        Args:
            terms: the query.
            video: path below UPLOADS.
            seconds: the moment that was expected.
            k: how many hits the search shows.
            filter: of the search.

        Raises:
            QueryError: the query is invalid.
            NothingIndexedError: no index has been published yet.
        """
        check_terms(terms)
        check_range(k, 0)

        def answer(model: ModelRow) -> Explanation:
            return explain_moment(
                self._database,
                self._finder,
                model,
                self._queries.embedded(model, terms)[1],
                Moment(video=stored_name(self._database, video), time_seconds=seconds),
                k=k,
                filter=filter or SearchFilter(),
            )

        return self._searched.answer(answer)

    def _search(
        self,
        embed: Callable[[ModelRow], ShownVectors],
        *,
        k: int,
        offset: int,
        videos: Sequence[str] | None,
        filter: SearchFilter | None,
    ) -> SearchResult:
        def find(model: ModelRow, most: int, chosen: SearchFilter) -> _Found:
            query, vectors = embed(model)
            return _Found(query, self._finder.find(model, vectors, most, chosen))

        return self._answer(find, k=k, offset=offset, videos=videos, filter=filter)

    def _answer(
        self,
        find: Callable[[ModelRow, int, SearchFilter], _Found],
        *,
        k: int,
        offset: int,
        videos: Sequence[str] | None,
        filter: SearchFilter | None,
    ) -> SearchResult:
        """Return the ``k`` hits from ``offset`` on of those that ``find`` returns, best first."""
        check_range(k, offset)
        chosen = (filter or SearchFilter()).narrowed_to(videos)

        def answer(model: ModelRow) -> SearchResult:
            found = find(model, offset + k, chosen)
            limits = None if chosen == SearchFilter() else chosen
            query = replace(found.query, k=k, offset=offset or None, filter=limits)
            return SearchResult(
                query=query, model=model.name, hits=found.hits[offset:], proof=found.proof
            )

        return self._searched.answer(answer)
