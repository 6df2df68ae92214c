"""The service over made vectors: filters, probabilities, order, and a model that changes."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest

from siglip_pipeline.errors import ModelChangedError, NothingIndexedError, QueryError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search import (
    MomentTerm,
    QueryEmbedder,
    SearchFilter,
    SearchOptions,
    SearchService,
    TextTerm,
)
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.similarity import probability
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.kinds.effort import Effort
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline_tests.store import made

VIDEOS = 8


class MadeTexts(QueryEmbedder):
    """Texts such as ``v03 20 0.16``: a vector whose cosine with that video's frame is so much.

    ``nothing`` lies off from all of them.
    """

    def __init__(self) -> None:
        super().__init__(ModelOptions(name="made/tiny"))
        self.embedded: list[str] = []

    def embed_texts(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
        self.embedded += texts
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> FloatArray:
        if text == "nothing":
            scenes = [made.footage(v)[:: made.SCENE] for v in range(VIDEOS)]
            off_D: FloatArray = np.linalg.svd(np.concatenate(scenes))[2][-1].astype(np.float32)
            return off_D
        video, row, cosine = text.split()
        frame_D = made.footage(int(video[1:]))[int(row)]
        noise_D = np.random.default_rng(99).standard_normal(made.DIM)
        noise_D -= (noise_D @ frame_D) * frame_D
        noise_D /= np.linalg.norm(noise_D)
        c = float(cosine)
        vector_D: FloatArray = (c * frame_D + np.sqrt(1 - c**2) * noise_D).astype(np.float32)
        return vector_D


@pytest.fixture(scope="module")
def made_database(module_database: Database) -> Database:
    model_id = made.collection(module_database, videos=VIDEOS)
    build_index(
        module_database,
        model_id,
        options=made.index_options(index_min_recall=0.0),
    )
    return module_database


@pytest.fixture
def embedder() -> MadeTexts:
    return MadeTexts()


@pytest.fixture
def service(made_database: Database, embedder: MadeTexts) -> SearchService:
    return SearchService(
        made_database, SearchOptions.from_settings(made.settings()), embedder=embedder
    )


def test_filters_combine(service: SearchService) -> None:
    limits = SearchFilter(
        videos=("v0[1-4].mp4", "v07.mp4"),
        from_seconds=8,
        to_seconds=16,
        uploaded_since=datetime.fromtimestamp(1e9 + 2, UTC),
        uploaded_until=datetime.fromtimestamp(1e9 + 5, UTC),
    )
    hits = service.by_moment("v03.mp4", 10, k=50, filter=limits).hits
    assert {hit.video for hit in hits} == {"v02.mp4", "v03.mp4", "v04.mp4"}
    assert all(8 <= hit.time_seconds < 16 for hit in hits)
    assert (hits[0].video, hits[0].time_seconds) == ("v03.mp4", 10.0)


def test_a_narrow_filter_finds_as_many_as_there_are(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the exact path, where the index walks its graph and names too few."""
    monkeypatch.setattr("siglip_pipeline.store.search.execution.EXACT_FRAMES", 0)
    monkeypatch.setattr("siglip_pipeline.store.kinds.moment_index.WALK_COST", 0)
    for k in (1, 2, 3, 50):
        limits = SearchFilter(videos=("v06.mp4",))
        hits = service.by_text("v02 3 0.5", k=k, filter=limits).hits
        apart = {(hit.video, hit.start_seconds) for hit in hits}
        assert len(apart) == len(hits)
        assert {hit.video for hit in hits} == {"v06.mp4"}
        covered = sum(hit.end_seconds - hit.start_seconds for hit in hits)
        assert len(hits) == k or covered == 24, "all of the video is in the hits"


def test_more_are_found_than_the_index_looks_at_first(
    service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "siglip_pipeline.store.search.search_run.effort_of", lambda *_: Effort(ef_search=1, rows=1)
    )
    result = service.by_moment("v03.mp4", 3, k=VIDEOS, filter=SearchFilter(max_per_video=1))
    assert len({hit.video for hit in result.hits}) == VIDEOS


@pytest.mark.parametrize("kind", ["moments", "hnsw", "exact"])
def test_a_rebuild_and_another_index_change_nothing(
    service: SearchService, made_database: Database, kind: str
) -> None:
    def answers() -> list[object]:
        return [
            *(service.by_moment(f"v0{video}.mp4", 9, k=12).hits for video in range(VIDEOS)),
            service.by_text("v05 3 0.4", k=12).hits,
        ]

    before = answers()
    model_id = service.active_model().model_id
    settings = made.settings(index_kind=kind, index_min_recall=0.0)
    assert build_index(
        made_database, model_id, options=IndexOptions.from_settings(settings), force=True
    ).published
    assert answers() == before


