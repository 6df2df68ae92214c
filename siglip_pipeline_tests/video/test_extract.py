"""Decoding in child processes: a bad video fails alone, and the batch continues."""

import contextlib
import dataclasses
import hashlib
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
import pytest
from PIL import Image

from siglip_pipeline.errors import FrameStoreError, UploadError, VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.settings import Settings
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.extract import DecodeOptions, FrameReport, extract_frames, extract_many
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline.video.scan import scan
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.processes import descendants
from siglip_pipeline_tests.video.rendering import numbered_picture, read_number, render

pytestmark = pytest.mark.usefixtures("own_decoders")

OPTIONS = DecodeOptions(stall_seconds=20)


@pytest.fixture
def uploads(tmp_path: Path) -> UploadStore:
    (tmp_path / "uploads").mkdir()
    return UploadStore(tmp_path / "uploads", settle_seconds=0)


@pytest.fixture
def frame_store(tmp_path: Path) -> FrameStore:
    return FrameStore(tmp_path / "frames")


def folder(uploads: UploadStore) -> Path:
    return Path(uploads.url)


def leftovers(frame_store: FrameStore) -> list[Path]:
    return [path for path in Path(frame_store.url).rglob("*") if path.is_file()]


def test_stored_frames_are_those_of_the_video(
    uploads: UploadStore, frame_store: FrameStore
) -> None:
    path = render(folder(uploads) / "clips.mp4", frames=75)
    upload = uploads.get("clips.mp4")
    report = extract_frames(upload, uploads, frame_store, sampling="fps:2", options=OPTIONS)
    (batch,) = frame_store.read("clips.mp4")
    numbers = [read_number(np.asarray(Image.open(io.BytesIO(j)))) for j in batch.jpegs]
    assert numbers == batch.frame_index_N.tolist() == [0, 12, 25, 37, 50, 62]
    assert batch.time_seconds_N.tolist() == [n / 25 for n in numbers]
    assert report.frames == 6
    assert report.sampling == "fps:2 768px q90"
    assert report.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (report.packets, report.damaged_packets, report.damaged_share) == (75, 0, 0.0)
    assert report.decode_cpu_seconds > 0
    metadata = frame_store.metadata("clips.mp4")
    assert metadata.info == report.info
    assert metadata.source_sha256 == report.source_sha256
    assert "libavcodec" in metadata.decoder_version


def test_options_come_from_the_settings() -> None:
    settings = Settings.load(frame_longest_side=99, jpeg_quality=55, decode_stall_seconds=7.5)
    options = DecodeOptions.from_settings(settings)
    assert (options.longest_side, options.jpeg_quality, options.stall_seconds) == (99, 55, 7.5)
    assert DecodeOptions.from_settings(Settings.load()) == DecodeOptions()


def test_pictures_are_shrunk_but_never_enlarged(
    uploads: UploadStore, frame_store: FrameStore
) -> None:
    render(folder(uploads) / "a.mp4", frames=3, width=320, height=192)
    for longest_side, size in ((100, (100, 60)), (768, (320, 192))):
        options = dataclasses.replace(OPTIONS, longest_side=longest_side)
        extract_frames(
            uploads.get("a.mp4"), uploads, frame_store, sampling="fps:1", options=options
        )
        assert Image.open(io.BytesIO(frame_store.thumbnail("a.mp4", 0))).size == size


def test_near_identical_frames_are_stored_once_when_asked(
    uploads: UploadStore, frame_store: FrameStore
) -> None:
    pictures = [numbered_picture(n) for n in (0, 0, 0, 900, 900, 0)]
    render(folder(uploads) / "still.mp4", pictures=pictures, rate=1)
    upload = uploads.get("still.mp4")

    def extract(deduplicate: bool) -> tuple[int, list[bytes]]:
        options = dataclasses.replace(OPTIONS, deduplicate=deduplicate)
        report = extract_frames(upload, uploads, frame_store, sampling="fps:1", options=options)
        assert report.frames == 6
        size_bytes = next(Path(frame_store.url).glob("still*")).stat().st_size
        return size_bytes, [j for batch in frame_store.read("still.mp4") for j in batch.jpegs]

    full_bytes, full = extract(deduplicate=False)
    small_bytes, once = extract(deduplicate=True)
    assert len(once) == len(full) == 6
    assert once[0] == once[1] == once[2] == full[0]
    assert once[3] == once[4] != once[5]
    assert frame_store.thumbnail("still.mp4", 2) == once[2]
    assert small_bytes < 0.7 * full_bytes


