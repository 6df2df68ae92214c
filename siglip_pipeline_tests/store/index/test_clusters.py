"""Pictures that a large part of all moments show are kept out of the graph, and found beside it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from psycopg import sql

from siglip_pipeline.hits import Hit
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import generations
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index import build as building
from siglip_pipeline.store.index.similarity_index import IndexReport, build_index
from siglip_pipeline.store.kinds import Generation, Scope, index_kind, moment_index
from siglip_pipeline.store.kinds.clusters import CLOSE, LEAST_SHARE, find_clusters
from siglip_pipeline.store.kinds.effort import Effort
from siglip_pipeline.store.kinds.moment_index import cluster_centres, has_clusters
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.search import execution
from siglip_pipeline.store.search.moment_search import MomentSearch
from siglip_pipeline.store.search.near_frames import NearFrames
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.store import made

VIDEOS, FRAMES = 24, 200
OPTIONS = made.index_options(index_recall_queries=60)
SOME = [f"v{video:02d}.mp4" for video in range(0, VIDEOS, 2)]


def directions(seed: int, count: int) -> FloatArray:
    """Unit vectors; those of pictures have something in common."""
    vectors_ND = np.random.default_rng(seed).standard_normal((count, made.DIM))
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    vectors_ND = np.sqrt(0.7) * vectors_ND
    vectors_ND[:, 0] += np.sqrt(0.3)
    return unit(vectors_ND)


def unit(vectors_ND: NDArray[np.floating[Any]]) -> FloatArray:
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / lengths_N1, np.float32)


BLACK_D, LOGO_D = directions(1, 2)


def black(count: int, seed: int) -> FloatArray:
    """Black frames, each coded a little differently."""
    return unit(BLACK_D + 0.01 * directions(seed, count))


def film(seed: int) -> FloatArray:
    """Each frame a moment of its own: black, a picture, black, a picture, a logo, and again."""
    frames_ND = directions(100 + seed, FRAMES)
    frames_ND[::5] = black(FRAMES // 5, 200 + seed)
    frames_ND[2::5] = black(FRAMES // 5, 300 + seed)
    frames_ND[4::5] = LOGO_D
    return frames_ND


@pytest.fixture(scope="module")
def built(module_database: Database) -> IndexReport:
    model_id = ModelStore(module_database).register(made.spec())
    for video in range(VIDEOS):
        name = f"v{video:02d}.mp4"
        made.record(module_database, name, frames=FRAMES)
        made.load(module_database, model_id, name, film(video))
    return build_index(module_database, model_id, options=OPTIONS)


@pytest.fixture
def model(module_database: Database, built: IndexReport) -> ModelRow:
    active = ModelStore(module_database).active()
    assert active is not None
    return active


def live(database: Database, model: ModelRow) -> Generation:
    with database.connection() as connection:
        found = generations.live(connection, model.model_id)
    assert found is not None
    return found


def members(database: Database, model: ModelRow, where: str = "true") -> int:
    table = sql.Identifier(f"index_{model.model_id}_g{live(database, model).generation}")
    statement = sql.SQL("SELECT count(*) FROM {} JOIN videos USING (video_id) WHERE {}").format(
        table,
        sql.SQL("cluster IS NOT NULL AND " + where),
    )
    with database.connection() as connection:
        return int(connection.execute(statement).fetchall()[0][0])


def scores(hits: list[Hit]) -> list[float]:
    return [round(hit.score, 3) for hit in hits]


def search_both_ways(
    database: Database, model: ModelRow, query_D: FloatArray, **asked: Any
) -> tuple[list[float], list[float]]:
    """The scores of hits by the index, and by a comparison of every frame."""
    request = made.request(query_D, **asked)
    search = MomentSearch(database)
    by_index = search.search(model, request)
    exact = search.search(model, request.__class__(**{**fields(request), "exact": True}))
    return scores(by_index), scores(exact)


def fields(request: Any) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__slots__}


def test_little_effort_finds_what_is_near(built: IndexReport) -> None:
    assert built.published, built.reason
    assert built.recall is not None
    for case in built.recall.cases:
        assert case.recall_at_10 >= 0.99, case
        assert case.ef_search <= 100, case


def test_members_are_not_in_the_graph(module_database: Database, model: ModelRow) -> None:
    target = live(module_database, model)
    with module_database.connection() as connection:
        centres = cluster_centres(connection, target)
        [(definition,)] = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE indexname = %s",
            [f"index_{model.model_id}_g{target.generation}_ann"],
        )
    assert [float(centres[0] @ BLACK_D), float(centres[1] @ LOGO_D)] == pytest.approx([1, 1], 1e-3)
    assert definition.endswith("WHERE (cluster IS NULL)")
    assert members(module_database, model) == VIDEOS * FRAMES * 3 // 5


@pytest.mark.parametrize("filter", [{}, {"videos": SOME}, {"from_seconds": 20, "to_seconds": 120}])
@pytest.mark.parametrize("what", ["black", "logo", "picture", "between", "far"])
def test_members_and_others_are_found(
    module_database: Database,
    model: ModelRow,
    what: str,
    filter: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As in a large scope: walk, and look which of the nearest are in it.
    monkeypatch.setattr(execution, "EXACT_FRAMES", 0)
    monkeypatch.setattr(moment_index, "WALK_COST", 0)
    picture_D = film(4)[21]
    query_D = {
        "black": BLACK_D,
        "logo": LOGO_D,
        "picture": picture_D,
        "between": unit((0.8 * BLACK_D + picture_D)[None])[0],
        "far": -directions(5, 1)[0],
    }[what]
    by_index, exact = search_both_ways(module_database, model, query_D, k=20, **filter)
    assert len(by_index) == 20
    found = sum(score >= exact[-1] - 0.002 for score in by_index)
    assert found >= (19 if what != "far" else 15)


def test_a_load_joins_the_clusters_and_a_deletion_leaves_them(
    module_database: Database, model: ModelRow
) -> None:
    made.record(module_database, "new.mp4", frames=5)
    made.load(module_database, model.model_id, "new.mp4", film(9)[:5])
    assert members(module_database, model, "path = 'new.mp4'") == 3
    hits = made.search(module_database, model, BLACK_D, k=2, videos=["new.mp4"])
    assert [hit.frame_index for hit in hits] in ([0, 50], [50, 0])
    VideoStore(module_database).delete("new.mp4")
    assert members(module_database, model, "path = 'new.mp4'") == 0
    assert members(module_database, model) == VIDEOS * FRAMES * 3 // 5


def test_a_generation_without_clusters_takes_the_place_of_one_with(database: Database) -> None:
    def tables() -> list[str]:
        with database.connection() as connection:
            rows = connection.execute(
                "SELECT tablename FROM pg_tables WHERE tablename LIKE 'clusters%' ORDER BY 1"
            )
            return [name for (name,) in rows.fetchall()]

    model_id = ModelStore(database).register(made.spec())
    for video in range(6):
        made.record(database, f"v{video}.mp4", frames=FRAMES)
        made.load(database, model_id, f"v{video}.mp4", film(video))
    for generation in (1, 2):
        assert build_index(database, model_id, options=OPTIONS, force=True).published
        assert tables() == [f"clusters_{model_id}_g{generation}"]
    building.begin(database, model_id, "moments")  # … and here its process dies
    assert len(tables()) == 2
    for video in range(6):
        made.load(database, model_id, f"v{video}.mp4", directions(video, FRAMES))
    assert build_index(database, model_id, options=OPTIONS, force=True).published
    assert tables() == []
    active = ModelStore(database).active()
    assert active is not None
    assert not has_clusters(live(database, active))
    assert made.search(database, active, directions(3, 5)[4], k=1)[0].frame_index == 100


def test_moments_of_few_long_videos_are_read_one_by_one(database: Database) -> None:
    """Joined by video alone, each would be compared with the bounds of all frames of its video."""
    model_id = ModelStore(database).register(made.spec())
    for video in range(4):  # fixed cameras: each is a cluster
        scene_D = directions(video, 1)
        made.load(database, model_id, f"{video}.mp4", unit(scene_D + 0.1 * directions(9, 20_000)))
    target = building.begin(database, model_id, "moments")
    building.fill(database, target)
    assert has_clusters(target)
    effort = Effort(ef_search=400, rows=400)
    with database.connection() as connection:
        search = NearFrames(
            connection, index_kind("moments"), target, k=10, scope=Scope(), effort=effort
        )
        plan = "\n".join(search.plan(scene_D[0]))
    assert "using frames_1_pkey" in plan
    assert "Merge Join" not in plan
    assert "Hash Join" not in plan


@pytest.mark.parametrize(("to_centre", "found"), [(0.9935, 1), (0.985, 0)])
def test_members_are_near_to_their_centre_not_to_each_other(to_centre: float, found: int) -> None:
    """Two members have about the square of the cosine that each has with their mean."""
    picture_D, *noise = unit(np.random.default_rng(3).standard_normal((41, 512)))
    members_ND = unit(to_centre * picture_D + np.sqrt(1 - to_centre**2) * np.array(noise))
    others_ND = unit(np.random.default_rng(4).standard_normal((960, 512)))
    assert np.median(members_ND @ members_ND.T) < CLOSE
    centres = find_clusters([*others_ND, *members_ND])
    assert len(centres) == found
    assert all(centre_D @ picture_D > 0.999 for centre_D in centres)


def test_what_is_near_to_a_member_but_not_to_the_centre_is_no_member() -> None:
    """Also where members are alike: it would draw the centre to itself."""
    picture_D, aside_D, *others = np.eye(512, dtype=np.float32)
    near_D = unit(picture_D + 0.17 * aside_D[None])[0]  # a cosine of 0.986
    (centre_D,) = find_clusters([*others[:400], *[picture_D] * 60, *[near_D] * 5])
    np.testing.assert_allclose(centre_D, picture_D, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 60), max_size=4))
def test_clusters_are_those_of_the_least_share_the_largest_first(
    seed: int, sizes: list[int]
) -> None:
    centres_CD = unit(np.random.default_rng(seed).standard_normal((len(sizes) + 1, 64)))[1:]
    others = list(unit(np.random.default_rng(seed + 1).standard_normal((500 - sum(sizes), 64))))
    sample = [
        unit(centre_D[None] + 0.003 * noise_D)[0]
        for centre_D, size in zip(centres_CD, sizes, strict=True)
        for noise_D in np.random.default_rng(seed + 2).standard_normal((size, 64))
    ]
    found = find_clusters([*others, *sample])
    wanted = sorted((size for size in sizes if size >= LEAST_SHARE * 500), reverse=True)
    assert len(found) == len(wanted)
    for centre_D, size in zip(found, wanted, strict=True):
        assert np.linalg.norm(centre_D) == pytest.approx(1, abs=1e-5)
        assert sum(vector_D @ centre_D >= CLOSE for vector_D in sample) == size