def test_nothing_here(service: SearchService, made_database: Database) -> None:
    """Logits of 100 c - 16: what lies off from all footage has a probability near zero."""
    assert service.by_text("nothing", k=3).hits[0].probability < 0.01
    unlikely = SearchFilter(min_probability=0.5)
    assert service.by_text("nothing", filter=unlikely).hits == ()
    assert service.by_text("v03 20 0.9", filter=unlikely).hits[0].video == "v03.mp4"
    strict = SearchService(
        made_database,
        SearchOptions.from_settings(made.settings(search_min_probability=0.5)),
        embedder=MadeTexts(),
    )
    assert strict.by_text("nothing").hits == ()
    assert strict.by_text("v03 20 0.9").hits
    assert strict.by_text("nothing", filter=SearchFilter(min_probability=0)).hits
    wanted = [TextTerm("v03 20 0.9"), TextTerm("v03 21 0.8", -0.1)]
    assert strict.by_mix(wanted).hits == (), "what is not wanted is there too"


def test_probability_hides_no_more_than_it_says(service: SearchService) -> None:
    everything = service.by_text("v03 20 0.3", k=100).hits
    for least in (0.01, 0.5, 0.99):
        kept = service.by_text("v03 20 0.3", k=100, filter=SearchFilter(min_probability=least))
        peaks = {(hit.video, hit.frame_index) for hit in everything if hit.probability >= least}
        assert peaks <= {(hit.video, hit.frame_index) for hit in kept.hits}
        assert all(hit.probability >= least for hit in kept.hits)


def test_a_mix_is_the_weighted_sum(service: SearchService) -> None:
    parts = [MomentTerm("v01.mp4", 3), MomentTerm("v02.mp4", 3, 0.5), MomentTerm("v05.mp4", 12, -1)]
    result = service.by_mix(parts, k=2)
    total_D = made.footage(1)[3] + 0.5 * made.footage(2)[3] - made.footage(5)[12]
    total_D /= np.linalg.norm(total_D)
    assert [hit.video for hit in result.hits] == ["v01.mp4", "v02.mp4"]
    assert result.hits[0].score == pytest.approx(float((made.footage(1) @ total_D).max()), abs=5e-3)
    assert to_json(result)["query"]["mix"][2] == {
        "like": {"video": "v05.mp4", "time_seconds": 12},
        "weight": -1,
    }


def test_what_is_not_wanted_sinks(service: SearchService) -> None:
    wanted = TextTerm("v03 20 0.5")
    assert service.by_mix([wanted], k=1).hits[0].video == "v03.mp4"
    mixed = service.by_mix([wanted, MomentTerm("v03.mp4", 20, -1)], k=100).hits
    assert (mixed[0].video, mixed[0].start_seconds) != ("v03.mp4", 16)


def test_texts_say_how_probable_a_mix_is(service: SearchService) -> None:
    model = service.active_model()
    wanted, unwanted = TextTerm("v03 20 0.18"), TextTerm("v03 20 0.15", -0.2)
    hit = service.by_mix([wanted, unwanted], k=1).hits[0]
    frames_ND = made.footage(3)
    row = int(hit.time_seconds)
    vectors = MadeTexts().embed_texts(model, [wanted.text, unwanted.text])
    fits = probability(vectors @ frames_ND[row], model.logit_scale, model.logit_bias)
    assert hit.probability == pytest.approx(fits[0] * (1 - fits[1]), abs=0.02)


def test_texts_are_embedded_once(service: SearchService, embedder: MadeTexts) -> None:
    first = service.by_text("v03 20 0.5")
    assert service.by_text("V03 20 0.5").hits == first.hits
    service.by_mix([TextTerm("v03 20 0.5"), TextTerm("v04 1 0.5")])
    assert embedder.embedded == ["v03 20 0.5", "v04 1 0.5"]


