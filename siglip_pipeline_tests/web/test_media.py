"""Pictures of frames and bytes of videos, as browsers and players ask for them."""

import io
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec
import httpx
import pytest
from PIL import Image

from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.s3 import s3_environment, s3_server
from siglip_pipeline_tests.web.conftest import Collection, sent, serving

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=["folder", "memory", "s3"])
def player(collection: Collection, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A client of a service over a folder, and of ones over storage that is not a folder."""
    with ExitStack() as stack:
        changes: dict[str, str] = {}
        if request.param != "folder":
            storage = stack.enter_context(bucket() if request.param == "s3" else memory())
            places = {
                "uploads": collection.settings.uploads,
                "frame_store": str(collection.settings.frame_store_url),
            }
            for name, folder in places.items():
                target = f"player-{name.replace('_', '-')}"
                storage.put(f"{folder}/", f"/{target}/", recursive=True)
                changes[name] = f"{request.param}://{target}"
        running = stack.enter_context(serving(collection.settings, **changes))
        yield running.client


@contextmanager
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    storage = fsspec.filesystem("memory")
    try:
        yield storage
    finally:
        for name in ("/player-uploads", "/player-frame-store"):
            storage.rm(name, recursive=True)


@contextmanager
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """A real S3 API on 127.0.0.1, which the environment names as it would name Amazon's."""
    kept = fsspec.get_filesystem_class("s3")
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(address).items():
            patch.setenv(name, value)
        kept.clear_instance_cache()
        storage = fsspec.filesystem("s3")
        for name in ("player-uploads", "player-frame-store"):
            storage.mkdir(name)
        try:
            yield storage
        finally:
            kept.clear_instance_cache()


@pytest.fixture(scope="module")
def film(collection: Collection) -> bytes:
    return (Path(collection.settings.uploads) / "one.mp4").read_bytes()


@pytest.fixture(scope="module")
def stream_url(collection: Collection) -> str:
    return f"/api/videos/{collection.ids()['one.mp4']}/stream"


def test_the_whole_file(player: httpx.Client, stream_url: str, film: bytes) -> None:
    answer = player.get(stream_url)
    assert answer.status_code == 200
    assert sent(answer) == film
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(("start", "end"), [(0, 1), (100, 70_000), (0, None), (None, 500)])
def test_a_part_of_the_file(
    player: httpx.Client, stream_url: str, film: bytes, start: int | None, end: int | None
) -> None:
    first = len(film) - (end or 0) if start is None else start
    last = len(film) if end is None or start is None else end
    header = f"bytes={'' if start is None else start}-"
    header += str(end if start is None else "" if end is None else end - 1)
    answer = player.get(stream_url, headers={"Range": header})
    assert answer.status_code == 206
    assert sent(answer) == film[first:last]
    assert answer.headers["content-range"] == f"bytes {first}-{last - 1}/{len(film)}"
    assert answer.headers["content-length"] == str(last - first)


def test_beyond_the_end(player: httpx.Client, stream_url: str, film: bytes) -> None:
    answer = player.get(stream_url, headers={"Range": f"bytes={len(film)}-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(film)}"
    assert answer.json()["error"]["type"] == "RangeNotSatisfiable"


def test_head_tells_the_size_alone(player: httpx.Client, stream_url: str, film: bytes) -> None:
    answer = player.head(stream_url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(film))


def test_an_unchanged_file_is_not_sent_again(player: httpx.Client, stream_url: str) -> None:
    tag = player.head(stream_url).headers["etag"]
    assert player.get(stream_url, headers={"If-None-Match": tag}).status_code == 304
    part = {"Range": "bytes=0-9"}
    assert player.get(stream_url, headers={**part, "If-Range": tag}).status_code == 206
    # Another file than the part before it: all of it, not a mixture of two.
    assert player.get(stream_url, headers={**part, "If-Range": '"other"'}).status_code == 200


def test_pictures_come_from_wherever_frames_are_stored(
    player: httpx.Client, client: httpx.Client
) -> None:
    """All that the page shows for a search, at the sizes that it asks for."""
    page = player.get("/?q=a+red+circle").text
    addresses = re.findall(r"/api/thumbnails/\d+/\d+\.jpg\?width=320", page)
    assert len(addresses) > 5
    for address in addresses[:6]:
        picture = player.get(address)
        assert sent(picture) == sent(client.get(address))
    full = addresses[0].partition("?")[0]
    assert sent(player.get(full)) == sent(client.get(full))


def test_names_of_every_kind_are_found_by_id(player: httpx.Client, collection: Collection) -> None:
    video_id = collection.ids()["more/two words.webm"]
    answer = player.get(f"/api/videos/{video_id}/stream")
    assert answer.headers["content-type"] == "video/webm"
    assert sent(answer) == (Path(collection.settings.uploads) / "more/two words.webm").read_bytes()


def test_an_upload_that_is_gone_is_not_found(
    collection: Collection, stream_url: str, tmp_path: Path
) -> None:
    with serving(collection.settings, uploads=str(tmp_path)) as running:
        answer = running.client.get(stream_url)
    assert answer.status_code == 404
    assert str(tmp_path) not in answer.text


def test_a_link_that_leads_out_of_the_uploads_is_not_followed(
    collection: Collection, stream_url: str, tmp_path: Path
) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (tmp_path / "secret.mp4").write_text("secret")
    (uploads / "one.mp4").symlink_to(tmp_path / "secret.mp4")
    with serving(collection.settings, uploads=str(uploads)) as running:
        assert running.client.get(stream_url).status_code == 404


def test_a_thumbnail_is_the_stored_picture(client: httpx.Client, collection: Collection) -> None:
    video_id = collection.ids()["one.mp4"]
    frames = client.get(f"/api/videos/{video_id}").json()["timeline"]
    store = FrameStore(collection.settings.frame_store_url)
    for frame in frames[::5]:
        answer = client.get(frame["thumbnail_url"])
        assert answer.headers["content-type"] == "image/jpeg"
        assert sent(answer) == store.thumbnail("one.mp4", frame["frame_index"])


def test_a_thumbnail_can_be_small(client: httpx.Client, collection: Collection) -> None:
    url = f"/api/thumbnails/{collection.ids()['one.mp4']}/0.jpg"
    with Image.open(io.BytesIO(sent(client.get(url)))) as stored:
        ratio = stored.height / stored.width
    with Image.open(io.BytesIO(sent(client.get(url, params={"width": 160})))) as small:
        assert small.size == (160, round(160 * ratio))
    assert client.get(url, params={"width": 161}).status_code == 422


def test_a_thumbnail_is_sent_once(client: httpx.Client, collection: Collection) -> None:
    url = f"/api/thumbnails/{collection.ids()['one.mp4']}/0.jpg"
    first = client.get(url)
    assert "max-age" in first.headers["cache-control"]
    again = client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    for other in (f"{url}?width=160", f"/api/thumbnails/{collection.ids()['old.avi']}/0.jpg"):
        answer = client.get(other, headers={"If-None-Match": first.headers["etag"]})
        assert answer.status_code == 200


def test_a_frame_that_is_not_stored(client: httpx.Client, collection: Collection) -> None:
    ids = collection.ids()
    assert client.get(f"/api/thumbnails/{ids['one.mp4']}/1.jpg").status_code == 404
    failed = client.get(f"/api/thumbnails/{ids['broken <b>.mp4']}/0.jpg")
    assert failed.status_code == 404
    assert "no stored frames" in failed.json()["error"]["message"]
