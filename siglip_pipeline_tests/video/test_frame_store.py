"""Frame files: frames are read back as written, and a reader sees a complete file or none."""

import io
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from siglip_pipeline.errors import DamagedFramesError, FrameStoreError
from siglip_pipeline.records import VideoInfo
from siglip_pipeline.video import frame_file
from siglip_pipeline.video.contact_sheet import evenly_spaced
from siglip_pipeline.video.frame_file import new_file
from siglip_pipeline.video.frame_store import FrameFileMetadata, FrameStore, StoredFrame

INFO = VideoInfo(
    video="a/b.mp4",
    container="mov,mp4",
    codec="h264",
    width=640,
    height=360,
    rotation_degrees=90,
    time_base=Fraction(1001, 30_000),
    start_pts=-3,
    duration_seconds=4.5,
    frame_count=135,
    frame_rate=29.97,
    size_bytes=12345,
)
JPEG_BYTES = 20_000


def stored(n: int, *, start: int = 0) -> list[StoredFrame]:
    """Frames 0, 10, 20 …, whose "JPEGs" are noise of 20 KB."""
    return [
        StoredFrame(
            frame_index=10 * k,
            pts=300 * k - 3,
            time_seconds=k / 3,
            width=64,
            height=36,
            jpeg=np.random.default_rng(k).bytes(JPEG_BYTES),
            perceptual_hash=2**64 - 1 - k,
        )
        for k in range(start, start + n)
    ]


def write(store: FrameStore, frames: list[StoredFrame], video: str = "a/b.mp4") -> Any:
    return store.write(
        video, INFO, frames, source_sha256="ab" * 32, sampling="fps:1", decoder_version="1 test"
    )


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FrameStore]:
    yield FrameStore(tmp_path / "frames" if request.param == "folder" else "memory://frames")
    MemoryFileSystem.store.clear()


def test_what_goes_in_comes_out(store: FrameStore) -> None:
    frames = stored(100)
    assert not store.exists("a/b.mp4")
    metadata = write(store, frames)
    assert store.exists("a/b.mp4")
    assert store.metadata("a/b.mp4") == metadata
    assert metadata == FrameFileMetadata(
        schema_version=frame_file.SCHEMA_VERSION,
        source_sha256="ab" * 32,
        sampling="fps:1",
        decoder_version="1 test",
        frames=100,
        info=INFO,
    )
    for batch_size in (1, 7, 64, 1000):
        batches = list(store.read("a/b.mp4", batch_size=batch_size))
        assert all(len(batch) <= batch_size for batch in batches)
        assert [j for batch in batches for j in batch.jpegs] == [frame.jpeg for frame in frames]
        for name in ("frame_index", "pts", "time_seconds"):
            read = np.concatenate([getattr(batch, f"{name}_N") for batch in batches])
            assert read.tolist() == [getattr(frame, name) for frame in frames]


def test_any_parquet_reader_can_read_it(tmp_path: Path) -> None:
    write(FrameStore(tmp_path), stored(3))
    table = pq.read_table(tmp_path / "a" / "b.mp4.frames.parquet")
    assert table.column_names == [
        *("frame_index", "pts", "time_seconds", "width", "height"),
        *("jpeg", "perceptual_hash", "same_as"),
    ]
    assert table["perceptual_hash"].to_pylist()[0] == 2**64 - 1


def test_a_second_write_replaces_the_first(store: FrameStore) -> None:
    write(store, stored(50))
    write(store, stored(5, start=7))
    (batch,) = store.read("a/b.mp4")
    assert batch.frame_index_N.tolist() == [70, 80, 90, 100, 110]


def test_deleting(store: FrameStore) -> None:
    write(store, stored(2))
    write(store, stored(2), video="other.mp4")
    store.delete("a/b.mp4")
    store.delete("a/b.mp4")
    assert not store.exists("a/b.mp4")
    assert store.exists("other.mp4")


class CountingFile(io.RawIOBase):
    """Counts the bytes that are read from a file."""

    read_bytes = 0

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int = -1) -> bytes:
        block = bytes(self._file.read(size))
        CountingFile.read_bytes += len(block)
        return block


