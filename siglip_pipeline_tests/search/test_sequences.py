"""Sequences against brute force over all moments, over made vectors."""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from siglip_pipeline.errors import QueryError
from siglip_pipeline.search import (
    Receipt,
    SearchFilter,
    SearchOptions,
    SearchService,
    SequenceTerm,
    TextTerm,
    parse_query,
)
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline_tests.search.test_service import MadeTexts
from siglip_pipeline_tests.store import made

VIDEOS = 8
FRAMES = 96


@pytest.fixture(scope="module")
def service(module_database: Database) -> SearchService:
    model_id = made.collection(module_database, videos=VIDEOS)
    for number in range(VIDEOS):
        video = f"v{number:02d}.mp4"
        made.load(module_database, model_id, video, made.footage(number, frames=FRAMES))
    build_index(module_database, model_id, options=made.index_options(index_min_recall=0.0))
    options = SearchOptions.from_settings(made.settings())
    return SearchService(module_database, options, embedder=MadeTexts())


Found = tuple[float, str, tuple[float, ...]]


def brute_force(
    service: SearchService, texts: tuple[str, ...], within: float, k: int, **filters: Any
) -> list[Found]:
    """Every choice of one moment for each text, in order; the best of each first moment."""
    database, model = service._database, service.active_model()
    vectors_TD = MadeTexts().embed_texts(model, texts)
    start, end = SearchFilter(**filters).time_range or (0.0, np.inf)
    best: dict[tuple[str, int], Found] = {}
    for number in range(VIDEOS):
        video = f"v{number:02d}.mp4"
        with database.connection() as connection:
            stored = VectorStore(database).read(connection, model.model_id, video)
            bounds = connection.execute(
                "SELECT moment, first_frame, last_frame FROM moments_1 JOIN videos USING"
                " (video_id) WHERE path = %s ORDER BY moment",
                [video],
            ).fetchall()
        scores_TN = vectors_TD @ stored.embeddings_ND.T
        table: list[list[tuple[int, float, float]]] = []
        for scores_N in scores_TN:
            rows = []
            for moment, first, last in bounds:
                inside = np.flatnonzero(
                    (stored.frame_index_N >= first)
                    & (stored.frame_index_N <= last)
                    & (stored.time_seconds_N >= start)
                    & (stored.time_seconds_N < end)
                )
                if len(inside):
                    row = inside[np.argmax(scores_N[inside])]
                    rows.append((moment, float(stored.time_seconds_N[row]), float(scores_N[row])))
            table.append(rows)
        for chosen in product(*table):
            if all(b[0] > a[0] and b[1] - a[1] <= within for a, b in pairwise(chosen)):
                score = sum(c[2] for c in chosen) / len(texts)
                key = (video, chosen[0][0])
                found = (score, video, tuple(c[1] for c in chosen))
                best[key] = max(best.get(key, found), found)
    return sorted(best.values(), key=lambda f: -f[0])[:k]


@pytest.mark.parametrize(
    ("texts", "within", "k", "filters"),
    [
        (("v03 4 0.5", "v03 20 0.5"), 30, 10, {}),
        (("v03 20 0.5", "v03 4 0.5"), 30, 10, {}),
        (("v01 4 0.3", "v05 18 0.3"), 12, 5, {}),
        (("v02 4 0.4", "v02 12 0.4", "v02 20 0.4"), 15, 6, {}),
        (("v02 4 0.4", "v06 12 0.4", "v01 5 0.4", "v02 20 0.4"), 40, 3, {}),
        (("v03 4 0.5", "v03 20 0.5"), 30, 4, {"from_seconds": 6.0, "to_seconds": 60.0}),
        (("v03 4 0.5", "v05 20 0.5"), 9, 40, {}),
    ],
)
def test_the_best_sequences_are_those_of_brute_force(
    service: SearchService, texts: tuple[str, ...], within: float, k: int, filters: dict[str, Any]
) -> None:
    expected = brute_force(service, texts, within, k, **filters)
    hits = service.by_sequence(
        texts, within_seconds=within, k=k, filter=SearchFilter(**filters)
    ).hits
    assert len(hits) == len(expected) == min(k, len(expected)) > 0
    for hit, (score, video, times) in zip(hits, expected, strict=True):
        assert hit.score == pytest.approx(score, abs=2e-3)
        assert hit.steps is not None
        assert [step.video for step in hit.steps] == [video] * len(texts)
        assert [step.time_seconds for step in hit.steps] == pytest.approx(times, abs=8)
        assert hit.start_seconds == hit.steps[0].start_seconds
        assert hit.end_seconds == hit.steps[-1].end_seconds


def test_filters_hold_for_sequences(service: SearchService) -> None:
    texts = ("v03 4 0.5", "v03 20 0.5")
    limited = service.by_sequence(texts, filter=SearchFilter(max_per_video=1), k=20).hits
    videos = [hit.video for hit in limited]
    assert len(set(videos)) == len(videos) == VIDEOS
    only = service.by_sequence(texts, filter=SearchFilter(videos=("v04.mp4",))).hits
    assert {hit.video for hit in only} == {"v04.mp4"}
    sure = service.by_sequence(texts, filter=SearchFilter(min_probability=0.5)).hits
    assert sure
    for hit in sure:
        assert all(step.probability >= 0.5 for step in hit.steps or ())
        product_of_steps = np.prod([step.probability for step in hit.steps or ()])
        assert hit.probability == pytest.approx(product_of_steps)
    assert service.by_sequence(texts, filter=SearchFilter(min_probability=1.0)).hits == ()


def test_a_sequence_is_a_query_like_others(service: SearchService) -> None:
    [term] = parse_query('"v03 4 0.5" then "v03 20 0.5" within 30s')
    result = service.by_mix([term], k=3)
    assert (
        result.hits == service.by_sequence(("v03 4 0.5", "v03 20 0.5"), within_seconds=30, k=3).hits
    )
    assert result.query.sequence is not None
    assert result.query.sequence.within_seconds == 30
    assert service.by_mix([term], k=2, offset=1).hits == result.hits[1:]
    assert result.hits[0].video == "v03.mp4"
    for refused in (
        lambda: service.by_mix([term, TextTerm("v01 3 0.5")]),
        lambda: service.with_receipt([term], Receipt(prove=True)),
        lambda: service.explain([term], "v03.mp4", 4),
    ):
        with pytest.raises(QueryError, match="a sequence is a query of its own"):
            refused()
    with pytest.raises(QueryError, match="2 to 8 texts, not 1"):
        SequenceTerm(("a",))