@pytest.mark.parametrize("sampling", ["keyframes", "scenes", "every:10", "fps:1/60"])
def test_every_sampling_works_end_to_end(
    uploads: UploadStore, frame_store: FrameStore, sampling: str
) -> None:
    dark, bright = numbered_picture(1) // 4, 255 - numbered_picture(2) // 8
    pictures = [dark] * 25 + [bright] * 25
    render(folder(uploads) / "cut.mp4", pictures=pictures, options={"g": "10"})
    report = extract_frames(
        uploads.get("cut.mp4"), uploads, frame_store, sampling=sampling, options=OPTIONS
    )
    (batch,) = frame_store.read("cut.mp4")
    expected = {
        "keyframes": None,
        "scenes": [0, 10, 24, 25, 35, 49],
        "every:10": [0, 10, 20, 30, 40],
        "fps:1/60": [0],
    }[sampling]
    assert report.frames == len(batch)
    assert batch.frame_index_N[0] == 0
    if expected is not None:
        assert batch.frame_index_N.tolist() == expected


def run_batch(
    uploads: UploadStore, frame_store: FrameStore, *, workers: int = 2, options: DecodeOptions
) -> dict[str, FrameReport | str]:
    results = extract_many(
        uploads.list(), uploads, frame_store, sampling="fps:1", options=options, workers=workers
    )
    return {
        upload.path: result.reason if isinstance(result, VideoError) else result
        for upload, result in results
    }


def test_a_batch_with_bad_files_in_it(uploads: UploadStore, frame_store: FrameStore) -> None:
    render(folder(uploads) / "good_1.mp4", frames=30)
    render(folder(uploads) / "good_2.webm", codec="libvpx-vp9", frames=30)
    (folder(uploads) / "empty.mp4").write_bytes(b"")
    (folder(uploads) / "text.mkv").write_text("no video")
    Image.new("RGB", (40, 30), "red").save(folder(uploads) / "picture.png")
    outcome = run_batch(uploads, frame_store, options=OPTIONS)
    assert isinstance(outcome["good_1.mp4"], FrameReport)
    assert isinstance(outcome["good_2.webm"], FrameReport)
    assert isinstance(outcome["picture.png"], FrameReport)
    assert "empty" in str(outcome["empty.mp4"])
    assert "text" in str(outcome["text.mkv"])
    assert len(leftovers(frame_store)) == 3