def test_a_thumbnail_reads_a_small_part_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = stored(2000)
    store = FrameStore(tmp_path)
    write(store, frames)
    size_bytes = (tmp_path / "a" / "b.mp4.frames.parquet").stat().st_size
    assert size_bytes > 2000 * JPEG_BYTES
    real_open = LocalFileSystem.open

    def counting_open(self: LocalFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        return CountingFile(real_open(self, path, *arguments, **options))

    monkeypatch.setattr(LocalFileSystem, "open", counting_open)
    for k in (0, 999, 1999):
        CountingFile.read_bytes = 0
        assert store.thumbnail("a/b.mp4", 10 * k) == frames[k].jpeg
        assert JPEG_BYTES < CountingFile.read_bytes < 0.04 * size_bytes
    CountingFile.read_bytes = 0
    assert store.metadata("a/b.mp4").frames == 2000
    assert CountingFile.read_bytes < 0.01 * size_bytes
    CountingFile.read_bytes = 0
    next(store.read("a/b.mp4", batch_size=64))
    assert CountingFile.read_bytes < 0.15 * size_bytes


def test_referring_frames_share_a_picture(store: FrameStore) -> None:
    first, *others = stored(40)
    same = [
        StoredFrame(
            frame_index=frame.frame_index,
            pts=frame.pts,
            time_seconds=frame.time_seconds,
            width=64,
            height=36,
            jpeg=None,
            perceptual_hash=1,
            same_as=0,
        )
        for frame in others
    ]
    write(store, [first, *same])
    for batch_size in (3, 64):
        jpegs = [j for b in store.read("a/b.mp4", batch_size=batch_size) for j in b.jpegs]
        assert jpegs == [first.jpeg] * 40
    assert store.thumbnail("a/b.mp4", 390) == first.jpeg


def test_a_missing_frame_or_video_is_named(store: FrameStore) -> None:
    write(store, stored(3))
    with pytest.raises(FrameStoreError, match="frame 11 is not among the 3 stored"):
        store.thumbnail("a/b.mp4", 11)
    for call in (store.metadata, lambda video: list(store.read(video)), store.contact_sheet):
        with pytest.raises(FrameStoreError, match=r"gone\.mp4: no frames are stored"):
            call("gone.mp4")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path, kept: float) -> None:
    store = FrameStore(tmp_path)
    write(store, stored(20))
    file = tmp_path / "a" / "b.mp4.frames.parquet"
    raw = file.read_bytes()
    file.write_bytes(raw[: round(len(raw) * kept) if kept < 1 else int(kept)])
    with pytest.raises(FrameStoreError, match="damaged"):
        store.metadata("a/b.mp4")


def test_pages_of_zeros_under_a_whole_footer_are_noticed(tmp_path: Path) -> None:
    store = FrameStore(tmp_path)
    write(store, stored(40))
    (file,) = tmp_path.rglob("*.parquet")
    content = file.read_bytes()
    middle = 2 * JPEG_BYTES
    file.write_bytes(content[:middle] + bytes(4096) + content[middle + 4096 :])
    assert store.metadata("a/b.mp4").frames == 40
    for reading in (
        lambda: store.verify("a/b.mp4"),
        lambda: list(store.read("a/b.mp4")),
        lambda: store.thumbnail("a/b.mp4", 20),
    ):
        with pytest.raises(DamagedFramesError, match=r"is damaged.*materialize video_frames"):
            reading()


def test_drafts_of_killed_processes_are_removed_in_the_end(tmp_path: Path) -> None:
    store = FrameStore(tmp_path)
    draft = store.new_draft()
    draft.write_bytes(b"half")
    assert store.remove_abandoned_drafts(older_than_seconds=3600) == 0
    os.utime(draft, (1_000_000_000, 1_000_000_000))
    assert store.remove_abandoned_drafts(older_than_seconds=3600) == 1
    assert not draft.exists()


def test_a_draft_that_is_being_written_is_not_abandoned(tmp_path: Path) -> None:
    """Its age does not matter: the clock may have been set since its last write."""
    store = FrameStore(tmp_path)
    drafts = [store.new_draft() for _ in range(2)]
    files = [new_file(draft) for draft in drafts]
    files[0].close()
    for draft in drafts:
        os.utime(draft, (1_000_000_000, 1_000_000_000))
    assert store.remove_abandoned_drafts(older_than_seconds=3600) == 1
    assert [draft.exists() for draft in drafts] == [False, True]
    files[1].close()
    os.utime(drafts[1], (1_000_000_000, 1_000_000_000))
    assert store.remove_abandoned_drafts(older_than_seconds=3600) == 1


