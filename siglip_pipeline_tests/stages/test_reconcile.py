"""Uploads, partitions, frames, vectors and the index are compared, and what differs is mended."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from siglip_pipeline.errors import FrameStoreVersionError
from siglip_pipeline.records import Stage
from siglip_pipeline.stages.reconcile import InDagster, Reconciliation, reconcile
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.store import made
from siglip_pipeline_tests.video.test_frame_store import INFO, stored

FRAMES = 4


@dataclass
class Collection:
    """Videos in all places, as the stages would leave them."""

    folder: Path
    frame_store: FrameStore
    database: Database
    model_id: int
    partitions: set[str] = field(default_factory=set)

    def uploads(self, shard: str | None = None) -> UploadStore:
        return UploadStore(str(self.folder), shard=shard, settle_seconds=0)

    def announce(self, video: str) -> None:
        """An upload that the sensor has seen."""
        path = self.folder / video
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(video.encode())
        AnnouncedUploads(self.database).register([self.uploads().get(video)])
        self.partitions.add(video)

    def sample(self, video: str, *, frames: int = FRAMES) -> None:
        self.announce(video)
        made.record(self.database, video, upload=self.uploads().get(video), frames=frames)
        self.write_frames(video, frames)

    def write_frames(self, video: str, frames: int, sha256: str | None = None) -> None:
        sha256 = sha256 or made.sha(video)
        kept = {"source_sha256": sha256, "sampling": "fps:1", "decoder_version": "1 test"}
        self.frame_store.write(video, replace(INFO, video=video), stored(frames), **kept)

    def embed(self, video: str, *, frames: int = FRAMES) -> None:
        self.sample(video, frames=frames)
        made.load(self.database, self.model_id, video, made.footage(len(video), frames))

    def execute(self, statement: str) -> None:
        with self.database.connection() as connection:
            connection.execute(statement)

    def lose_a_vector(self, video: str) -> None:
        self.execute(
            f"DELETE FROM frames_{self.model_id} WHERE frame_index = 0 AND video_id ="
            f" (SELECT video_id FROM videos WHERE path = '{video}')"
        )

    def damage(self, video: str) -> None:
        """Overwrite pictures; the footer stays whole."""
        file = self.folder.parent / "frames" / f"{video}.frames.parquet"
        content = file.read_bytes()
        file.write_bytes(content[:9000] + bytes(4096) + content[13096:])

    def look(
        self,
        *moments: InDagster,
        shard: str | None = None,
        verify_frames: bool = False,
        awaited_seconds: float = 0,
    ) -> Reconciliation:
        """Reconcile; the state of Dagster is of these moments, one after the other."""
        verified = {"verify_frames": True} if verify_frames else {}
        coming = iter(moments or [InDagster(partitions=self.partitions)] * 4)
        found = reconcile(
            uploads=self.uploads(shard),
            frame_store=self.frame_store,
            database=self.database,
            in_dagster=lambda: next(coming),
            shard=shard,
            **verified,
            awaited_seconds=awaited_seconds,
            pause_seconds=0,
        )
        assert len(list(coming)) == (0 if found.differences or moments else 2), "one look is enough"
        return found

    def announced_again(self) -> set[str]:
        listed = AnnouncedUploads(self.database).listed_fingerprints()
        return {video for video, fingerprint in listed.items() if not fingerprint}


@pytest.fixture
def places(tmp_path: Path, database: Database) -> Collection:
    (tmp_path / "uploads").mkdir()
    model_id = ModelStore(database).register(made.spec())
    with database.connection() as connection:
        connection.execute("UPDATE models SET is_active = true")
    store = FrameStore(tmp_path / "frames")
    places = Collection(tmp_path / "uploads", store, database, model_id)
    places.embed("good.mp4")
    return places


def _told(found: Reconciliation) -> list[tuple[str, str, str]]:
    return [(d.video, d.problem, d.repair) for d in found.differences]


def test_all_is_counted_where_it_agrees(places: Collection) -> None:
    places.embed("also.mp4")
    found = places.look()
    assert _told(found) == []
    counts = (found.uploads, found.partitions, found.videos, found.frames, found.vectors)
    assert (*counts, found.indexed) == (2, 2, 2, 2 * FRAMES, 2 * FRAMES, 0)
    build_index(places.database, places.model_id, options=made.index_options(index_min_recall=0))
    assert places.look().indexed == 2 * FRAMES


def _new(places: Collection) -> None:
    (places.folder / "a.mp4").write_bytes(b"not announced yet")


def _deleted(places: Collection) -> None:
    places.embed("a.mp4")
    (places.folder / "a.mp4").unlink()


def _failed(places: Collection) -> None:
    places.announce("a.mp4")
    VideoStore(places.database).record_failure("a.mp4", stage=Stage.FRAMES, reason="no film")


@pytest.mark.parametrize("state", [_new, _deleted, _failed])
def test_what_others_see_to_is_no_difference(
    places: Collection, state: Callable[[Collection], None]
) -> None:
    state(places)
    assert _told(places.look()) == []
    assert "a.mp4" not in places.announced_again()


def _ghost(places: Collection) -> None:
    places.partitions.add("a.mp4")


def _frames_gone(places: Collection) -> None:
    places.embed("a.mp4")
    places.frame_store.delete("a.mp4")


def _fewer_frames(places: Collection) -> None:
    places.embed("a.mp4")
    places.write_frames("a.mp4", 3)


def _other_frames(places: Collection) -> None:
    places.embed("a.mp4")
    places.write_frames("a.mp4", FRAMES, "cd" * 32)


def _fewer_vectors(places: Collection) -> None:
    places.embed("a.mp4")
    places.lose_a_vector("a.mp4")


def _no_partition(places: Collection) -> None:
    places.embed("a.mp4")
    places.partitions.remove("a.mp4")


AGAIN = "taken up again"
LASTING = [
    (_ghost, "a partition without upload and without any result", "partition removed"),
    (_frames_gone, "no frames are stored in", AGAIN),
    (_fewer_frames, "store holds 3 frames of 612e6d70, the database knows of 4 of 612e6d70", AGAIN),
    (_other_frames, "store holds 4 frames of cdcdcdcd, the database knows of 4 of 612e6d70", AGAIN),
    (_fewer_vectors, "3 vectors stored, 4 recorded", AGAIN),
]
AWAITED = [
    (_no_partition, "known, but Dagster has no partition for it", AGAIN),
    (lambda places: places.announce("a.mp4"), "announced, but neither sampled nor failed", AGAIN),
    (lambda places: places.sample("a.mp4"), "sampled, but never embedded", AGAIN),
]


@pytest.mark.parametrize(("state", "problem", "repair"), LASTING + AWAITED)
def test_each_difference_is_told_and_mended(
    places: Collection, state: Callable[[Collection], None], problem: str, repair: str
) -> None:
    state(places)
    ((video, told, repaired),) = _told(places.look())
    assert (video, repaired) == ("a.mp4", repair)
    assert problem in told
    assert places.announced_again() == ({"a.mp4"} if repair == AGAIN else set())
    # Under a run at any of the four moments, it is the run's.
    idle = InDagster(partitions=places.partitions)
    at_work = replace(idle, busy={"a.mp4"})
    for moment in range(4):
        moments = [at_work if moment == number else idle for number in range(4)]
        assert _told(places.look(*moments[: 2 if moment < 2 else 4])) == []


@pytest.mark.parametrize(("state", "problem", "repair"), LASTING + AWAITED)
def test_only_a_step_that_may_be_about_to_begin_is_waited_for(
    places: Collection, state: Callable[[Collection], None], problem: str, repair: str
) -> None:
    is_awaited = any(problem == said for _, said, _ in AWAITED)
    state(places)
    idle = InDagster(partitions=places.partitions)
    for moment in range(4):
        moments = [replace(idle, recent={"a.mp4"} if moment == n else set()) for n in range(4)]
        if is_awaited:
            assert _told(places.look(*moments[: 2 if moment < 2 else 4])) == []
        else:
            assert len(_told(places.look(*moments))) == 1
    found = places.look(*[idle] * (2 if is_awaited else 4), awaited_seconds=60)
    assert len(_told(found)) == (0 if is_awaited else 1)
    places.execute(
        "UPDATE videos SET registered_at = now() - interval '61 s', announced_at = NULL,"
        " decoded_at = decoded_at - interval '61 s'"
    )
    places.execute("UPDATE ingests SET finished_at = finished_at - interval '61 s'")
    assert len(_told(places.look(awaited_seconds=60))) == 1


def test_a_second_look_is_after_a_pause_and_only_at_what_differed(
    places: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What begins to differ during the pause is left to the next reconciliation."""
    for video in ("a.mp4", "later.mp4", "mended.mp4"):
        places.embed(video)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        places.frame_store.delete("later.mp4")
        places.write_frames("mended.mp4", FRAMES)

    monkeypatch.setattr(time, "sleep", pause)
    idle = InDagster(partitions=places.partitions)
    stores = {"frame_store": places.frame_store, "database": places.database}
    ask = {"uploads": places.uploads(), "in_dagster": lambda: idle, "awaited_seconds": 0}
    reconcile(**stores, **ask)  # type: ignore[arg-type]
    assert pauses == []
    for video in ("a.mp4", "mended.mp4"):
        places.frame_store.delete(video)
    found = reconcile(**stores, **ask)  # type: ignore[arg-type]
    assert [d.video for d in found.differences] == ["a.mp4"]
    assert pauses == [5.0]
    assert places.announced_again() == {"a.mp4"}