def test_a_file_that_may_grow_no_further_leaves_no_draft(
    uploads: UploadStore, frame_store: FrameStore
) -> None:
    render(folder(uploads) / "film.mp4", frames=60)
    code = (
        "import resource, sys\n"
        "from siglip_pipeline.uploads.upload_store import UploadStore\n"
        "from siglip_pipeline.video.extract import extract_many\n"
        "from siglip_pipeline.video.frame_store import FrameStore\n"
        "uploads = UploadStore(sys.argv[1], settle_seconds=0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "list(extract_many(uploads.list(), uploads, FrameStore(sys.argv[2]), sampling='every:1'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, uploads.url, frame_store.url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "StorageFullError: no room for frames in" in done.stderr
    assert "SIGLIP_FRAME_STORE" in done.stderr
    assert leftovers(frame_store) == []


class ReplacedWhileRead(UploadStore):
    """Uploads of which one is replaced, this many times, while it is decoded."""

    def __init__(self, url: Path, source: Path, times: int) -> None:
        super().__init__(url, settle_seconds=0)
        self._source = source
        self._times = times

    def get(self, path: str) -> Upload:
        if self._times > 0:
            self._times -= 1
            (folder(self) / path).write_bytes(self._source.read_bytes() + bytes(self._times))
        return super().get(path)


@pytest.mark.parametrize(("times", "decoded"), [(1, True), (9, False)])
def test_a_file_that_is_replaced_while_it_is_decoded_is_decoded_again(
    times: int, decoded: bool, uploads: UploadStore, frame_store: FrameStore, tmp_path: Path
) -> None:
    render(tmp_path / "new.mp4", frames=60)
    old = render(folder(uploads) / "film.mp4", frames=30)
    listed = uploads.get(old.name)
    changing = ReplacedWhileRead(folder(uploads), tmp_path / "new.mp4", times)
    ((read, outcome),) = extract_many(
        [listed], changing, frame_store, sampling="every:1", options=OPTIONS, workers=1
    )
    if decoded:
        assert isinstance(outcome, FrameReport)
        assert outcome.source_sha256 == changing.sha256("film.mp4")
        assert read.fingerprint == changing.get("film.mp4").fingerprint
        assert outcome.info.frame_count == 60
    else:
        assert "replaced 3 times" in str(outcome)
        assert not frame_store.exists("film.mp4")


class MountedAnew(UploadStore):
    """Uploads on a file system that makes up another inode whenever it is asked."""

    def get(self, path: str) -> Upload:
        return dataclasses.replace(super().get(path), inode=time.monotonic_ns())


def test_an_inode_that_changes_costs_no_decode(
    uploads: UploadStore, frame_store: FrameStore
) -> None:
    render(folder(uploads) / "film.mp4", frames=30)
    changing = MountedAnew(folder(uploads), settle_seconds=0)
    listed = changing.get("film.mp4")
    ((read, outcome),) = extract_many(
        [listed], changing, frame_store, sampling="every:1", options=OPTIONS, workers=1
    )
    assert isinstance(outcome, FrameReport)
    assert read == listed, "it is hashed once more, since its inode is another one now"


class Hanging(UploadStore):
    """Uploads of which those called ``hang…`` never answer a read, deep inside FFmpeg."""

    def open(self, path: str) -> BinaryIO:
        return HangingFile() if path.startswith("hang") else super().open(path)

    def get(self, path: str) -> Upload:
        return Upload(path=path, size_bytes=99) if path.startswith("hang") else super().get(path)


class HangingFile(io.BytesIO):
    """A file in a storage that takes a request and never answers."""

    def __init__(self) -> None:
        super().__init__(bytes(99))

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(3600)
        raise AssertionError


def hanging_upload(name: str = "hang.mp4") -> Upload:
    return Upload(path=name, size_bytes=99)


def test_a_hang_costs_one_video(uploads: UploadStore, frame_store: FrameStore) -> None:
    good = render(folder(uploads) / "good.mp4", frames=30)
    uploads = Hanging(uploads.url, settle_seconds=0)
    batch = [hanging_upload(), uploads.get(good.name)]
    options = dataclasses.replace(OPTIONS, stall_seconds=1.0)
    results = dict(_outcomes(batch, uploads, frame_store, options, workers=1))
    assert "no progress for 1 s" in str(results["hang.mp4"])
    assert isinstance(results["good.mp4"], FrameReport)
    assert len(leftovers(frame_store)) == 1


def _outcomes(
    batch: list[Upload],
    uploads: UploadStore,
    frame_store: FrameStore,
    options: DecodeOptions,
    workers: int,
) -> list[tuple[str, FrameReport | VideoError]]:
    results = extract_many(
        batch, uploads, frame_store, sampling="fps:1", options=options, workers=workers
    )
    return [(upload.path, result) for upload, result in results]


def decoding_children() -> list[psutil.Process]:
    return descendants("siglip_pipeline.video.worker")


@pytest.mark.parametrize("sent", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_costs_one_video(
    uploads: UploadStore, frame_store: FrameStore, sent: signal.Signals
) -> None:
    good = render(folder(uploads) / "good.mp4", frames=30)

    def crash_it() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for child in decoding_children():
                if len(sockets_of(child)) == 2:  # the parent's, and the one that it reads from
                    child.send_signal(sent)
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=crash_it)
    uploads = Hanging(uploads.url, settle_seconds=0)
    batch = [hanging_upload(), uploads.get(good.name)]
    killer.start()
    try:
        results = dict(_outcomes(batch, uploads, frame_store, OPTIONS, workers=1))
    finally:
        killer.join()
    crashed = results["hang.mp4"]
    assert isinstance(crashed, VideoError)
    assert sent.name in crashed.reason
    # A decoder crashes because of its file; what has no memory left kills, whatever the file is.
    assert crashed.retryable is (sent is signal.SIGKILL)
    assert isinstance(results["good.mp4"], FrameReport)


def sockets_of(process: psutil.Process) -> list[str]:
    found = []
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(descriptor.readlink())
            found += [target] if target.startswith("socket:") else []
    return found


def test_a_memory_bomb_costs_one_video(uploads: UploadStore, frame_store: FrameStore) -> None:
    # 400 KB of PNG that become 440 MB of pixels.
    Image.new("RGB", (11_000, 10_000)).save(folder(uploads) / "bomb.png")
    render(folder(uploads) / "good.mp4", frames=30)
    options = dataclasses.replace(OPTIONS, memory_mib=300)
    outcome = run_batch(uploads, frame_store, options=options, workers=1)
    assert "more than 300 MiB" in str(outcome["bomb.png"])
    assert "SIGLIP_DECODE_MEMORY_MIB" in str(outcome["bomb.png"])
    assert isinstance(outcome["good.mp4"], FrameReport)


def test_children_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        from siglip_pipeline.video.extract import extract_frames
        from siglip_pipeline.video.frame_store import FrameStore
        from siglip_pipeline_tests.video.test_extract import Hanging, hanging_upload
        extract_frames(
            hanging_upload(), Hanging({str(tmp_path)!r}), FrameStore({str(tmp_path / "frames")!r}),
            sampling="fps:1",
        )
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        children = _wait_for(lambda: psutil.Process(parent.pid).children())
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def _wait_for(get: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := get():
            time.sleep(1.0)  # let it begin
            return found
        time.sleep(0.05)
    raise AssertionError("it did not start a child")


def test_no_child_is_left_when_a_batch_is_abandoned(
    uploads: UploadStore, frame_store: FrameStore
) -> None:
    for n in range(4):
        render(folder(uploads) / f"{n}.mp4", frames=10)
    results = extract_many(
        uploads.list(), uploads, frame_store, sampling="fps:1", options=OPTIONS, workers=2
    )
    before = {*decoding_children()}  # other tests may have filled them
    next(results)
    assert {*decoding_children()} - before
    results.close()
    assert not {*decoding_children()} - before
    assert all(".drafts" not in str(path) for path in leftovers(frame_store))


def test_videos_are_decoded_side_by_side(uploads: UploadStore, frame_store: FrameStore) -> None:
    """Three children at once: two hang until the third upload has come back."""
    good = render(folder(uploads) / "good.mp4", frames=10)
    batch = [
        hanging_upload("hang_1.mp4"),
        hanging_upload("hang_2.mp4"),
        uploads.get(good.name),
    ]
    uploads = Hanging(uploads.url, settle_seconds=0)
    options = dataclasses.replace(OPTIONS, stall_seconds=2.0)
    order = [path for path, _ in _outcomes(batch, uploads, frame_store, options, workers=3)]
    assert order[0] == "good.mp4"


def test_damage_is_counted_and_the_rest_is_indexed(
    uploads: UploadStore, frame_store: FrameStore
) -> None:
    path = render(folder(uploads) / "damaged.mp4", codec="mpeg4", frames=100, options={"g": "10"})
    raw = bytearray(path.read_bytes())
    start, end = raw.index(b"mdat") + 4, raw.index(b"moov") - 4
    begin = start + (end - start) // 2
    raw[begin : begin + (end - start) // 10] = bytes((end - start) // 10)
    path.write_bytes(raw)
    upload = uploads.get(path.name)
    report = extract_frames(upload, uploads, frame_store, sampling="every:1", options=OPTIONS)
    assert 80 <= report.frames < 100
    assert 3 <= report.damaged_packets <= 20
    assert 0.03 <= report.damaged_share <= 0.2


@pytest.mark.parametrize("kept", [0.8, 0.3])
def test_a_truncated_file_is_indexed_as_far_as_it_goes(
    uploads: UploadStore, frame_store: FrameStore, kept: float
) -> None:
    path = render(
        folder(uploads) / "cut.mp4",
        frames=200,
        options={"g": "25"},
        container_options={"movflags": "faststart"},
    )
    raw = path.read_bytes()
    start = raw.index(b"mdat")
    path.write_bytes(raw[: start + round((len(raw) - start) * kept)])
    (result,) = [
        result
        for _, result in _outcomes([uploads.get(path.name)], uploads, frame_store, OPTIONS, 1)
    ]
    if kept < 0.5:
        assert isinstance(result, VideoError)
        assert "at least 50% is asked for (SIGLIP_MIN_DECODABLE_SHARE)" in result.reason
        assert not frame_store.exists("cut.mp4")
        lenient = dataclasses.replace(OPTIONS, min_decodable_share=0.1)
        result = extract_frames(
            uploads.get(path.name), uploads, frame_store, sampling="fps:1", options=lenient
        )
    assert isinstance(result, FrameReport)
    assert result.packets == 200
    assert result.damaged_share == pytest.approx(1 - kept, abs=0.12)
    assert result.frames >= 2


def test_a_failed_video_keeps_the_frames_it_had(
    uploads: UploadStore, frame_store: FrameStore
) -> None:
    path = render(folder(uploads) / "a.mp4", frames=30)
    extract_frames(uploads.get("a.mp4"), uploads, frame_store, sampling="fps:1", options=OPTIONS)
    before = frame_store.metadata("a.mp4")
    path.write_bytes(b"")
    with pytest.raises(VideoError, match="empty"):
        extract_frames(
            uploads.get("a.mp4"), uploads, frame_store, sampling="fps:1", options=OPTIONS
        )
    assert frame_store.metadata("a.mp4") == before


def test_an_upload_that_is_gone_fails_alone(uploads: UploadStore, frame_store: FrameStore) -> None:
    gone = Upload(path="gone.mp4", size_bytes=5)
    with pytest.raises(VideoError, match="no such file"):
        extract_frames(gone, uploads, frame_store, sampling="fps:1", options=OPTIONS)


def test_a_frame_store_that_cannot_be_written_ends_the_batch(
    uploads: UploadStore, tmp_path: Path
) -> None:
    render(folder(uploads) / "a.mp4", frames=3)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FrameStoreError, match="SIGLIP_FRAME_STORE"):
        run_batch(uploads, FrameStore(tmp_path / "file"), options=OPTIONS)


def test_memory_does_not_grow_with_duration(uploads: UploadStore, frame_store: FrameStore) -> None:
    """A quarter of an hour takes no more than a minute does."""
    pictures = [numbered_picture(n % 50) for n in range(60)]
    short = render(folder(uploads) / "1.mkv", pictures=pictures, rate=1, options={"bf": "2"})
    long = render(folder(uploads) / "15.mkv", pictures=pictures * 15, rate=1, options={"bf": "2"})
    peaks = []
    for path in (short, long):
        report = extract_frames(
            uploads.get(path.name), uploads, frame_store, sampling="every:1", options=OPTIONS
        )
        peaks.append(report.peak_memory_bytes)
    assert report.frames == 900
    assert 30 * 2**20 < peaks[0] < 400 * 2**20, "of the child alone"
    assert peaks[1] < 1.2 * peaks[0]


def test_a_storage_that_fails_is_not_a_file_that_ends(uploads: UploadStore, tmp_path: Path) -> None:
    raw = render(folder(uploads) / "a.mkv", frames=100).read_bytes()

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > len(raw) // 2:
                raise ConnectionError("connection reset")
            return super().read(size)

    source = MediaSource("a.mkv", opener=lambda: Failing(raw))
    with pytest.raises(UploadError, match=r"storage failed after .* connection reset"):
        scan(source)


@pytest.mark.parametrize("name", ["a.mkv", "a.png"])
def test_what_a_storage_refuses_may_be_good(
    uploads: UploadStore, frame_store: FrameStore, name: str
) -> None:
    class Refusing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionError("connection reset")

    class Refused(UploadStore):
        def open(self, path: str) -> BinaryIO:
            return Refusing(bytes(5000))

    (folder(uploads) / name).write_bytes(bytes(5000))
    batch = [uploads.get(name)]
    uploads = Refused(uploads.url, settle_seconds=0)
    ((_, result),) = _outcomes(batch, uploads, frame_store, OPTIONS, workers=1)
    assert isinstance(result, VideoError)
    assert "connection reset" in result.reason
    assert result.retryable


def test_the_pipelines_own_process_needs_no_decoder() -> None:
    code = (
        "import sys; import siglip_pipeline.video.extract, siglip_pipeline.video.frame_store, "
        "siglip_pipeline.video.sampling, siglip_pipeline.uploads.upload_store; "
        "print(sorted({'av', 'torch', 'dagster'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
