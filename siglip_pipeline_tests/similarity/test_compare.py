"""Which videos are called copies: made footage for the rules, rendered films for the real thing."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from siglip_pipeline.cli.search_work import duplicates_table
from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.records import FloatArray
from siglip_pipeline.settings import Settings
from siglip_pipeline.similarity import compare
from siglip_pipeline.similarity.compare import compare_videos
from siglip_pipeline.similarity.similar_videos import VideoSimilarityStore
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.partitioning import partition_frames
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.search.conftest import index_folder
from siglip_pipeline_tests.similarity.test_alignment import copied, frames, still
from siglip_pipeline_tests.store import made
from siglip_pipeline_tests.video.copies import TRANSFORMS, transformed_copy

DIM = 64


@pytest.fixture(params=["one table", "partitions"])
def model_id(database: Database, request: pytest.FixtureRequest) -> int:
    model_id = ModelStore(database).register(made.spec(dim=DIM))
    if request.param == "partitions":
        partition_frames(database, model_id)
    return model_id


def load(database: Database, model_id: int, **videos: FloatArray) -> None:
    for name, vectors_ND in videos.items():
        made.record(database, f"{name}.mp4", frames=len(vectors_ND))
        made.load(database, model_id, f"{name}.mp4", vectors_ND)


def copies(database: Database, model_id: int) -> set[tuple[str, str]]:
    compare_videos(database, model_id)
    found = VideoSimilarityStore(database).segments(model_id=model_id, duplicates_only=True)
    return {(segment.video_a[:-4], segment.video_b[:-4]) for segment in found}


def test_a_copy_and_a_part_are_copies(database: Database, model_id: int) -> None:
    film = frames(1, 30)
    load(
        database, model_id, film=film, again=copied(film), part=copied(film[8:20]), no=frames(2, 30)
    )
    assert copies(database, model_id) == {("film", "again"), ("film", "part"), ("again", "part")}
    store = VideoSimilarityStore(database)
    (segment,) = [
        s for s in store.segments(model_id=model_id, video="part.mp4") if s.video_a_id == 1
    ]
    assert (segment.video_a, segment.video_b) == ("film.mp4", "part.mp4")
    assert (segment.start_a_seconds, segment.end_a_seconds) == (8, 20)
    assert (segment.start_b_seconds, segment.end_b_seconds) == (0, 12)
    assert segment.covered == pytest.approx(1)


def test_segments_are_shown_at_the_seconds_of_a_player(database: Database, model_id: int) -> None:
    film = frames(1, 30)
    load(database, model_id, film=film, part=copied(film[8:20]))
    copies(database, model_id)
    with database.connection() as connection:
        connection.execute(
            """UPDATE videos SET info = '{"media_time_seconds": 2.5}' WHERE path = 'part.mp4'"""
        )
    [segment] = VideoSimilarityStore(database).segments(model_id=model_id)
    assert (segment.media_offset_a_seconds, segment.media_offset_b_seconds) == (0, 2.5)
    cells = [next(iter(column.cells)) for column in duplicates_table([segment]).columns]
    assert cells[1] == "0:08.0 – 0:20.0"
    assert cells[3] == "0:02.5 – 0:14.5"


def test_a_black_opening_is_no_segment_at_all(database: Database, model_id: int) -> None:
    black = still(9, 15)
    load(
        database,
        model_id,
        **{
            f"v{i}": np.concatenate([copied(black, noise=0.001, seed=i), frames(i, 12)])
            for i in range(4)
        },
    )
    assert copies(database, model_id) == set()
    assert VideoSimilarityStore(database).segments(model_id=model_id) == []


def test_an_intro_of_two_videos_is_a_segment_and_no_copy(database: Database, model_id: int) -> None:
    intro = frames(7, 8)
    load(
        database,
        model_id,
        one=np.concatenate([intro, frames(1, 20)]),
        two=np.concatenate([frames(3, 2), copied(intro), frames(2, 20)]),
    )
    assert copies(database, model_id) == set()
    (segment,) = VideoSimilarityStore(database).segments(model_id=model_id)
    assert (segment.end_a_seconds, segment.start_b_seconds) == (8, 2)
    assert not segment.duplicate


def test_an_intro_of_many_videos_is_no_news(database: Database, model_id: int) -> None:
    """Even where it is most of each video."""
    intro = frames(7, 10)
    many = {
        f"v{i:02d}": np.concatenate([copied(intro, seed=i), frames(100 + i, 6)]) for i in range(14)
    }
    load(database, model_id, **many)
    assert copies(database, model_id) == set()
    assert VideoSimilarityStore(database).segments(model_id=model_id) == []


def test_many_uploads_of_one_video_are_copies_all_the_same(
    database: Database, model_id: int
) -> None:
    film = frames(1, 12)
    load(database, model_id, **{f"v{i:02d}": copied(film, seed=i) for i in range(14)})
    assert len(copies(database, model_id)) == 14 * 13 / 2


def test_stills_are_copies_only_when_both_are_the_same_still(
    database: Database, model_id: int
) -> None:
    load(
        database,
        model_id,
        slide=still(1, 10),
        again=copied(still(1, 12), noise=0.005),
        shown=np.concatenate([frames(2, 10), still(1, 10)]),
    )
    assert copies(database, model_id) == {("slide", "again")}


@pytest.mark.parametrize(("kept_videos", "reads"), [(0, 5), (1, 5), (2, 4), (3, 3)])
def test_frames_are_kept_up_to_a_number_of_bytes(
    kept_videos: int,
    reads: int,
    database: Database,
    model_id: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(database, model_id, a=frames(1, 6), b=frames(2, 6), c=frames(3, 6))
    videos = {row.video_id: row.video for row in VideoStore(database).list()}
    library = compare._Library(database, ModelStore(database).get(model_id), videos)
    read = Mock(wraps=library._read)
    monkeypatch.setattr(compare, "_KEPT_BYTES", kept_videos * 6 * DIM * 4)
    monkeypatch.setattr(library, "_read", read)
    a, b, c = videos
    found = [library[video] for video in (a, b, a, c, b)]
    assert read.call_count == reads
    for first, again in ((0, 2), (1, 4)):
        np.testing.assert_array_equal(found[first].embeddings_ND, found[again].embeddings_ND)


def test_each_run_replaces_what_was_found(database: Database, model_id: int) -> None:
    film = frames(1, 12)
    load(database, model_id, film=film, again=copied(film))
    assert copies(database, model_id) == {("film", "again")}
    made.load(database, model_id, "again.mp4", frames(5, 12))
    assert copies(database, model_id) == set()
    made.load(database, model_id, "again.mp4", copied(film))
    assert copies(database, model_id) == {("film", "again")}
    VideoStore(database).delete("again.mp4")
    assert VideoSimilarityStore(database).segments(model_id=model_id) == []


def stored(database: Database, model_id: int) -> tuple[list[object], list[object]]:
    """All that a comparison leaves for people to read."""
    with database.connection() as connection:
        segments = connection.execute(
            "SELECT video_a, video_b, segment, start_a, end_a, start_b, end_b, speed, score,"
            " evidence, duplicate, covered FROM shared_segments WHERE model_id = %s ORDER BY 1, 2,"
            " 3",
            [model_id],
        ).fetchall()
        vectors = connection.execute(
            "SELECT video_id, frames, embedding::text FROM video_vectors WHERE model_id = %s"
            " ORDER BY 1",
            [model_id],
        ).fetchall()
    return list(segments), list(vectors)


def test_comparing_what_changed_ends_as_comparing_all(database: Database, model_id: int) -> None:
    """Films, copies, parts, an intro that becomes common step by step, changes and deletions."""
    intro = frames(7, 10)
    film = frames(1, 30)

    def with_intro(seed: int) -> FloatArray:
        return np.concatenate([copied(intro, seed=seed), frames(100 + seed, 6)])

    steps: list[tuple[str, FloatArray | None]] = [
        ("film", film),
        ("other", frames(2, 30)),
        ("again", copied(film)),
        *((f"intro{seed:02d}", with_intro(seed)) for seed in range(12)),
        ("part", copied(film[8:20], seed=5)),
        ("again", frames(3, 20)),
        ("intro03", None),
        ("slide", still(1, 10)),
        ("slide2", copied(still(1, 12), noise=0.005)),
        ("film", None),
        ("again", copied(film[2:28], seed=9)),
    ]
    told = set()
    for name, vectors_ND in steps:
        if vectors_ND is None:
            VideoStore(database).delete(f"{name}.mp4")
        else:
            load(database, model_id, **{name: vectors_ND})
        report = compare_videos(database, model_id)
        assert report.changed == (vectors_ND is not None)
        step_by_step = stored(database, model_id)
        everything = compare_videos(database, model_id, anew=True)
        assert everything.changed == everything.videos == report.videos
        assert stored(database, model_id) == step_by_step, name
        assert (report.duplicates, report.segments) == (everything.duplicates, everything.segments)
        told.add((report.duplicates, report.segments))
    assert len(told) > 6, "the steps change what is told"
    again = compare_videos(database, model_id)
    assert (again.changed, again.pairs_compared) == (0, 0)


def test_a_crop_is_a_copy_where_enough_weaker_matches_line_up(
    database: Database, model_id: int
) -> None:
    """Frames at a cosine of 0.92: eight scenes in order prove it, two do not, nor does disorder."""

    def cropped(vectors_ND: FloatArray, seed: int) -> FloatArray:
        noise_ND = frames(seed, len(vectors_ND))
        mixed_ND = vectors_ND + 0.43 * noise_ND
        result: FloatArray = mixed_ND / np.linalg.norm(mixed_ND, axis=1, keepdims=True)
        return result.astype(np.float32)

    film, short = frames(1, 24), frames(2, 2)
    order = np.random.default_rng(3).permutation(24)
    load(database, model_id, film=film, crop=cropped(film, 31), mixed=cropped(film[order], 32))
    load(database, model_id, short=short, crop2=cropped(short, 33))
    cosines = (film * cropped(film, 31)).sum(axis=1)
    assert np.median(cosines) < 0.93
    assert np.median(cosines) > 0.9
    assert copies(database, model_id) == {("film", "crop")}


def test_another_rule_makes_everything_new(
    database: Database, model_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = frames(1, 12)
    load(database, model_id, film=film, again=copied(film))
    assert copies(database, model_id) == {("film", "again")}
    monkeypatch.setattr("siglip_pipeline.similarity.copy_decision.COVERED", 2.0)
    assert copies(database, model_id) == set()


def test_no_videos_at_all(database: Database, model_id: int) -> None:
    report = compare_videos(database, model_id)
    assert (report.videos, report.duplicates, report.segments) == (0, 0, 0)


@pytest.mark.slow
def test_copies_of_real_films_are_found_and_nothing_else(
    database: Database, tmp_path: Path
) -> None:
    """Precision 1.0, and recall of at least 0.9 on re-encoded, scaled and cut copies."""
    uploads = tmp_path / "uploads"
    scenes = demo_scenes()
    uploads.mkdir()
    films = {
        f"film{number}": render_video(
            uploads / f"film{number}.mp4",
            scenes[8 * number : 8 * number + 6],
            seconds_per_scene=2,
            fps=12,
            size=(160, 120),
        ).path
        for number in range(4)
    }
    wanted = [t for t in TRANSFORMS if t.name in ("re-encode", "scale", "cut")]
    for name, path in films.items():
        for transform in wanted:
            transformed_copy(path, uploads / f"{name}-{transform.name}.mp4", transform)
    settings = Settings.load(
        home=tmp_path,
        uploads=str(uploads),
        model_name=str(MODEL_FOLDER),
        database_url=database.url,
        index_kind="exact",
        index_min_recall=0.0,
        index_recall_queries=2,
    )
    found = copies(database, index_folder(database, settings))
    assert all(a.partition("-")[0] == b.partition("-")[0] for a, b in found), "precision"
    pairs = {
        tuple(sorted((name, f"{name}-{transform.name}"))) for name in films for transform in wanted
    }
    hit = {tuple(sorted(pair)) for pair in found} & pairs
    assert len(hit) / len(pairs) >= 0.9, pairs - hit