def test_damaged_pictures_are_found_if_asked_for_and_not_copied_any_more(
    places: Collection,
) -> None:
    for video in ("a.mp4", "b.mp4", "gone.mp4"):
        places.embed(video)
    places.damage("b.mp4")
    places.frame_store.delete("gone.mp4")
    assert [video for video, _, _ in _told(places.look())] == ["gone.mp4"]
    found = _told(places.look(verify_frames=True))
    assert [(video, repair) for video, _, repair in found] == [
        ("b.mp4", AGAIN),
        ("gone.mp4", AGAIN),
    ]
    assert "damaged" in found[0][1]
    assert places.announced_again() == {"b.mp4", "gone.mp4"}
    samplings = {row.video: row.sampling for row in VideoStore(places.database).list()}
    assert {video for video, sampling in samplings.items() if not sampling} == {"b.mp4"}


def test_only_wrong_vectors_are_made_again(places: Collection) -> None:
    for video in ("a.mp4", "gone.mp4"):
        places.embed(video)
    places.lose_a_vector("a.mp4")
    places.frame_store.delete("gone.mp4")
    assert len(_told(places.look())) == 2
    states = VideoStore(places.database).states()
    assert states == {"a.mp4": "frames", "gone.mp4": "embedded", "good.mp4": "embedded"}


