"""Uploads in folders and buckets: what is listed, what is left, and that listing reads nothing."""

import dataclasses
import functools
import hashlib
import http.server
import logging
import os
import pickle
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from siglip_pipeline.errors import UploadError, UploadNotFoundError, UploadsUnavailableError
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.extract import DecodeOptions, FrameReport, extract_frames
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.s3 import s3_options as options_for
from siglip_pipeline_tests.s3 import s3_server
from siglip_pipeline_tests.video.rendering import render

BUCKET = "videos"


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def s3_options() -> Iterator[dict[str, Any]]:
    """How fsspec reaches a real S3 API on 127.0.0.1."""
    with s3_server() as address:
        options = options_for(address)
        fsspec.filesystem("s3", **options).mkdir(BUCKET)
        yield options


def paths(store: UploadStore) -> list[str]:
    return [upload.path for upload in store.list()]


def put(folder: Path, name: str, content: bytes = b"video") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


NAMES = ["b.mp4", "a/1.mov", "a/2.webm", "a.mkv", "ü/ñ 100%#?.mp4", "noext"]
IGNORED = [".hidden.mp4", ".cache/x.mp4", "a/x.mp4.part", "x.crdownload", "x.mp4~", "note.txt"]


def test_a_folder_is_listed_in_order_without_what_is_no_upload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in NAMES + IGNORED:
        put(tmp_path, name)
    with caplog.at_level(logging.DEBUG, "siglip_pipeline.uploads.upload_store"):
        assert paths(UploadStore(tmp_path, settle_seconds=0)) == sorted(NAMES)
    ignored = [record.getMessage() for record in caplog.records]
    assert len(ignored) == len(IGNORED)
    for name in (".hidden.mp4", ".cache", "a/x.mp4.part", "note.txt"):
        assert any(repr(name) in line for line in ignored), name


def test_the_record_of_an_upload(tmp_path: Path) -> None:
    file = put(tmp_path, "a.mp4", b"12345")
    os.utime(file, (1_700_000_000, 1_700_000_000))
    store = UploadStore(tmp_path, settle_seconds=0)
    (upload,) = store.list()
    assert (upload.path, upload.size_bytes, upload.modified_at) == ("a.mp4", 5, 1_700_000_000)
    assert upload == store.get("a.mp4")
    assert store.sha256("a.mp4") == hashlib.sha256(b"12345").hexdigest()
    with store.open("a.mp4") as opened:
        opened.seek(2)
        assert opened.read() == b"345"


def test_a_change_shows_in_the_fingerprint(tmp_path: Path) -> None:
    file = put(tmp_path, "a.mp4", b"1234")
    store = UploadStore(tmp_path)
    before = store.get("a.mp4").fingerprint
    os.utime(file, (1_700_000_000, 1_700_000_000))
    touched = store.get("a.mp4").fingerprint
    file.write_bytes(b"12345")
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert len({before, touched, store.get("a.mp4").fingerprint}) == 3


def test_a_change_that_keeps_size_and_time_shows_in_the_fingerprint(tmp_path: Path) -> None:
    file = put(tmp_path, "a.jpg", b"1234")
    os.utime(file, (1_700_000_000, 1_700_000_000))
    store = UploadStore(tmp_path)
    before = store.get("a.jpg")
    # As `exiftool -P` does: another file under the name, as large and as old.
    other = put(tmp_path, "a.jpg_tmp", b"4321")
    os.utime(other, (1_700_000_000, 1_700_000_000))
    other.replace(file)
    after = store.get("a.jpg")
    assert not after.has_fingerprint(before.fingerprint)
    assert after.has_fingerprint(after.fingerprint)
    # Another file of the same times, as file systems without ctime have: its inode differs.
    assert not after.has_fingerprint(dataclasses.replace(after, inode=1).fingerprint)
    # Databases of earlier versions hold no inode, or no ctime either.
    assert after.has_fingerprint(f"4-1700000000000000-{round(file.stat().st_ctime * 1e6)}")
    assert after.has_fingerprint("4-1700000000000000")
    assert not after.has_fingerprint("4-1700000000000001")
    assert not after.has_fingerprint(None)


