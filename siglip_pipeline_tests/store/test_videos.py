"""What the table of videos says about how far each video has come."""

from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.store import made


def state(database: Database, video: str) -> str | None:
    row = VideoStore(database).get(video)
    return None if row is None else row.state


def test_a_video_goes_through_its_states(database: Database) -> None:
    videos = VideoStore(database)
    assert state(database, "v.mp4") is None
    AnnouncedUploads(database).register([Upload(path="v.mp4", size_bytes=5, modified_at=1e9)])
    assert state(database, "v.mp4") == "pending"
    model_id = ModelStore(database).register(made.spec())
    made.record(database, "v.mp4")
    assert state(database, "v.mp4") == "frames"
    made.load(database, model_id, "v.mp4", made.footage(1))
    row = videos.get("v.mp4", model_id=model_id)
    assert row is not None
    assert row.state == "embedded", "searchable only once an index is published"
    build_index(database, model_id, options=made.index_options(index_kind="exact"))
    assert state(database, "v.mp4") == "indexed"


def test_a_new_version_of_a_video_is_not_indexed_before_it_is_embedded(
    database: Database,
) -> None:
    model_id = made.collection(database, videos=1)
    build_index(database, model_id, options=made.index_options(index_kind="exact"))
    assert state(database, "v00.mp4") == "indexed"
    with database.connection() as connection:
        connection.execute("UPDATE videos SET source_sha256 = 'newer'")
    assert state(database, "v00.mp4") == "frames"


def test_a_failure_stays_until_its_own_stage_succeeds(database: Database) -> None:
    videos = VideoStore(database)
    model_id = ModelStore(database).register(made.spec())
    videos.record_failure("v.mp4", stage=Stage.FRAMES, reason="no moov\0")
    videos.record_failure("v.mp4", stage=Stage.VECTORS, reason="out of memory")
    videos.record_failure("v.mp4", stage=Stage.VECTORS, reason="still out of memory")
    assert [(f.stage, f.reason) for f in videos.failures()] == [
        ("video_frames", "no moov"),
        ("frame_embeddings", "still out of memory"),
    ]
    made.record(database, "v.mp4")
    assert [f.stage for f in videos.failures()] == ["frame_embeddings"]
    row = videos.get("v.mp4")
    assert row is not None
    assert (row.state, row.stage, row.reason) == (
        "failed",
        "frame_embeddings",
        "still out of memory",
    )
    made.load(database, model_id, "v.mp4", made.footage(1))
    assert videos.failures() == []


def test_counts_add_up(database: Database) -> None:
    model_id = made.collection(database, videos=3)
    videos = VideoStore(database)
    AnnouncedUploads(database).register([Upload(path="new.mp4", size_bytes=1)])
    videos.record_failure("bad.mp4", stage=Stage.FRAMES, reason="not a video")
    build_index(database, model_id, options=made.index_options(index_kind="exact"))
    counts = videos.counts(model_id)
    assert (counts.total, counts.indexed, counts.failed, counts.pending) == (5, 3, 1, 1)
    assert (counts.frames, counts.vectors) == (72, 72)
    assert [failure.video for failure in counts.failures] == ["bad.mp4"]
    named = videos.named(["new.mp4", "absent.mp4", "bad.mp4"])
    assert [(row.video, row.state) for row in named] == [
        ("bad.mp4", "failed"),
        ("new.mp4", "pending"),
    ]


def test_paths_sort_by_their_bytes(database: Database) -> None:
    paths = ["b.mp4", "Z.mp4", "a/ü.mp4", "a.mp4", "a/b.mp4"]
    AnnouncedUploads(database).register(Upload(path=path, size_bytes=1) for path in paths)
    assert [row.video for row in VideoStore(database).list()] == sorted(paths)