def test_a_file_that_cannot_be_registered_is_reported(places: Collection) -> None:
    (places.folder / "a\u202eb.mp4").symlink_to("nothing")
    assert _told(places.look()) == [("a\\u202eb.mp4", "a symlink to nothing", "reported")]


def test_frames_of_another_version_are_reported_and_stay(
    places: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: FrameStore, video: str) -> None:
        raise FrameStoreVersionError("of a newer version")

    monkeypatch.setattr(FrameStore, "metadata", refuse)
    assert _told(places.look()) == [("good.mp4", "of a newer version", "reported")]
    assert places.announced_again() == set()


def test_an_index_that_lacks_vectors_is_reported_when_nothing_runs(places: Collection) -> None:
    places.embed("long.mp4", frames=300)
    build_index(places.database, places.model_id, options=made.index_options(index_min_recall=0))
    assert _told(places.look()) == []
    places.execute("UPDATE generation_videos SET frames = frames - 1 WHERE frames = 300")
    gap = ("", f"the index covers {FRAMES + 299} of {FRAMES + 300} vectors", "reported")
    assert _told(places.look()) == [gap]
    quiet = InDagster(partitions=places.partitions)
    working = replace(quiet, is_quiet=False)
    for moments in ([working, quiet], [quiet, working], [quiet, quiet, working, quiet]):
        assert _told(places.look(*moments)) == []
    assert places.announced_again() == set()


def test_without_a_model_there_are_no_vectors_to_compare(places: Collection) -> None:
    places.lose_a_vector("good.mp4")
    places.execute("UPDATE models SET is_active = false")
    found = places.look()
    assert (_told(found), found.frames, found.indexed) == ([], FRAMES, 0)


def test_a_shard_is_compared_alone(places: Collection) -> None:
    for video in ("s/a.mp4", "t/b.mp4"):
        places.embed(video)
        places.lose_a_vector(video)
        places.frame_store.delete(video)
    places.partitions = {"s/a.mp4"}
    found = places.look(shard="s")
    assert {video for video, _, _ in _told(found)} == {"s/a.mp4"}
    assert (found.uploads, found.partitions, found.videos) == (1, 1, 1)
    assert places.announced_again() == {"s/a.mp4"}


@pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
def test_a_draft_of_a_killed_process_is_removed_after_a_day(
    places: Collection, hours: float, stays: bool
) -> None:
    draft = next(iter((places.folder.parent / "frames").glob(".*")), None)
    assert draft is not None
    file = draft / "killed.parquet"
    file.write_bytes(b"half")
    age = time.time() - hours * 3600
    os.utime(file, (age, age))
    assert _told(places.look()) == []
    assert file.exists() == stays
