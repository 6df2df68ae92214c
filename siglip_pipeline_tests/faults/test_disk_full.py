"""A disk that is full of frames or of the database is reported with a remedy."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from siglip_pipeline.store.database import Database
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.faults.conftest import Make, Reference
from siglip_pipeline_tests.faults.harness import (
    Pipeline,
    Stored,
    read_stored,
    settings_for,
    started_zygote,
)
from siglip_pipeline_tests.faults.hooks import FILE_LIMIT_BYTES
from siglip_pipeline_tests.faults.small_disk import SmallDisk, reason_it_cannot_be_had, small_disk

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

DISK_KIB = 1000
WHY_NOT = reason_it_cannot_be_had()
needs_small_disk = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


def assert_nothing_is_half_written(frames: Path, stored: Stored, reference: Reference) -> None:
    """What is there is whole, and no draft is left."""
    assert not [*frames.glob(".drafts/*")]
    for video, rows in stored.frames.items():
        assert rows in ([], reference.stored.frames[video])
    for key, vector in stored.vectors.items():
        assert vector == reference.stored.vectors[key]
    assert not stored.miscounted


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder, size_kib=DISK_KIB) as made:
        yield made


@needs_small_disk
@pytest.mark.parametrize("leave_kib", [0, 8, 200, 600])
def test_a_disk_that_fills_up_with_frames(
    leave_kib: int, disk: SmallDisk, make_pipeline: Make, reference: Reference
) -> None:
    pipeline = make_pipeline(frame_store=str(disk.folder))
    seen = FrameStore(disk.seen)
    total = sum(file.stat().st_size for file in Path(reference.frame_store).rglob("*.parquet"))
    assert leave_kib * 1024 < total < DISK_KIB * 1024
    with (
        (pipeline.folder / "zygote").open("ab") as log,
        started_zygote(log, prefix=disk.prefix) as inside,
    ):
        pipeline = replace(pipeline, zygote=inside)
        disk.fill(leave_bytes=leave_kib * 1024)
        assert pipeline.run() == 2, pipeline.said[-4000:]
        assert f"no room for frames in {disk.folder}" in " ".join(pipeline.said.split())
        assert "SIGLIP_FRAME_STORE" in pipeline.said
        with Database(pipeline.settings.database_url or "") as database:
            assert_nothing_is_half_written(disk.seen, read_stored(database, seen), reference)
        disk.make_room()
        pipeline.finish()
        with Database(pipeline.settings.database_url or "") as database:
            assert read_stored(database, seen) == reference.stored


def test_frame_files_over_a_limit_of_the_process(make_pipeline: Make, reference: Reference) -> None:
    files = Path(reference.frame_store).rglob("*.parquet")
    assert max(file.stat().st_size for file in files) > FILE_LIMIT_BYTES
    pipeline = make_pipeline()
    pipeline.hook = "siglip_pipeline_tests.faults.hooks:limit_file_size"
    assert pipeline.run() == 2, pipeline.said[-4000:]
    assert "no room for frames in" in " ".join(pipeline.said.split())
    assert_nothing_is_half_written(
        Path(pipeline.settings.frame_store_url), pipeline.stored(), reference
    )
    pipeline.hook = ""
    pipeline.finish()
    assert pipeline.stored() == reference.stored


@contextmanager
def _home_on(disk: SmallDisk, films: Path) -> Iterator[Pipeline]:
    """A pipeline whose whole home, the embedded database included, lies on the small disk."""
    (disk.seen / "home").mkdir()
    settings = settings_for(disk.folder, films)
    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "zygote").open("ab") as log,
        started_zygote(log, prefix=disk.prefix) as zygote,
    ):
        yield Pipeline(settings, Path(folder), zygote)


@needs_small_disk
@pytest.mark.parametrize("leave_kib", [0, 64, 400])
def test_a_disk_that_fills_up_with_vectors(
    leave_kib: int, films: Path, reference: Reference
) -> None:
    with tempfile.TemporaryDirectory(prefix="siglip-tests-") as outside:
        Path(outside).chmod(0o755)
        folder = Path(outside) / "disk"
        folder.mkdir()
        # Room for a cluster of three databases, its write-ahead log, and the frames.
        with small_disk(folder, size_kib=400 * 1024) as disk, _home_on(disk, films) as pipeline:
            assert pipeline.run("materialize", "sub/c.mp4", "--json") == 0, pipeline.said[-4000:]
            first = _stored_inside(disk, pipeline)
            disk.fill(leave_bytes=leave_kib * 1024)
            status = pipeline.run()
            said = " ".join(pipeline.said.split())
            assert status == 2, pipeline.said[-6000:]
            assert "o room" in said or "No space left" in said, pipeline.said[-6000:]
            disk.make_room()
            after = _stored_inside(disk, pipeline)
            assert_nothing_is_half_written(disk.seen / "home" / "frames", after, reference)
            assert after.only("sub/c.mp4") == first.only("sub/c.mp4")
            pipeline.finish()
            assert _stored_inside(disk, pipeline) == reference.stored


def _stored_inside(disk: SmallDisk, pipeline: Pipeline) -> Stored:
    """The database lives on a disk that only its own namespace sees, but its socket is here."""
    assert pipeline.run("db", "start", "--json") == 0, pipeline.said[-4000:]
    try:
        assert pipeline.run("db", "url") == 0
        url = pipeline.said.strip().splitlines()[-1]
        with Database(url) as database:
            return read_stored(database, FrameStore(disk.seen / "home" / "frames"))
    finally:
        assert pipeline.run("db", "stop", "--force", "--json") == 0, pipeline.said[-4000:]
