"""A picture of every listed format finds its scene; errors name the kind of other files."""

import io
import random
from pathlib import Path

import httpx
import pytest
from PIL import Image

from siglip_pipeline.errors import QueryError
from siglip_pipeline.search import SearchOptions, SearchService
from siglip_pipeline.store.database import Database
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline.video.picture_formats import FORMATS
from siglip_pipeline_tests.web.conftest import Collection

pytestmark = pytest.mark.timeout(600)

LISTED = "JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC, AVIF or JPEG 2000"
WRITTEN = sorted({*FORMATS} - {"HEIF"})
"""By Pillow. video/test_still_conformance.py searches by HEIC files."""
HTML = {"Accept": "text/html"}


def encoded(picture: Path, format: str) -> bytes:
    with Image.open(picture) as opened:
        rgb = opened.convert("RGB")
    buffer = io.BytesIO()
    rgb.save(buffer, format)
    return buffer.getvalue()


def box(brand: bytes, *others: bytes) -> bytes:
    """The beginning of an ISO media file."""
    rest = b"ftyp" + brand + bytes(4) + b"".join(others)
    return (4 + len(rest)).to_bytes(4, "big") + rest + bytes(2000)


OTHER_FILES: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", f"is empty: give a picture as {LISTED}"),
    "burst.heics": (box(b"hevc", b"msf1", b"hevc"), "a video or sound"),
    "logo.svg": (
        b'<?xml version="1.0"?>\n<svg xmlns="x"/>',
        "an SVG drawing, which is not read: exp",
    ),
    "notes.txt": (
        "Grüße, ein Text\n".encode() * 200,
        "is text, not a picture: search for its words",
    ),
    "film.mp4": (box(b"isom", b"mp41"), "a video or sound, not a picture: give one frame"),
    "film.mkv": (b"\x1aE\xdf\xa3" + bytes(100), "a video or sound"),
    "film.avi": (b"RIFF\0\0\0\0AVI LIST" + bytes(100), "a video or sound"),
    "film.ts": ((b"G" + bytes(187)) * 4, "a video or sound"),
    "paper.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF document, not a picture: export the page"),
    "noise": (
        random.Random(1).randbytes(5000),
        f"not a picture of a known format: give one as {LISTED}",
    ),
}


def test_each_listed_format_finds_the_scene_that_it_shows(
    client: httpx.Client, collection: Collection, picture: Path, tmp_path: Path
) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    with Database(collection.settings.database_url or "") as database:
        service = SearchService(database, SearchOptions.from_settings(collection.settings))
        for format in (*WRITTEN, "MPO"):  # MPO: JPEGs in a row, as some cameras write them
            data = encoded(picture, format)
            answer = client.post("/api/search", content=data, headers=headers, params={"k": 1})
            assert answer.status_code == 200, (format, answer.text)
            page = client.post(
                "/", files={"image": ("x", data)}, headers=HTML, follow_redirects=True
            )
            assert page.status_code == 200, (format, page.text)
            file = tmp_path / format
            file.write_bytes(data)
            found = [
                (hit["video"], hit["time_seconds"])
                for hit in (
                    answer.json()["hits"][0],
                    to_json(service.by_image(data, k=1).hits[0]),
                    to_json(service.by_image(file, k=1).hits[0]),
                )
            ]
            assert {video for video, _ in found} == {"more/two words.webm"}, format
            assert all(4 <= seconds < 6 for _, seconds in found), (format, found)


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_told_what_they_are(
    client: httpx.Client, collection: Collection, name: str, tmp_path: Path
) -> None:
    data, told = OTHER_FILES[name]
    answer = client.post("/api/search", files={"image": (name, data)})
    assert answer.status_code == 415
    assert told in answer.json()["error"]["message"]
    page = client.post("/", files={"image": (name, data)}, headers=HTML)
    assert page.status_code == 415
    (tmp_path / name).write_bytes(data)
    with Database(collection.settings.database_url or "") as database:
        service = SearchService(database, SearchOptions.from_settings(collection.settings))
        for image in (data, tmp_path / name):
            with pytest.raises(QueryError) as raised:
                service.by_image(image)
            assert told in str(raised.value)


@pytest.mark.parametrize("format", WRITTEN)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_off_picture_is_told_to_be_one(
    client: httpx.Client, picture: Path, format: str, share: float
) -> None:
    data = encoded(picture, format)
    answer = client.post(
        "/api/search",
        content=data[: int(share * len(data))],
        headers={"Content-Type": f"image/{format.lower()}"},
    )
    assert answer.status_code == 415
    assert f"is a damaged or cut off {format} picture" in answer.json()["error"]["message"]
    assert "BytesIO" not in answer.text