def test_a_newer_or_foreign_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FrameStore(tmp_path)
    monkeypatch.setattr(frame_file, "SCHEMA_VERSION", frame_file.SCHEMA_VERSION + 1)
    write(store, stored(2))
    monkeypatch.undo()
    with pytest.raises(FrameStoreError, match="schema version 3"):
        store.metadata("a/b.mp4")
    pq.write_table(
        pq.read_table(tmp_path / "a" / "b.mp4.frames.parquet").replace_schema_metadata(None),
        tmp_path / "foreign.mp4.frames.parquet",
    )
    with pytest.raises(FrameStoreError, match="not written by this program"):
        store.metadata("foreign.mp4")


def test_a_write_that_fails_leaves_what_was_there(store: FrameStore, tmp_path: Path) -> None:
    write(store, stored(3))

    def breaking() -> Iterator[StoredFrame]:
        yield from stored(40)
        raise RuntimeError("the decoder died")

    with pytest.raises(RuntimeError):
        store.write(
            "a/b.mp4",
            INFO,
            breaking(),
            source_sha256="cd",
            sampling="fps:1",
            decoder_version="1 test",
        )
    assert store.metadata("a/b.mp4").frames == 3
    drafts = tmp_path / "frames" / ".drafts"
    assert not drafts.exists() or not list(drafts.iterdir())


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    store = FrameStore(tmp_path)
    write(store, stored(30))
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for n in (30, 60):
                write(store, stored(n))

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(60):
            assert sum(len(batch) for batch in store.read("a/b.mp4")) in (30, 60)
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("video", ["../x.mp4", "/etc/x", "a/../../x", ""])
def test_paths_stay_below_the_store(tmp_path: Path, video: str) -> None:
    with pytest.raises(FrameStoreError, match="not the path of a video"):
        FrameStore(tmp_path).delete(video)


def test_long_and_strange_names(store: FrameStore) -> None:
    for video in ("ü" * 120 + ".mp4", "x" * 250 + ".mp4", "x" * 251 + ".mp4", "a b#?%.mp4"):
        write(store, stored(1), video=video)
        assert store.metadata(video).frames == 1


def test_a_contact_sheet_is_small_and_holds_the_video(tmp_path: Path) -> None:
    def jpeg(shade: int) -> bytes:
        noise = np.random.default_rng(shade).integers(0, 90, (216, 384, 3))
        buffer = io.BytesIO()
        Image.fromarray((noise + shade).astype(np.uint8)).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    frames = [
        StoredFrame(
            frame_index=k,
            pts=k,
            time_seconds=float(k),
            width=384,
            height=216,
            jpeg=jpeg(8 * k),
            perceptual_hash=0,
        )
        for k in range(20)
    ]
    store = FrameStore(tmp_path)
    write(store, frames)
    sheet = store.contact_sheet("a/b.mp4")
    assert len(sheet) <= 60_000
    picture = Image.open(io.BytesIO(sheet))
    assert picture.format == "JPEG"
    assert picture.width > picture.height
    columns, rows = 4, 3
    shades = [
        np.asarray(picture.convert("L"))[
            int(picture.height * (r + 0.5) / rows), int(picture.width * (c + 0.5) / columns)
        ]
        for r in range(rows)
        for c in range(columns)
    ]
    assert np.corrcoef(shades, np.arange(12))[0, 1] > 0.8, "in time order"
    assert len(store.contact_sheet("a/b.mp4", max_bytes=6000)) <= 6000
    write(store, frames[:1])
    assert Image.open(io.BytesIO(store.contact_sheet("a/b.mp4"))).height < 120


