"""The one way to search, for Python, the command line and HTTP alike."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from siglip_pipeline.errors import ModelChangedError, NothingIndexedError, QueryError
from siglip_pipeline.hits import MAX_K, Moment, SearchFilter
from siglip_pipeline.search.embedder import QueryEmbedder
from siglip_pipeline.search.label_search import LabelReport, label_sentences, label_videos
from siglip_pipeline.search.query_pictures import Picture
from siglip_pipeline.search.query_terms import ImageTerm, QueryTerm, TextTerm, check_terms
from siglip_pipeline.search.query_vectors import QueryVectorizer, QueryVectors
from siglip_pipeline.search.results import HitFinder, QueryShown, SearchResult, shown
from siglip_pipeline.search.search_options import SearchOptions
from siglip_pipeline.siglip.label_prompts import PROMPT_TEMPLATE
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.search.moment_search import ActiveModelChangedError
from siglip_pipeline.store.vectors import VectorStore

DEFAULT_K = 10
PROMOTIONS_HEEDED = 5
"""A search whose model is not the active one any more is tried again so often."""

_Embedded = tuple[QueryShown, QueryVectors]
"""A query as it was understood, and its vectors."""


class SearchService:
    """Answers queries over the active model's vectors. Thread-safe; keep one for many queries.

    Text loads the text tower on first use; a picture or a clip loads the image tower; another
    moment loads no model at all. Every method takes ``k``, at most :data:`MAX_K`, and a
    :class:`.SearchFilter`; ``videos`` is a short way to set the filter's.

    Args:
        database: an open database.
        options: says on which device queries are embedded, and which hits are hidden
            (``search_min_probability``). The model is the active one of the database, whatever
            ``model_name`` says: a query must meet vectors of its own kind.
        embedder: makes the vectors of queries; None: a :class:`.QueryEmbedder` of its own.

    Every search raises :class:`.QueryError` for a query that makes no sense, and
    :class:`.NothingIndexedError` before the first index is published.
    """

    def __init__(
        self, database: Database, options: SearchOptions, *, embedder: QueryEmbedder | None = None
    ) -> None:
        self._database = database
        self._options = options
        self._embedder = embedder or QueryEmbedder(
            options.model, picture_seconds=options.picture_seconds
        )
        self._vectorizer = QueryVectorizer(self._embedder, VectorStore(database))
        self._finder = HitFinder(database, min_probability=options.min_probability)
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
        # A local name: another thread may forget the model at any time.
        active = self._active or ModelStore(self._database).active()
        if active is None:
            raise NothingIndexedError(
                "nothing is indexed yet; put videos into "
                f"{self._options.uploads} and run `siglip-pipeline up`, or run "
                "`siglip-pipeline ingest FILE... --wait`"
            )
        self._active = active
        return active

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
        TextTerm(text)  # refuses an empty one

        def embed(model: ModelRow) -> _Embedded:
            return QueryShown(text=text), self._vectorizer.text(model, text)

        return self._search(embed, k=k, videos=videos, filter=filter)

    def by_image(
        self,
        image: Picture,
        *,
        k: int = DEFAULT_K,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Moments that look like a picture.

        Args:
            image: a file, its bytes, or pixels, uint8 [H, W, 3]. Files and bytes are decoded in a
                process of their own (``picture_seconds``).
            k: how many moments at the most.
            videos: search these only: paths and globs.
            filter: what may be returned. Probabilities are made for texts: pictures of the same
                thing have nearly all 1.

        Raises:
            QueryError: the file is missing, is no picture or takes too long to decode, or ``k`` is
                out of range.
            NothingIndexedError: no index has been published yet.
        """

        def embed(model: ModelRow) -> _Embedded:
            query = QueryShown(image=ImageTerm(image).name)
            return query, self._vectorizer.image(model, image)

        return self._search(embed, k=k, videos=videos, filter=filter)

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

        def embed(model: ModelRow) -> _Embedded:
            frame = self._vectorizer.frame(model, video, seconds)
            like = Moment(video=video, time_seconds=frame.time_seconds)
            return QueryShown(like=like), self._vectorizer.moment(frame)

        return self._search(embed, k=k, videos=videos, filter=filter)

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

        def embed(model: ModelRow) -> _Embedded:
            frames = sample_clip(clip, self._options.decode)
            query = QueryShown(clip=str(clip), clip_frames=len(frames))
            return query, self._vectorizer.clip(model, frames)

        return self._search(embed, k=k, videos=videos, filter=filter)

    def by_mix(
        self,
        terms: Sequence[QueryTerm],
        *,
        k: int = DEFAULT_K,
        videos: Sequence[str] | None = None,
        filter: SearchFilter | None = None,
    ) -> SearchResult:
        """Moments that fit several terms at once: texts, pictures and moments, each weighted.

        The query is the sum of the terms' unit vectors times their weights, brought to length 1;
        ``score`` is the cosine with it. ``probability`` is judged by the texts alone: that each
        with a positive weight fits and none with a negative one does, as if they were independent.

        Args:
            terms: at least one with a positive weight; :func:`.parse_query` reads them from
                ``+"snow" -"people"``.
            k: how many moments at the most.
            videos: search these only: paths and globs.
            filter: what may be returned.

        Raises:
            QueryError: no positive term, terms that cancel each other, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        check_terms(terms)
        if len(terms) == 1:
            return self._by_term(terms[0], k=k, videos=videos, filter=filter)

        def embed(model: ModelRow) -> _Embedded:
            query = QueryShown(mix=tuple(map(shown, terms)))
            return query, self._vectorizer.mix(model, terms)

        return self._search(embed, k=k, videos=videos, filter=filter)

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
        chosen = (filter or SearchFilter()).narrowed_to(videos)
        sentences = label_sentences(labels, template)
        self._active = None  # no search follows that would notice another model
        model = self.active_model()
        vectors_LD = self._embedder.texts(model, sentences)
        return label_videos(self._database, model, labels, vectors_LD, chosen)

    def _by_term(
        self,
        term: QueryTerm,
        *,
        k: int,
        videos: Sequence[str] | None,
        filter: SearchFilter | None,
    ) -> SearchResult:
        if isinstance(term, TextTerm):
            return self.by_text(term.text, k=k, videos=videos, filter=filter)
        if isinstance(term, ImageTerm):
            return self.by_image(term.image, k=k, videos=videos, filter=filter)
        return self.by_moment(term.video, term.seconds, k=k, videos=videos, filter=filter)

    def _search(
        self,
        embed: Callable[[ModelRow], _Embedded],
        *,
        k: int,
        videos: Sequence[str] | None,
        filter: SearchFilter | None,
    ) -> SearchResult:
        if not 1 <= k <= MAX_K:
            raise QueryError(f"k={k}: between 1 and {MAX_K} hits can be asked for")
        chosen = (filter or SearchFilter()).narrowed_to(videos)
        limits = None if chosen == SearchFilter() else chosen
        for _ in range(PROMOTIONS_HEEDED):
            model = self.active_model()
            query, vectors = embed(model)
            try:
                hits = self._finder.find(model, vectors, k, chosen)
            except ActiveModelChangedError:
                self._active = None
                continue
            query = replace(query, k=k, filter=limits)
            return SearchResult(query=query, model=model.name, hits=hits)
        raise ModelChangedError(
            f"another model was promoted each of the {PROMOTIONS_HEEDED} times that this search "
            "was tried; search again when `siglip-pipeline models` shows one that stays active"
        )
