"""What browsers cannot play, as MP4: parts and whole videos, made on demand and kept."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import pytest

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.clip_cache import ClipCache, ClipOptions, KeptClip, Span
from siglip_pipeline_tests.web.conftest import Collection, Served, sent, serving, wait_until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def avi(collection: Collection) -> str:
    return f"/api/videos/{collection.ids()['old.avi']}"


@pytest.fixture
def cache(collection: Collection, tmp_path: Path) -> Iterator[ClipCache]:
    uploads = UploadStore(collection.settings.uploads, settle_seconds=0)
    made = ClipCache(uploads, ClipOptions(folder=tmp_path / "clips", max_bytes=2**30))
    yield made
    made.close()


def _seconds_of(content: bytes) -> float:
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        assert (container.format.name.split(",")[0], stream.codec.name) == ("mov", "h264")
        assert stream.duration is not None
        assert stream.time_base is not None
        return float(stream.duration * stream.time_base)


def test_a_part_of_a_video_is_made_once_and_sent_in_ranges(
    client: httpx.Client, avi: str, collection: Collection
) -> None:
    address = f"{avi}/clip.mp4?from=3&to=6"
    made = client.get(address)
    assert made.status_code == 200, made.text
    assert made.headers["content-type"] == "video/mp4"
    assert 'filename="old 0.03.0-0.06.0.mp4"' in made.headers["content-disposition"]
    assert _seconds_of(sent(made)) == pytest.approx(3, abs=0.2)
    again = client.get(address, headers={"Range": "bytes=10-19"})
    assert (again.status_code, again.content) == (206, made.content[10:20])
    assert again.headers["etag"] == made.headers["etag"]
    clips = collection.settings.home / "clips"
    assert clips.stat().st_mode & 0o777 == 0o700


def test_the_whole_video_is_made_on_request(client: httpx.Client, avi: str) -> None:
    assert client.get(f"{avi}/playable").json()["state"] == "absent"
    assert client.get(f"{avi}/playable.mp4").status_code == 404
    begun = client.post(f"{avi}/playable").json()
    assert begun["state"] in ("making", "ready")
    wait_until(lambda: client.get(f"{avi}/playable").json()["state"] == "ready")
    state = client.get(f"{avi}/playable").json()
    assert state == {
        "state": "ready",
        "share": 1.0,
        "reason": None,
        "url": f"{avi}/playable.mp4",
    }
    assert _seconds_of(sent(client.get(state["url"]))) == pytest.approx(12, abs=0.2)


def test_what_ends_while_it_is_asked_for_is_not_said_to_be_absent(
    collection: Collection, avi: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(collection.settings, home=collection.settings.home / "asked") as running:
        clips = running.app._app.state.services.clips  # type: ignore[attr-defined]
        held = threading.Event()
        clips._wholes.submit(held.wait, 60)
        look = clips.open

        def look_and_let_it_end(upload: Upload, span: Span) -> KeptClip | None:
            found = look(upload, span)
            making = clips.making(upload, span)
            held.set()
            if making is not None:
                making.done.result(timeout=60)
            return found  # type: ignore[no-any-return]

        assert running.client.post(f"{avi}/playable").json()["state"] == "making"
        monkeypatch.setattr(clips, "open", look_and_let_it_end)
        assert running.client.get(f"{avi}/playable").json()["state"] in ("making", "ready")
        held.set()


@pytest.mark.parametrize(
    "times",
    ["from=3&to=3", "from=6&to=3", "from=0&to=121", "from=-1&to=3", "from=nan&to=3", "to=3"],
)
def test_times_that_make_no_clip(client: httpx.Client, avi: str, times: str) -> None:
    assert client.get(f"{avi}/clip.mp4?{times}").status_code == 422


def test_a_clip_after_the_end_is_said_to_be_after_the_end(client: httpx.Client, avi: str) -> None:
    """Its limit of time was that of a length below zero: "it took longer than -8160 s"."""
    refused = client.get(f"{avi}/clip.mp4?from=300&to=302")
    assert refused.status_code == 422
    assert refused.json()["error"]["message"] == "from=300 is after the end of the video, 12 s"


def test_what_cannot_be_decoded_says_why(client: httpx.Client, collection: Collection) -> None:
    broken = f"/api/videos/{collection.ids()['broken <b>.mp4']}"
    clip = client.get(f"{broken}/clip.mp4?from=0&to=5")
    assert clip.status_code == 422
    assert "text, not a video" in clip.json()["error"]["message"]
    client.post(f"{broken}/playable")
    wait_until(lambda: client.get(f"{broken}/playable").json()["state"] == "failed")
    assert "text, not a video" in client.get(f"{broken}/playable").json()["reason"]


def test_a_clip_of_an_upload_that_is_gone(collection: Collection, avi: str, tmp_path: Path) -> None:
    with serving(collection.settings, uploads=str(tmp_path)) as running:
        answer = running.client.get(f"{avi}/clip.mp4?from=1&to=3")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "UploadNotFoundError"


def test_least_recently_watched_clips_go_first(collection: Collection, cache: ClipCache) -> None:
    upload = UploadStore(collection.settings.uploads, settle_seconds=0).get("old.avi")
    spans = [Span(start_seconds=start, end_seconds=start + 1.0) for start in range(4)]

    def make(cache: ClipCache, span: Span) -> None:
        making = cache.make(upload, span, duration_seconds=12.0)
        assert making is not None
        making.done.result(timeout=60)

    for span in spans[:3]:
        make(cache, span)
    watched = cache.open(upload, spans[0])
    assert watched is not None
    watched.file.close()
    folder = cache._options.folder
    total = sum(path.stat().st_size for path in folder.iterdir())
    uploads = UploadStore(collection.settings.uploads, settle_seconds=0)
    small = ClipCache(uploads, ClipOptions(folder=folder, max_bytes=total))
    make(small, spans[3])
    small.close()
    kept = [small.open(upload, span) is not None for span in spans]
    assert kept[0]
    assert kept[3]
    assert not all(kept)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= total


def test_no_clip_is_larger_than_the_cache(collection: Collection, tmp_path: Path) -> None:
    uploads = UploadStore(collection.settings.uploads, settle_seconds=0)
    tiny = ClipCache(uploads, ClipOptions(folder=tmp_path / "clips", max_bytes=1000))
    making = tiny.make(uploads.get("old.avi"), Span(), duration_seconds=12.0)
    assert making is not None
    with pytest.raises(VideoError):
        making.done.result(timeout=60)
    assert list((tmp_path / "clips").iterdir()) == []
    tiny.close()


def test_a_full_queue_is_refused_and_searches_go_on(collection: Collection, avi: str) -> None:
    with serving(collection.settings, home=collection.settings.home / "busy") as running:
        busy(running, avi)


def busy(running: Served, avi: str) -> None:
    upload = running.app._app.state.services.uploads.get("old.avi")  # type: ignore[attr-defined]
    clips = running.app._app.state.services.clips  # type: ignore[attr-defined]
    looked = threading.Event()
    clips._parts.submit(looked.wait, 60)  # or the first clip may be done before the queue is full
    try:
        for start in range(9):
            span = Span(start_seconds=float(start), end_seconds=start + 1.5)
            assert clips.make(upload, span, duration_seconds=12.0) is not None
        refused = running.client.get(f"{avi}/clip.mp4?from=0&to=9")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert running.client.get("/api/search", params={"q": "a star"}).status_code == 200
    finally:
        looked.set()


@pytest.mark.parametrize(
    ("name", "saved"),
    [("more/two words.webm", 'filename="two words.webm"'), ("one.mp4", 'filename="one.mp4"')],
)
def test_a_file_is_saved_under_its_own_name(
    client: httpx.Client, collection: Collection, name: str, saved: str
) -> None:
    answer = client.head(f"/api/videos/{collection.ids()[name]}/stream")
    assert saved in answer.headers["content-disposition"]


def test_frames_of_a_part_of_a_video(client: httpx.Client, collection: Collection) -> None:
    address = f"/api/videos/{collection.ids()['one.mp4']}/frames"
    whole = client.get(address).json()
    assert whole["total"] == len(whole["frames"]) == 12
    part = client.get(address, params={"from": 3, "to": 7}).json()
    assert [frame["time_seconds"] for frame in part["frames"]] == [3, 4, 5, 6]
    thinned = client.get(address, params={"from": 1, "limit": 3}).json()
    assert [frame["time_seconds"] for frame in thinned["frames"]] == [1, 6, 11]
    assert thinned["total"] == 11
    one = client.get(address, params={"limit": 1}).json()
    assert [frame["time_seconds"] for frame in one["frames"]] == [0]
    assert client.get(address, params={"from": 7, "to": 3}).status_code == 422
    assert client.get("/api/videos/999999/frames").status_code == 404
    failed = client.get(f"/api/videos/{collection.ids()['broken <b>.mp4']}/frames").json()
    assert failed == {"frames": [], "total": 0, "next": None}
