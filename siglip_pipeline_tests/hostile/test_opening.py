"""Uploads whose name means another file by the time it is opened; names that hold a reader up."""

import os
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from siglip_pipeline.errors import UploadError, UploadNotFoundError
from siglip_pipeline.records import Stage
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline_tests.conftest import collection_settings
from siglip_pipeline_tests.hostile.exchanging import exchanging
from siglip_pipeline_tests.web.conftest import Served, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

VIDEO, SECRET = b"video" * 1000, b"secret" * 2000
RACE_SECONDS = 0.5
"""Thousands of openings."""
RACE_ANSWERS = 20
"""Of the service to each client."""
MOST_RACE_SECONDS = 30.0


@pytest.fixture(params=["openat2", "part by part"])
def door(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of opening; each test holds for either."""
    from siglip_pipeline.files import opening

    if request.param == "openat2":
        if not opening.has_openat2():
            pytest.skip("this kernel, or what it runs in, has no openat2")
    else:
        monkeypatch.setattr(opening, "has_openat2", lambda: False)
    return str(request.param)


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    (folder / "folder").mkdir(parents=True)
    (folder / "one.mp4").write_bytes(VIDEO)
    (folder / "folder" / "one.mp4").write_bytes(VIDEO)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "one.mp4").write_bytes(SECRET)
    return folder


Attack = Callable[[Path], tuple[Path, Path, str]]


def a_link_out(uploads: Path) -> tuple[Path, Path, str]:
    link = uploads / ".other"
    link.symlink_to(uploads.parent / "outside" / "one.mp4")
    return uploads / "one.mp4", link, "one.mp4"


def a_folder_that_is_a_link_out(uploads: Path) -> tuple[Path, Path, str]:
    link = uploads / ".other"
    link.symlink_to("../outside")
    return uploads / "folder", link, "folder/one.mp4"


def a_link_within_that_leads_out(uploads: Path) -> tuple[Path, Path, str]:
    """The exchanged name is in the middle of where an innocent link leads."""
    (uploads / "alias").symlink_to("folder")
    link = uploads / ".other"
    link.symlink_to(uploads.parent / "outside")
    return uploads / "folder", link, "alias/one.mp4"


ATTACKS = [a_link_out, a_folder_that_is_a_link_out, a_link_within_that_leads_out]


@pytest.mark.usefixtures("door")
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_outside_is_opened_while_names_are_exchanged(uploads: Path, attack: Attack) -> None:
    one, other, path = attack(uploads)
    store = UploadStore(uploads)
    seen: Counter[str] = Counter()
    with exchanging(one, other):
        least, most = (time.monotonic() + s for s in (RACE_SECONDS, MOST_RACE_SECONDS))
        while time.monotonic() < least or (
            min(seen["video"], seen["refused"]) <= 100 and time.monotonic() < most
        ):
            try:
                with store.open(path) as file:
                    seen["video" if file.read() == VIDEO else "SECRET"] += 1
                assert store.get(path).size_bytes == len(VIDEO)
            except UploadNotFoundError:
                seen["refused"] += 1
    assert not seen["SECRET"], seen
    assert min(seen["video"], seen["refused"]) > 100, seen


@pytest.fixture
def served(uploads: Path, database_url: str) -> Iterator[Served]:
    with Database(database_url) as database:
        for path in ("one.mp4", "folder/one.mp4", "alias/one.mp4"):
            VideoStore(database).record_failure(path, stage=Stage.FRAMES, reason="none yet")
    with serving(collection_settings(uploads.parent, database_url)) as running:
        yield running


def stream_url(served: Served, path: str) -> str:
    videos = served.client.get("/api/videos").json()["videos"]
    return next(f"/api/videos/{v['video_id']}/stream" for v in videos if v["video"] == path)


def ask_in_a_race(served: Served, url: str) -> Counter[tuple[int, bool]]:
    """By status and whether anything but the video came, from eight clients at once.

    They ask until both names have been met: a busy machine answers a few requests a second.
    """
    met: set[int] = set()

    def ask(_: int) -> Counter[tuple[int, bool]]:
        seen: Counter[tuple[int, bool]] = Counter()
        least, most = (time.monotonic() + s for s in (RACE_SECONDS, MOST_RACE_SECONDS))
        with httpx.Client(base_url=served.url, timeout=10, verify=False) as client:
            while (
                seen.total() < RACE_ANSWERS
                or time.monotonic() < least
                or (len(met) < 2 and time.monotonic() < most)
            ):
                answer = client.get(url, headers={"Range": f"bytes=0-{len(VIDEO) - 1}"})
                assert answer.status_code == 404 or "etag" in answer.headers
                met.add(answer.status_code)
                seen[answer.status_code, SECRET[:6] in answer.content] += 1
        return seen

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(ask, range(8)), Counter())


@pytest.mark.usefixtures("door")
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_stream_shows_nothing_outside(served: Served, uploads: Path, attack: Attack) -> None:
    one, other, path = attack(uploads)
    url = stream_url(served, path)
    with exchanging(one, other):
        seen = ask_in_a_race(served, url)
    assert {status for status, _ in seen} == {206, 404}, seen
    assert not any(secret for _, secret in seen), seen


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        folder = os.open(path.parent, os.O_RDONLY)
        try:  # a short name: a socket's path has room for 107 bytes
            unix.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


def a_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(5, 2))  # /dev/ptmx: opening it makes one
    except PermissionError:
        pytest.skip("only root makes devices")


def a_folder(path: Path) -> None:
    path.mkdir()


OTHERS = [a_pipe, a_socket, a_device, a_folder]


@pytest.mark.usefixtures("door")
@pytest.mark.parametrize("make", OTHERS)
@pytest.mark.parametrize("ask", ["get", "open", "sha256"])
def test_what_is_no_regular_file_is_refused_at_once(
    uploads: Path, make: Callable[[Path], None], ask: str
) -> None:
    make(uploads / "odd.mp4")
    outcome: list[object] = []

    def attempt() -> None:
        try:
            outcome.append(getattr(UploadStore(uploads), ask)("odd.mp4"))
        except UploadError as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert not thread.is_alive(), "it is held up"
    assert isinstance(outcome[0], UploadNotFoundError), outcome


@pytest.mark.usefixtures("door")
@pytest.mark.parametrize("make", OTHERS)
def test_what_takes_the_place_of_a_file_holds_no_thread(
    served: Served, uploads: Path, make: Callable[[Path], None]
) -> None:
    make(uploads / ".other")
    url = stream_url(served, "one.mp4")
    with exchanging(uploads / "one.mp4", uploads / ".other"):
        seen = ask_in_a_race(served, url)
    assert {status for status, _ in seen} == {206, 404}, seen
    assert served.client.get(url, timeout=10).status_code in (200, 404)


@pytest.mark.usefixtures("door")
def test_links_that_stay_inside_are_followed(uploads: Path) -> None:
    (uploads / "relative.mp4").symlink_to("folder/one.mp4")
    (uploads / "absolute.mp4").symlink_to(uploads / "folder" / "one.mp4")
    (uploads / "folder" / "up.mp4").symlink_to("../one.mp4")
    (uploads / "linked").symlink_to(uploads / "folder")
    (uploads.parent / "door").symlink_to(uploads)
    for root in (uploads, uploads.parent / "door"):
        store = UploadStore(root)
        for path in ("relative.mp4", "absolute.mp4", "folder/up.mp4", "linked/one.mp4"):
            upload, file = store.open_and_look(path)
            with file:
                assert upload == store.get(path)
                assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                assert file.read() == VIDEO


@pytest.mark.usefixtures("door")
def test_links_out_or_in_circles_are_not(uploads: Path) -> None:
    links = {
        "out.mp4": "../outside/one.mp4",
        "absolute.mp4": str(uploads.parent / "outside" / "one.mp4"),
        "circle.mp4": "circle.mp4",
        "process.mp4": "/proc/self/exe",
        "dangling.mp4": "nothing.mp4",
    }
    for name, target in links.items():
        (uploads / name).symlink_to(target)
        for ask in (UploadStore(uploads).get, UploadStore(uploads).open):
            with pytest.raises(UploadNotFoundError, match=name):
                ask(name)


@pytest.mark.usefixtures("door")
def test_no_descriptor_is_left_behind(uploads: Path) -> None:
    (uploads / "out.mp4").symlink_to("../outside/one.mp4")
    a_pipe(uploads / "pipe.mp4")
    store = UploadStore(uploads)

    def ask_for_all() -> int:
        for path in ("one.mp4", "folder/one.mp4", "out.mp4", "pipe.mp4", "gone/one.mp4", "folder"):
            for ask in (store.get, lambda name: store.open(name).close()):
                try:
                    ask(path)
                except UploadNotFoundError:
                    continue
        return len([*Path("/proc/self/fd").iterdir()])

    assert ask_for_all() == ask_for_all()
