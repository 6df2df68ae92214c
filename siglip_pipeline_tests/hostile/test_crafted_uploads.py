"""An upload can have nothing read but itself, and no socket opened."""

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.extract import DecodeOptions, FrameReport, extract_many
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.hostile.crafted import PLAYLISTS, Target
from siglip_pipeline_tests.processes import descendants
from siglip_pipeline_tests.video.rendering import render

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("own_decoders")]

BESIDE = "beside.mp4"
LOOKS = 20


@dataclass
class Watched:
    """What a batch of crafted files gave, and what its children had open meanwhile."""

    outcomes: dict[str, FrameReport | VideoError]
    frames: FrameStore
    opened: set[str] = field(default_factory=set)
    looks: int = 0
    most_sockets: int = 0


@pytest.fixture(scope="module", params=["folder", "bucket"])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    home = tmp_path_factory.mktemp("crafted")
    folder = home / "uploads"
    folder.mkdir()
    secret = render(home / "secret.mp4", frames=30)
    movie = render(folder / BESIDE, frames=20).read_bytes()
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        target = Target(secret, BESIDE, tcp.getsockname()[1], udp.getsockname()[1])
        for name, make in PLAYLISTS.items():
            (folder / name).write_bytes(make(target, movie))
        for name in ("pic0.jpg", "pic1.jpg", "pic000.png"):
            (folder / name).symlink_to(secret)
        uploads = UploadStore(folder, settle_seconds=0)
        if request.param == "bucket":
            uploads = _in_memory(folder)
        # Of a bucket, names are relative to the folder that the worker was started in.
        with contextlib.chdir(folder):
            result = _watch(uploads, FrameStore(home / "frames"))
        for listener in (tcp, udp):
            listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            tcp.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(1)
    return result


def _in_memory(folder: Path) -> UploadStore:
    bucket = fsspec.filesystem("memory")
    with contextlib.suppress(FileNotFoundError):
        bucket.rm("/crafted", recursive=True)
    for name in (*PLAYLISTS, BESIDE):
        bucket.pipe(f"/crafted/{name}", (folder / name).read_bytes())
    return UploadStore("memory://crafted")


def _watch(uploads: UploadStore, frames: FrameStore) -> Watched:
    batch = [uploads.get(name) for name in (*PLAYLISTS, BESIDE)]
    watched = Watched({}, frames)
    done = threading.Event()
    looking = threading.Thread(target=_look, args=[watched, done])
    looking.start()
    try:
        deadline = time.monotonic() + 60
        watched.outcomes = _extracted(batch, uploads, frames)
        # Beside other work, few looks meet a child.
        while watched.looks <= LOOKS and time.monotonic() < deadline:
            watched.outcomes = _extracted(batch, uploads, frames)
    finally:
        done.set()
        looking.join()
    return watched


def _extracted(
    batch: list[Upload], uploads: UploadStore, frames: FrameStore
) -> dict[str, FrameReport | VideoError]:
    options = DecodeOptions(stall_seconds=20)
    results = extract_many(batch, uploads, frames, sampling="fps:1", options=options, workers=2)
    return {upload.path: result for upload, result in results}


def _look(watched: Watched, done: threading.Event) -> None:
    """Note what the children have open, as often as can be."""
    while not done.wait(0.002):
        for child in descendants("siglip_pipeline.video.worker"):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child.pid}/status").read_text().find("Seccomp:\t2") < 0:
                    continue  # it imports its libraries yet
                links = [str(link.readlink()) for link in Path(f"/proc/{child.pid}/fd").iterdir()]
                watched.looks += 1
                watched.opened |= set(links)
                sockets = sum(link.startswith("socket:") for link in links)
                watched.most_sockets = max(watched.most_sockets, sockets)


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_is_told_what_it_is(name: str, watched: Watched) -> None:
    outcome = watched.outcomes[name]
    assert isinstance(outcome, VideoError), f"{name} gave {outcome}"
    assert outcome.reason == "a playlist, not a video: upload the files that it names"
    assert not watched.frames.exists(name)


def test_a_video_beside_them_is_read(watched: Watched) -> None:
    outcome = watched.outcomes[BESIDE]
    assert isinstance(outcome, FrameReport)
    assert outcome.info.frame_count == 20


def test_children_hold_nothing_but_what_they_were_handed(watched: Watched) -> None:
    """Their uploads and drafts; the socket to the parent, and one to read a bucket through."""
    assert watched.looks > LOOKS
    assert watched.most_sockets <= 2
    assert not [name for name in watched.opened if "secret" in name or "/pic0" in name]
    kinds = ("socket:", "/dev/null", "/proc/", "pipe:", "/dev/pts", "anon_inode:")
    files = [name for name in watched.opened if not name.startswith(kinds)]
    # A draft gets its name while the child that wrote it still has it open.
    finished = f"/frames/{BESIDE}.frames.parquet"
    allowed = ("/uploads/", "/.drafts/", finished, "/tmp/#", "memfd:", "(deleted)")
    assert [name for name in files if not any(part in name for part in allowed)] == []