def test_the_oldest_text_is_forgotten_first(
    service: SearchService, embedder: MadeTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siglip_pipeline.search.embedder.TEXTS_KEPT", 2)
    for text in ("v01 1 0.5", "v02 1 0.5", "v01 1 0.5", "v03 1 0.5", "v01 1 0.5", "v02 1 0.5"):
        service.by_text(text, k=1)
    assert embedder.embedded == ["v01 1 0.5", "v02 1 0.5", "v03 1 0.5", "v02 1 0.5"]


def test_another_model_is_noticed_by_the_next_search(database: Database) -> None:
    first = made.collection(database, videos=2)
    settings = made.settings(index_min_recall=0.0)
    build_index(database, first, options=IndexOptions.from_settings(settings))
    service = SearchService(
        database,
        SearchOptions.from_settings(settings),
        embedder=MadeTexts(),
    )
    assert service.by_text("v00 1 0.5", k=1).model == "made/tiny"
    second = made.collection(database, videos=2, key="other")
    build_index(database, second, options=IndexOptions.from_settings(settings))
    ModelStore(database).promote("other")
    assert service.by_text("v00 1 0.5", k=1).model == "made/other"
    assert service.by_moment("v00.mp4", 1, k=1).model == "made/other"


def test_a_search_ends_however_often_models_are_promoted(database: Database) -> None:
    settings = made.settings(index_min_recall=0.0)
    options = IndexOptions.from_settings(settings)
    models = ModelStore(database)
    for key in ("one", "other"):
        build_index(database, made.collection(database, videos=1, key=key), options=options)
        models.promote(key)

    class Promoting(MadeTexts):
        """Promotes the other model while a text is embedded."""

        def texts(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
            models.promote("one" if model.key == "other" else "other")
            return super().texts(model, texts)

    service = SearchService(database, SearchOptions.from_settings(settings), embedder=Promoting())
    with pytest.raises(ModelChangedError, match="siglip-pipeline models"):
        service.by_text("v00 1 0.5", k=1)


def test_nothing_is_indexed_yet_and_then_it_is(database: Database) -> None:
    service = SearchService(database, SearchOptions.from_settings(made.settings()))
    with pytest.raises(NothingIndexedError, match="siglip-pipeline up"):
        service.by_moment("v00.mp4", 0)
    model_id = made.collection(database, videos=1)
    build_index(database, model_id, options=made.index_options(index_min_recall=0.0))
    assert service.by_moment("v00.mp4", 0).hits


def test_labels_are_judged_frame_by_frame(service: SearchService) -> None:
    report = service.label(
        ["3 20 0.9", "4 1 0.9"], template="v0{label}", videos=["v03.mp4", "v04.mp4"]
    )
    third, fourth = report.videos
    assert (third.video, third.frames) == ("v03.mp4", 24)
    assert (third.labels[0].label, fourth.labels[0].label) == ("3 20 0.9", "4 1 0.9")
    assert 16 <= third.labels[0].time_seconds < 24
    assert 0 <= fourth.labels[0].time_seconds < 8
    vector_D = MadeTexts().embed_texts(service.active_model(), ["v03 20 0.9"])[0]
    shares = [float(np.mean(made.footage(video) @ vector_D >= 0.16)) for video in (3, 4)]
    assert third.labels[0].share == pytest.approx(shares[0], abs=0.05)
    assert report.labels["3 20 0.9"] == pytest.approx(sum(shares) / 2, abs=0.05)
    assert len(service.label(["3 20 0.9"], template="v0{label}").videos) == VIDEOS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"videos": "a.mp4"}, "sequence of paths"),
        ({"videos": ("a.mp4", "")}, "empty name"),
        ({"from_seconds": -1}, "from_seconds=-1"),
        ({"from_seconds": float("nan")}, "from_seconds=nan"),
        ({"from_seconds": 5, "to_seconds": 5}, "not before"),
        ({"min_probability": 1.5}, "between 0 and 1"),
        ({"max_per_video": 0}, "at least 1"),
        (
            {"uploaded_since": datetime(2024, 1, 2), "uploaded_until": datetime(2024, 1, 1)},
            "not before",
        ),
    ],
)
def test_filters_that_make_no_sense(values: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        SearchFilter(**values)  # type: ignore[arg-type]


def test_queries_that_make_no_sense(service: SearchService) -> None:
    with pytest.raises(QueryError, match="cancel each other"):
        service.by_mix([MomentTerm("v01.mp4", 3), MomentTerm("v01.mp4", 3, -1)])
    with pytest.raises(QueryError, match="at least one term"):
        service.by_mix([])
    with pytest.raises(QueryError, match="no video matches"):
        service.by_moment("v01.mp4", 3, videos=["x*.mp4"])
    with pytest.raises(QueryError, match=r"no video 'gone\.mp4'"):
        service.by_moment("v01.mp4", 3, videos=["gone.mp4", "v0*.mp4"])
    with pytest.raises(QueryError, match="k=1001"):
        service.by_moment("v01.mp4", 3, k=1001)
    with pytest.raises(QueryError, match="each label once"):
        service.label(["a", "a"])