SETTLES = 1000.0


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings see the clock a little after what was written until now has settled."""
    now = time.time() + SETTLES + 1
    monkeypatch.setattr("siglip_pipeline.uploads.listing.time.time", lambda: now)


def test_a_growing_file_is_left_until_it_has_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path, "growing.mp4")
    store = UploadStore(tmp_path, settle_seconds=SETTLES)
    # A copy that keeps the old time of its source is still being written.
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert paths(store) == []
    assert store.get("growing.mp4").size_bytes == 5, "asked for by name it is there"
    with monkeypatch.context() as patched:
        later(patched)
        assert paths(store) == ["growing.mp4"]
    file.write_bytes(b"more")
    assert paths(store) == []


def test_a_file_from_the_future_settles_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path, "future.mp4")
    future = time.time() + 10_000
    os.utime(file, (future, future))
    store = UploadStore(tmp_path, settle_seconds=SETTLES)
    assert paths(store) == [], "it may still grow, whatever its time says"
    later(monkeypatch)
    assert paths(store) == ["future.mp4"]


def test_symlinks_stay_inside(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    put(uploads, "real/a.mp4")
    put(tmp_path, "outside/secret.mp4")
    (uploads / "leaves.mp4").symlink_to(tmp_path / "outside" / "secret.mp4")
    (uploads / "leaves").symlink_to(tmp_path / "outside")
    (uploads / "inside.mp4").symlink_to(uploads / "real" / "a.mp4")
    (uploads / "real" / "loop").symlink_to(uploads)
    (uploads / "broken.mp4").symlink_to(uploads / "nothing")
    # A folder is listed by its own name, whichever of its names comes first.
    (uploads / "a-link").symlink_to(uploads / "real")
    (uploads / "z-link").symlink_to(uploads / "real")
    store = UploadStore(uploads, settle_seconds=0)
    assert paths(store) == ["inside.mp4", "real/a.mp4"]
    for path in ("leaves.mp4", "leaves/secret.mp4"):
        with pytest.raises(UploadNotFoundError):
            store.get(path)
        with pytest.raises(UploadNotFoundError):
            store.open(path)


@pytest.mark.parametrize("path", ["../x.mp4", "a/../../x", "/etc/passwd", "", "a\0b", "gone.mp4"])
def test_paths_that_lead_nowhere(tmp_path: Path, path: str) -> None:
    put(tmp_path, "x.mp4")
    (tmp_path / "uploads").mkdir()
    store = UploadStore(tmp_path / "uploads")
    with pytest.raises(UploadNotFoundError):
        store.get(path)
    with pytest.raises(UploadNotFoundError):
        store.open(path)


def test_pipes_and_sockets_are_no_uploads(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    put(tmp_path, "a.mp4")
    assert paths(UploadStore(tmp_path, settle_seconds=0)) == ["a.mp4"]


def test_names_that_are_no_text_are_left(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.mp4"))).write_bytes(b"x")
    put(tmp_path, "good.mp4")
    assert paths(UploadStore(tmp_path, settle_seconds=0)) == ["good.mp4"]


@pytest.mark.parametrize("url", ["{tmp}/missing", "memory://nowhere/x"])
def test_a_missing_folder_is_not_an_empty_one(tmp_path: Path, url: str) -> None:
    store = UploadStore(url.format(tmp=tmp_path))
    with pytest.raises(UploadsUnavailableError, match="SIGLIP_UPLOADS") as raised:
        list(store.list())
    assert raised.value.retryable


def test_an_unknown_kind_of_url_names_the_setting() -> None:
    with pytest.raises(UploadsUnavailableError, match="SIGLIP_UPLOADS=nonsense://") as raised:
        UploadStore("nonsense://bucket/videos")
    assert not raised.value.retryable, "a run would try again for minutes"


def test_a_storage_that_cannot_be_opened_now_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError("no")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(UploadsUnavailableError) as raised:
        UploadStore("sftp://somewhere/videos")
    assert raised.value.retryable


def test_memory_is_listed_like_a_folder() -> None:
    filesystem = fsspec.filesystem("memory")
    for name in NAMES[:4] + IGNORED:
        filesystem.pipe(f"/up/{name}", b"video")
    store = UploadStore("memory://up")
    assert paths(store) == sorted(NAMES[:4])
    assert store.sha256("b.mp4") == hashlib.sha256(b"video").hexdigest()
    with store.open("b.mp4") as opened:
        assert opened.read() == b"video"
    with pytest.raises(UploadNotFoundError):
        store.get("gone.mp4")
    with pytest.raises(UploadError):
        store.open("gone.mp4")


def test_hidden_folders_inside_a_bucket_are_left() -> None:
    """Only the file's own name is looked at in a listing of names, unless all folders are."""
    filesystem = fsspec.filesystem("memory")
    for name in ("a/.trash/x.mp4", "a/.trash/deep/y.mp4", ".trash/z.mp4", "a/b/c.mp4", "a/b/d.mp4"):
        filesystem.pipe(f"/up/{name}", b"video")
    assert paths(UploadStore("memory://up")) == ["a/b/c.mp4", "a/b/d.mp4"]


