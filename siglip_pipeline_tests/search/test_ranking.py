"""Techniques of SIGLIP_RANKING, over made vectors whose best order is known."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from siglip_pipeline.errors import QueryError, SettingsError
from siglip_pipeline.hits import Hit
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search import (
    MomentTerm,
    QueryEmbedder,
    QueryTerm,
    Receipt,
    SearchFilter,
    SearchOptions,
    SearchResult,
    SearchService,
    TextTerm,
)
from siglip_pipeline.search.query_vectors import QueryVectorizer
from siglip_pipeline.search.ranking import CANDIDATES, PROMPTS, Ranking
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.store import frame_biases
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.frame_biases import NEAREST, biases_of, update_frame_biases
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.search.hit_frames import score_hit_frames
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.store import made

QUERY, OFF = np.eye(2, made.DIM, dtype=np.float32)
SPIKE = (0.5, 0.5, 0.6, 0.5, 0.5, 0.3)
"""Cosines of frames of one moment: the best frame of all, and a poor last one."""
STEADY = (0.58, 0.58, 0.58, 0.58)
MANY = 120


def at_cosine(cosine: float, aside_D: FloatArray) -> FloatArray:
    """A unit vector at this cosine with the query; the rest of it is ``aside``."""
    vector_D: FloatArray = cosine * QUERY + np.float32(np.sqrt(1 - cosine**2)) * aside_D
    return vector_D


class Words(QueryEmbedder):
    """Each text has the cosine with the query that it ends with; ``OFF`` is the rest."""

    def __init__(self) -> None:
        super().__init__(ModelOptions(name="made/tiny"))
        self.embedded: list[str] = []

    def embed_texts(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
        self.embedded += texts
        return np.stack([at_cosine(0.9 if "photo" in text else 1.0, OFF) for text in texts])


@pytest.fixture(scope="module")
def collection(module_database: Database) -> Database:
    model_id = ModelStore(module_database).register(made.spec())
    rng = np.random.default_rng(1)
    asides_ND = rng.standard_normal((MANY + 2, made.DIM)).astype(np.float32)
    asides_ND[:, :2] = 0
    asides_ND /= np.linalg.norm(asides_ND, axis=1, keepdims=True)
    films = {"spike.mp4": SPIKE, "steady.mp4": STEADY}
    films |= {f"many-{n:03d}.mp4": (0.4 - n / 1000,) for n in range(MANY)}
    for (video, cosines), aside_D in zip(films.items(), asides_ND, strict=True):
        made.record(module_database, video, frames=len(cosines))
        vectors_ND = np.stack([at_cosine(cosine, aside_D) for cosine in cosines])
        made.load(module_database, model_id, video, vectors_ND)
    build_index(module_database, model_id, options=made.index_options(index_min_recall=0.0))
    return module_database


def service(database: Database, ranking: str = "") -> SearchService:
    options = SearchOptions.from_settings(made.settings(ranking=ranking))
    return SearchService(database, options, embedder=Words())


def search(database: Database, ranking: str = "", k: int = 2, **more: object) -> SearchResult:
    return service(database, ranking).by_vector(QUERY, kind="text", k=k, **more)  # type: ignore[arg-type]


def shown(result: SearchResult) -> list[tuple[str, float, Any]]:
    return [
        (hit.video, round(hit.score, 2), hit.rank_score and round(hit.rank_score, 3))
        for hit in result.hits
    ]


def test_by_default_the_best_frame_ranks(collection: Database) -> None:
    assert shown(search(collection)) == [("spike.mp4", 0.6, None), ("steady.mp4", 0.58, None)]


@pytest.mark.parametrize(
    ("ranking", "spike", "steady"),
    [
        ("frames:4", (0.6 + 3 * 0.5) / 4, 0.58),
        ("smooth:1", (0.5 + 0.6 + 0.5) / 3, 0.58),
        ("smooth:1+frames:2", (1.6 / 3 + 1.6 / 3) / 2, 0.58),
        ("frames:64", sum(SPIKE) / 6, 0.58),
    ],
)
def test_a_steady_moment_outranks_one_good_frame(
    collection: Database, ranking: str, spike: float, steady: float
) -> None:
    """The score stays that of the best frame."""
    assert shown(search(collection, ranking)) == [
        ("steady.mp4", 0.58, pytest.approx(steady, abs=2e-3)),
        ("spike.mp4", 0.6, pytest.approx(spike, abs=2e-3)),
    ]


def test_frames_that_the_filter_excludes_do_not_count(collection: Database) -> None:
    part = SearchFilter(from_seconds=2.0, to_seconds=4.0)
    assert shown(search(collection, "frames:4", filter=part)) == [
        ("steady.mp4", 0.58, pytest.approx(0.58, abs=2e-3)),
        ("spike.mp4", 0.6, pytest.approx(0.55, abs=2e-3)),
    ]


def test_pages_follow_each_other_and_the_last_hits_keep_their_order(collection: Database) -> None:
    whole = search(collection, "frames:4", k=MANY + 2).hits
    assert [hit.video for hit in whole[CANDIDATES:]] == [
        f"many-{n:03d}.mp4" for n in range(CANDIDATES - 2, MANY)
    ]
    pages = [search(collection, "frames:4", k=40, offset=start).hits for start in (0, 40, 80)]
    assert [hit.video for page in pages for hit in page] == [hit.video for hit in whole[:120]]


def test_a_proof_and_an_explanation_use_the_same_ranking(collection: Database) -> None:
    ranked = service(collection, "frames:4")
    result = ranked.with_receipt([TextTerm("x")], Receipt(prove=True), k=2)
    assert result.proof is not None
    assert result.proof.complete
    assert [hit.video for hit in result.hits] == ["steady.mp4", "spike.mp4"]
    found = ranked.explain([TextTerm("x")], "spike.mp4", 2.0, k=1)
    assert (found.place, found.exact_place) == (None, 2)
    assert [cause.cause for cause in found.causes] == ["outranked"]
    assert found.gap == pytest.approx(0.58 - 0.525, abs=2e-3)
    beyond = ranked.explain([TextTerm("x")], f"many-{MANY - 1}.mp4", 0.0, k=1)
    assert beyond.exact_place == MANY + 2
    assert [cause.cause for cause in beyond.causes] == ["outranked"]


def test_a_text_in_several_sentences_scores_the_mean_of_them(collection: Database) -> None:
    prompting = service(collection, "prompts")
    embedder = prompting._embedder
    assert isinstance(embedder, Words)
    [hit, _] = prompting.by_text("a {car}", k=2).hits
    assert embedder.embedded == [prompt.replace("{text}", "a {car}") for prompt in PROMPTS]
    share = sum("photo" in prompt for prompt in PROMPTS) / len(PROMPTS)
    assert hit.score == pytest.approx(0.6 * (1 - share + share * 0.9), abs=2e-3)


def test_a_mix_of_kinds_is_centred(collection: Database) -> None:
    model = ModelStore(collection).active()
    assert model is not None
    terms: list[QueryTerm] = [TextTerm("x"), MomentTerm("steady.mp4", 0.0, weight=0.5)]
    words = Words()

    def mixed(ranking: str) -> FloatArray:
        vectorizer = QueryVectorizer(words, collection, Ranking.parse(ranking))
        mixed_D: FloatArray = vectorizer.mix(model, terms).query_QD[0]
        return mixed_D

    with pytest.raises(QueryError, match="needs the queries of the recall check"):
        mixed("centred")
    build_index(
        collection,
        model.model_id,
        options=made.index_options(index_min_recall=0.0),
        embed_texts=lambda texts: words.embed_texts(model, texts),
        force=True,
    )
    with collection.connection() as connection:
        means = dict(
            connection.execute(
                "SELECT modality, avg(embedding) FROM recall_queries GROUP BY modality"
            ).fetchall()
        )
        [(picture,)] = connection.execute(
            "SELECT embedding FROM frames_1 JOIN videos USING (video_id)"
            " WHERE path = 'steady.mp4' AND frame_index = 0"
        ).fetchall()
    expected_D = QUERY - means["text"].to_numpy()
    expected_D = expected_D + 0.5 * (picture.to_numpy() - means["picture"].to_numpy())
    expected_D /= np.linalg.norm(expected_D)
    np.testing.assert_allclose(mixed("centred"), expected_D, atol=2e-3)
    assert not np.allclose(mixed("centred"), mixed(""), atol=0.05)
    terms = [TextTerm("x"), TextTerm("y")]
    np.testing.assert_array_equal(mixed("centred"), mixed(""), "of one kind")


@pytest.mark.parametrize(
    "text",
    ["frames", "frames:0", "frames:65", "prompts:2", "sideways", "4", "hubness", "hubness:3"],
)
def test_what_is_no_ranking_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"no technique .* allowed are frames:N"):
        SearchOptions.from_settings(made.settings(ranking=text))


def test_rankings_are_read() -> None:
    assert Ranking.parse("") == Ranking()
    text = "frames:4+smooth:1+hubness:0.5+prompts+centred"
    assert str(Ranking.parse(text)) == text
    assert Ranking.parse(" Frames:4 + prompts+centred +smooth:1") == Ranking(
        frames=4, smooth=1, prompts=True, centred=True
    )


def with_texts(collection: Database, *, hub: str | None = None) -> None:
    """Build the index with a bank of texts, half of which lie near the frames of one video."""
    model = ModelStore(collection).active()
    assert model is not None
    with collection.connection() as connection:
        rows = connection.execute(
            "SELECT embedding FROM frames_1 JOIN videos USING (video_id) WHERE path = %s", [hub]
        ).fetchall()
    away_D = np.eye(made.DIM, dtype=np.float32)[1]
    bank_D = rows[0][0].to_numpy() if rows else away_D

    def embed(texts: Sequence[str]) -> FloatArray:
        return np.stack([bank_D if i % 2 else away_D for i in range(len(texts))])

    build_index(
        collection,
        model.model_id,
        options=made.index_options(index_min_recall=0.0, ranking="hubness:1"),
        embed_texts=embed,
        force=True,
    )


def test_a_frame_near_every_text_ranks_lower(collection: Database) -> None:
    """It is estimated when the index is built; without that, it is said."""
    with collection.connection() as connection:
        connection.execute("DELETE FROM recall_queries")
        connection.execute("DELETE FROM frame_biases")
    with pytest.raises(QueryError, match="needs biases of frames, which the build of the index"):
        search(collection, "hubness:0.5")
    with_texts(collection, hub="spike.mp4")
    hits = search(collection, "hubness:0.5", k=CANDIDATES).hits
    assert hits[0].video == "steady.mp4"
    [near_all] = [hit for hit in hits if hit.video == "spike.mp4"]
    assert near_all.score == pytest.approx(0.6, abs=2e-3)
    assert near_all.rank_score is not None
    # Of the bank's texts six are the vector of its first frame, and as many are far away.
    assert near_all.rank_score < 0.6 - 0.5 * 0.4
    picture = service(collection, "hubness:0.5").by_vector(QUERY, kind="picture", k=1)
    assert shown(picture) == [("spike.mp4", 0.6, None)], "biases are of texts"
    result = service(collection, "hubness:0.5").with_receipt(
        [TextTerm("x")], Receipt(prove=True), k=2
    )
    assert result.proof is not None
    assert result.proof.complete


def test_a_video_without_a_bias_yet_has_the_usual_one(collection: Database) -> None:
    with_texts(collection, hub="spike.mp4")
    vectors_ND = np.stack([at_cosine(0.59, np.eye(made.DIM, dtype=np.float32)[3])])
    made.record(collection, "new.mp4", frames=1)
    made.load(collection, 1, "new.mp4", vectors_ND)
    try:
        [new] = search(collection, "hubness:0.5", k=1, videos=("new.mp4", "steady.mp4")).hits
        assert new.video == "new.mp4"
    finally:
        VideoStore(collection).delete("new.mp4")


@pytest.mark.parametrize("hits", [1, 100])
def test_the_biases_of_a_long_video_are_read_once(database: Database, hits: int) -> None:
    """They are one array: it is searched neither for each frame nor for each hit."""
    model_id = ModelStore(database).register(made.spec())
    frames = 20_000
    made.record(database, "long.mp4", frames=frames)
    made.load(database, model_id, "long.mp4", np.tile(QUERY, (frames, 1)))
    with database.connection() as connection:
        connection.execute(
            """
            INSERT INTO frame_biases
            SELECT model_id, video_id, ingest_id, '', array_agg(n * 25), array_agg(n)
            FROM ingests, generate_series(0, %s) n GROUP BY model_id, video_id
            """,
            [frames - 1],
        )
    each = frames / hits
    found = [
        Hit(
            video="long.mp4",
            video_id=1,
            time_seconds=i * each,
            frame_index=round(i * each) * 25,
            score=1.0,
            probability=1.0,
            start_seconds=i * each,
            end_seconds=(i + 1) * each,
            media_time_seconds=i * each,
        )
        for i in range(hits)
    ]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for with_biases in (False, True) * 3:
        began = time.monotonic()
        scored = score_hit_frames(database, model_id, found, QUERY[None], with_biases=with_biases)
        seconds[with_biases].append(time.monotonic() - began)
    assert scored[-1].biases_F[-1] == frames - 1
    assert min(seconds[True]) < 10 * min(seconds[False]), seconds


def test_a_video_that_is_removed_while_its_bias_is_estimated_gets_none(
    collection: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_texts(collection)
    for video in ("gone.mp4", "later.mp4"):
        made.record(collection, video, frames=1)
        made.load(collection, 1, video, np.stack([at_cosine(0.4, OFF)]))

    def removed_meanwhile(*vectors: FloatArray) -> FloatArray:
        VideoStore(collection).delete("gone.mp4")
        return biases_of(*vectors)

    monkeypatch.setattr(frame_biases, "biases_of", removed_meanwhile)
    try:
        update_frame_biases(collection, 1)
        with collection.connection() as connection:
            rows = connection.execute(
                "SELECT path FROM frame_biases JOIN videos USING (video_id) WHERE path = ANY(%s)",
                [["gone.mp4", "later.mp4"]],
            ).fetchall()
        assert rows == [("later.mp4",)]
    finally:
        VideoStore(collection).delete("later.mp4")


def test_biases_are_the_mean_of_the_highest_cosines() -> None:
    rng = np.random.default_rng(2)
    bank_BD, frames_FD = rng.standard_normal((50, 8)), rng.standard_normal((5, 8))
    expected = [np.sort(bank_BD @ frame_D)[-NEAREST:].mean() for frame_D in frames_FD]
    np.testing.assert_allclose(biases_of(frames_FD, bank_BD), expected)  # type: ignore[arg-type]
    few_BD = bank_BD[:3]
    np.testing.assert_allclose(
        biases_of(frames_FD, few_BD),  # type: ignore[arg-type]
        (frames_FD @ few_BD.T).mean(axis=1),
    )


def test_only_what_changed_is_estimated_again(collection: Database) -> None:
    with_texts(collection)
    assert update_frame_biases(collection, 1) == 0
    made.load(collection, 1, "many-000.mp4", np.stack([at_cosine(0.4, OFF)]))
    assert update_frame_biases(collection, 1) == 1
    with collection.connection() as connection:
        connection.execute("DELETE FROM recall_queries WHERE position = 0")
    assert update_frame_biases(collection, 1) == MANY + 2, "another bank"