def test_a_contact_sheet_reads_rows_once_and_decodes_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (768, 432), (200, 30, 30)).save(buffer, "JPEG")
    store = FrameStore(tmp_path)
    write(
        store,
        [
            StoredFrame(
                frame_index=k, pts=k, time_seconds=float(k), width=768, height=432,
                jpeg=buffer.getvalue(), perceptual_hash=0,
            )
            for k in range(6)
        ],
    )  # fmt: skip
    read, sizes = [], []
    read_row_group, thumbnail = pq.ParquetFile.read_row_group, Image.Image.thumbnail

    def counted(file: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        read.append(group)
        return read_row_group(file, group, **options)

    def noted(picture: Image.Image, size: tuple[float, float]) -> None:
        sizes.append(picture.size)
        thumbnail(picture, size)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    monkeypatch.setattr(Image.Image, "thumbnail", noted)
    sheet = Image.open(io.BytesIO(store.contact_sheet("a/b.mp4")))
    assert read == [0]
    assert sizes == [(192, 108)] * 6
    assert sheet.getpixel((80, 45)) == pytest.approx((200, 30, 30), abs=6)


def test_evenly_spaced_positions() -> None:
    assert evenly_spaced(np.arange(5), 12) == [0, 1, 2, 3, 4]
    assert evenly_spaced(np.arange(100), 4) == [12, 37, 62, 87]


def test_an_unknown_kind_of_url_names_the_setting() -> None:
    with pytest.raises(FrameStoreError, match="SIGLIP_FRAME_STORE=nonsense"):
        FrameStore("nonsense://bucket")


def test_fsspec_sees_no_half_written_file() -> None:
    """On storage without atomic puts the file arrives under another name first."""
    filesystem = fsspec.filesystem("memory")
    seen: list[set[str]] = []
    real_put = MemoryFileSystem.put_file

    def watching_put(self: MemoryFileSystem, lpath: str, rpath: str, **options: Any) -> Any:
        seen.append({rpath})
        return real_put(self, lpath, rpath, **options)

    store = FrameStore("memory://frames")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", watching_put)
        write(store, stored(1))
    assert seen
    assert all(name.endswith(".tmp") for names in seen for name in names)
    assert [n.rpartition("/")[2] for n in filesystem.find("/frames")] == ["b.mp4.frames.parquet"]
    MemoryFileSystem.store.clear()


def modes(folder: Path) -> set[str]:
    found = [path.stat().st_mode for path in (folder, *folder.rglob("*"))]
    return {f"{'d' if stat.S_ISDIR(mode) else '-'}{stat.S_IMODE(mode):o}" for mode in found}


@pytest.mark.parametrize(
    ("shared", "expected"),
    [(None, {"d700", "-600"}), (0o2770, {"d2770", "-660"}), (0o755, {"d755", "-644"})],
)
def test_frames_are_as_open_as_the_folder_that_they_are_in(
    tmp_path: Path, shared: int | None, expected: set[str]
) -> None:
    folder = tmp_path / "frames"
    if shared is not None:
        folder.mkdir()
        folder.chmod(shared)
    store = FrameStore(folder)
    write(store, stored(2))
    store.copy("a/b.mp4", "other/c.mp4")
    assert modes(folder) == expected


@pytest.mark.parametrize("what", ["link", "open"])
def test_a_folder_for_drafts_that_others_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = tmp_path / f"siglip-frames-{os.geteuid()}"
    if what == "link":
        (tmp_path / "theirs").mkdir()
        place.symlink_to(tmp_path / "theirs")
    else:
        place.mkdir()
        place.chmod(0o777)
    with pytest.raises(FrameStoreError, match="TMPDIR"):
        FrameStore("memory://frames").new_draft()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_folder_for_drafts_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = tmp_path / f"siglip-frames-{os.geteuid()}"
    place.mkdir(mode=0o700)
    os.chown(place, 65534, 65534)
    with pytest.raises(FrameStoreError, match="TMPDIR"):
        FrameStore("memory://frames").new_draft()


def test_drafts_for_a_bucket_are_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    draft = FrameStore("memory://frames").new_draft()
    assert stat.S_IMODE(draft.parent.stat().st_mode) == 0o700


def test_names_survive_a_power_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was synced to the disk, and whether the frame file had its name by then."""
    target = tmp_path / "frames" / "a" / "b.mp4.frames.parquet"
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_ino, target.exists()))

    monkeypatch.setattr(os, "fsync", spy)
    write(FrameStore(tmp_path / "frames"), stored(2))
    file, folder = target.stat().st_ino, target.parent.stat().st_ino
    assert (file, False) in synced
    assert synced.index((file, False)) < synced.index((folder, True))
    made_in = {inode for inode, _ in synced}
    assert {tmp_path.stat().st_ino, (tmp_path / "frames").stat().st_ino} <= made_in