def test_a_listing_opens_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/up/a.mp4", b"video")
    put(tmp_path, "a.mp4")

    def forbidden(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a listing opened a file")

    for name in ("open", "_open", "cat_file", "get_file"):
        monkeypatch.setattr(MemoryFileSystem, name, forbidden)
    monkeypatch.setattr(Path, "open", forbidden)
    assert paths(UploadStore("memory://up")) == ["a.mp4"]
    assert paths(UploadStore(tmp_path, settle_seconds=0)) == ["a.mp4"]


def test_a_store_can_be_sent_to_another_process(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    store = pickle.loads(pickle.dumps(UploadStore(tmp_path, settle_seconds=0)))
    assert paths(store) == ["a.mp4"]


def test_s3_is_listed_with_entity_tags(s3_options: dict[str, Any]) -> None:
    filesystem = fsspec.filesystem("s3", **s3_options)
    for name in [*NAMES[:4], ".hidden.mp4", "a/x.mp4.part"]:
        filesystem.pipe(f"{BUCKET}/listed/{name}", b"one")
    store = UploadStore(f"s3://{BUCKET}/listed", storage_options=s3_options)
    with_slash = UploadStore(f"s3://{BUCKET}/listed/", storage_options=s3_options)
    assert paths(store) == paths(with_slash) == sorted(NAMES[:4])
    before = store.get("b.mp4")
    assert store.sha256("b.mp4") == hashlib.sha256(b"one").hexdigest()
    assert before.etag == hashlib.md5(b"one").hexdigest()
    assert before.modified_at == pytest.approx(time.time(), abs=60)
    filesystem.pipe(f"{BUCKET}/listed/b.mp4", b"two")
    after = store.get("b.mp4")
    assert after.size_bytes == before.size_bytes
    assert after.fingerprint != before.fingerprint
    assert [u.fingerprint for u in store.list() if u.path == "b.mp4"] == [after.fingerprint]


def test_a_missing_bucket_is_unavailable(s3_options: dict[str, Any]) -> None:
    store = UploadStore("s3://no-such-bucket/x", storage_options=s3_options)
    with pytest.raises(UploadsUnavailableError, match="no-such-bucket"):
        list(store.list())


def test_a_prefix_without_files_is_an_empty_folder(s3_options: dict[str, Any]) -> None:
    assert paths(UploadStore(f"s3://{BUCKET}/not/yet", storage_options=s3_options)) == []


OPTIONS = DecodeOptions(stall_seconds=30)


def extracted(store: UploadStore, tmp_path: Path, name: str) -> FrameReport:
    return extract_frames(
        store.get(name), store, FrameStore(tmp_path / "frames"), sampling="fps:1", options=OPTIONS
    )


@pytest.mark.parametrize("name", ["back.mp4", "video.mkv"])
def test_s3_videos_are_streamed_into_an_s3_frame_store(
    s3_options: dict[str, Any], tmp_path: Path, name: str
) -> None:
    path = render(tmp_path / name, frames=60)
    fsspec.filesystem("s3", **s3_options).put_file(str(path), f"{BUCKET}/streamed/{name}")
    uploads = UploadStore(f"s3://{BUCKET}/streamed", storage_options=s3_options)
    frames = FrameStore(f"s3://{BUCKET}/frames", storage_options=s3_options)
    upload = uploads.get(name)
    report = extract_frames(upload, uploads, frames, sampling="fps:1", options=OPTIONS)
    assert report.frames == 3
    assert report.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    local = FrameStore(tmp_path / "local")
    extract_frames(
        (here := UploadStore(tmp_path)).get(name), here, local, sampling="fps:1", options=OPTIONS
    )
    assert [b.jpegs for b in frames.read(name)] == [b.jpegs for b in local.read(name)]


def test_videos_in_this_processs_memory_are_decoded_too(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", frames=60)
    fsspec.filesystem("memory").pipe("/up/a.mp4", path.read_bytes())
    report = extracted(UploadStore("memory://up"), tmp_path, "a.mp4")
    assert report.frames == 3
    assert report.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """A file server that answers ranges and counts the bytes it sent."""

    protocol_version = "HTTP/1.1"
    sent_bytes = 0

    def __init__(self, *arguments: Any, folder: Path) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, *, send: bool) -> None:
        file = self.folder / self.path.strip("/")
        if not file.is_file():
            links = "".join(f'<a href="/{p.name}">{p.name}</a>' for p in self.folder.iterdir())
            self._send(200, links.encode(), {"Content-Type": "text/html"}, send=send)
            return
        content = file.read_bytes()
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{len(content)}"'}
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            end = min(len(content), int(last or len(content)) + 1)
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            self._send(206, content[int(first) : end], headers, send=send)
        else:
            self._send(200, content, headers, send=send)

    def _send(self, code: int, body: bytes, headers: dict[str, str], *, send: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            type(self).sent_bytes += len(body)
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_http_uploads(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    path = render(tmp_path / "served" / "a.mp4", frames=60)
    handler = functools.partial(RangeHandler, folder=tmp_path / "served")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            store = UploadStore(f"http://127.0.0.1:{server.server_address[1]}")
            RangeHandler.sent_bytes = 0
            assert paths(store) == ["a.mp4"]
            assert RangeHandler.sent_bytes < path.stat().st_size, "a listing reads no video"
            assert store.get("a.mp4").size_bytes == path.stat().st_size
            report = extracted(store, tmp_path, "a.mp4")
            assert report.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        finally:
            server.shutdown()
