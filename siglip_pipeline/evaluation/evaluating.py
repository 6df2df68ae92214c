"""Ask judged queries of the search service, and measure the answers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from siglip_pipeline.errors import JudgedQueriesError, QueryError
from siglip_pipeline.evaluation.judged_queries import JudgedQueries, JudgedQuery, RelevantMoment
from siglip_pipeline.evaluation.metrics import USUAL, measure_queries
from siglip_pipeline.evaluation.quality_report import (
    QualityReport,
    QueryQuality,
    by_tag,
    nothing_here,
)
from siglip_pipeline.hits import Hit, SearchFilter
from siglip_pipeline.search import (
    MomentTerm,
    QueryEmbedder,
    SearchOptions,
    SearchService,
    TextTerm,
)
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.quality_results import indexed_videos
from siglip_pipeline.store.search.globs import is_glob
from siglip_pipeline.text.in_words import counted

DEPTH = 100
"""Hits that are asked for: what is not among them counts as not found."""
_BATCH = 64
_MISSING_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """The choices of an evaluation."""

    search: SearchOptions
    """Its ``min_probability`` decides which searches answer "nothing here"; hits are ranked and
    rated without it."""
    model_key: str | None = None
    """A registered model with a published index; None for the active one."""
    skip_missing: bool = False
    """Leave out queries whose videos are not indexed, rather than refuse them."""
    metrics: tuple[str, ...] = ()
    """Further metrics beside :data:`.USUAL` and those of the file."""


def evaluate(
    database: Database,
    judged: JudgedQueries,
    options: EvaluationOptions,
    *,
    progress: Callable[[str], object] = lambda _: None,
) -> QualityReport:
    """Search with every judged query, and measure where the relevant moments rank.

    Raises:
        JudgedQueriesError: a judged video is not indexed, or a query cannot be asked; names the
            line.
        NothingIndexedError: the model has no published index.
        ModelNotFoundError: no such model.
    """
    began = time.monotonic()
    embedder = QueryEmbedder(options.search.model, picture_seconds=options.search.picture_seconds)
    service = SearchService(
        database, options.search, embedder=embedder, model_key=options.model_key
    )
    model = service.active_model()
    queries = on_uploads(database, judged, model.model_id, skip_missing=options.skip_missing)
    progress(f"{counted(len(queries), 'judged query', 'judged queries')} against {model.name}")
    _embed_texts(embedder, model, queries)
    found = [(query, _search(service, judged, query)) for query in queries]
    values = measure_queries(found, (*USUAL, *judged.metrics, *options.metrics))
    least = options.search.min_probability
    if least > 0:
        empty = {q.line for q, hits in found if not any(h.probability >= least for h in hits)}
        values |= nothing_here(queries, empty)
    return QualityReport(
        judged=judged.name,
        digest=replace(judged, queries=tuple(queries)).digest,
        model=model.name,
        model_key=model.key,
        generation=ModelStore(database).get(model.model_id).active_generation,
        min_probability=least,
        ranking=str(options.search.ranking) or None,
        tags=by_tag(queries, values),
        queries=tuple(
            QueryQuality(
                line=query.line,
                query=query.label,
                values={m: v[query.line] for m, v in values.items() if query.line in v},
            )
            for query in queries
        ),
        skipped=len(judged.queries) - len(queries),
        seconds=round(time.monotonic() - began, 3),
    )


def on_uploads(
    database: Database, judged: JudgedQueries, model_id: int, *, skip_missing: bool
) -> list[JudgedQuery]:
    """Return judged queries with the paths of their videos, which files may name in short.

    Args:
        database: holds the vectors.
        judged: the queries of a file.
        model_id: the model whose vectors are searched.
        skip_missing: leave out queries whose videos have none.

    Raises:
        JudgedQueriesError: a video has none, or is one of several; names it and the line.
    """
    known = _KnownVideos(indexed_videos(database, model_id))
    return known.resolve(judged, skip_missing=skip_missing)


def _search(service: SearchService, judged: JudgedQueries, query: JudgedQuery) -> list[Hit]:
    """Return the hits of a query, all probabilities, without the moment that is the query."""
    limits = SearchFilter(videos=query.videos, min_probability=0.0)
    try:
        hits = service.by_mix(query.terms, k=DEPTH, filter=limits).hits
    except QueryError as error:
        raise JudgedQueriesError(f"{judged.name}, line {query.line}: {error}") from error
    own = query.own_moment
    if own is None:
        return list(hits)
    return [
        hit
        for hit in hits
        if hit.video != own.video or not hit.start_seconds <= own.time_seconds < hit.end_seconds
    ]


def _embed_texts(embedder: QueryEmbedder, model: ModelRow, queries: Sequence[JudgedQuery]) -> None:
    """Embed the texts in batches; the embedder keeps them for the searches."""
    texts = [term.text for q in queries for term in q.terms if isinstance(term, TextTerm)]
    for start in range(0, len(texts), _BATCH):
        embedder.texts(model, texts[start : start + _BATCH])


class _KnownVideos:
    """Match the names of judged videos with uploads: by path, or by the file's name."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = set(paths)
        self._by_name: dict[str, list[str]] = {}
        for path in paths:
            name = PurePosixPath(path)
            for known_as in {name.name, name.stem}:
                self._by_name.setdefault(known_as, []).append(path)

    def resolve(self, judged: JudgedQueries, *, skip_missing: bool) -> list[JudgedQuery]:
        """Return the queries with the paths of their videos."""
        queries, missing = [], []
        for query in judged.queries:
            unknown = [name for name in _named(query) if self._path(judged, query, name) is None]
            if unknown:
                missing.append(f"line {query.line}: {unknown[0]!r}")
            else:
                queries.append(self._with_paths(judged, query))
        if missing and not skip_missing:
            shown = "; ".join(missing[:_MISSING_NAMED])
            more = len(missing) - _MISSING_NAMED
            raise JudgedQueriesError(
                f"{judged.name} judges videos that are not indexed: {shown}"
                f"{f'; and {more} more' if more > 0 else ''}. Index them, or leave such queries "
                "out with --skip-missing"
            )
        if not queries:
            raise JudgedQueriesError(f"no video that {judged.name} judges is indexed")
        return queries

    def _with_paths(self, judged: JudgedQueries, query: JudgedQuery) -> JudgedQuery:
        def path(name: str) -> str:
            return name if is_glob(name) else self._path(judged, query, name) or name

        relevant: tuple[RelevantMoment, ...] = tuple(
            replace(moment, video=path(moment.video)) for moment in query.relevant
        )
        videos = None if query.videos is None else tuple(map(path, query.videos))
        terms = tuple(
            replace(term, video=path(term.video)) if isinstance(term, MomentTerm) else term
            for term in query.terms
        )
        return replace(query, terms=terms, relevant=relevant, videos=videos)

    def _path(self, judged: JudgedQueries, query: JudgedQuery, name: str) -> str | None:
        if name in self._paths:
            return name
        paths = self._by_name.get(name, [])
        if len(paths) > 1:
            raise JudgedQueriesError(
                f"{judged.name}, line {query.line}: {name!r} may be {' or '.join(paths[:3])}; give "
                "the path below the uploads"
            )
        return paths[0] if paths else None


def _named(query: JudgedQuery) -> list[str]:
    """Return the videos that a query names."""
    videos = [video for video in query.videos or () if not is_glob(video)]
    likes = [term.video for term in query.terms if isinstance(term, MomentTerm)]
    return [*(moment.video for moment in query.relevant), *likes, *videos]
