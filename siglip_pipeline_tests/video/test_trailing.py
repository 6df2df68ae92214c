"""What follows the end of a film in its file is named, whatever the container."""

from pathlib import Path

import numpy as np
import pytest

from siglip_pipeline.video.scan import scan
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.video.ffmpeg_reference import ffmpeg

CONTAINERS = {
    "mov": "libx264",
    "avi": "mpeg4",
    "mkv": "libx264",
    "webm": "libvpx",
    "ts": "libx264",
    "m2ts": "libx264",
    "mpg": "mpeg2video",
    "flv": "flv",
    "ogg": "libtheora",
    "wmv": "wmv2",
    "mxf": "mpeg2video",
}


def make(path: Path, codec: str) -> bytes:
    options = ["-pix_fmt", "yuv420p", "-b:v", "400k", "-g", "8"]
    sound = ["-f", "lavfi", "-i", "sine=d=1", "-shortest"] if path.suffix != ".mxf" else []
    film = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.8"]
    ffmpeg(*film, *sound, "-c:v", codec, *options, path)
    return path.read_bytes()


def warnings(path: Path) -> list[str]:
    return [w for w in scan(MediaSource(path.name, path=path)).warnings if "after the end" in w]


@pytest.mark.parametrize("container", CONTAINERS)
def test_bytes_after_the_film(container: str, tmp_path: Path) -> None:
    path = tmp_path / f"film.{container}"
    film = make(path, CONTAINERS[container])
    assert warnings(path) == []
    for rubbish in (
        np.random.default_rng(1).bytes(3001),
        b"PK\3\4" + bytes(3001),
        b"# notes " * 400,
    ):
        path.write_bytes(film + rubbish)
        (warning,) = warnings(path)
        assert warning == f"{len(rubbish):,} bytes after the end of the film are left out"
    ends = (film + bytes(3000), film[:-7], film[: -len(film) // 3])
    for whole in ends[:1] if container == "mov" else ends:  # its index is at the end
        path.write_bytes(whole)
        assert warnings(path) == []


@pytest.mark.parametrize("container", ["mov", "wmv"])
def test_another_film_that_is_not_shown(container: str, tmp_path: Path) -> None:
    path = tmp_path / f"film.{container}"
    film = make(path, CONTAINERS[container])
    path.write_bytes(film * 2)
    (warning,) = warnings(path)
    assert warning == (
        f"{len(film):,} bytes after the end of the film, which begin another film, are left out"
    )


@pytest.mark.parametrize("container", ["avi", "mkv", "ts", "mpg", "ogg"])
def test_another_film_that_is_shown_is_not_left_out(container: str, tmp_path: Path) -> None:
    path = tmp_path / f"film.{container}"
    film = make(path, CONTAINERS[container])
    source = MediaSource(path.name, path=path)
    frames = scan(source).packets.pts_N.size
    path.write_bytes(film * 2)
    assert warnings(path) == []
    assert scan(source).packets.pts_N.size >= 1.5 * frames


def test_zero_bytes_between_the_packs_of_a_video_cd(tmp_path: Path) -> None:
    path = tmp_path / "film.mpg"
    film = ("-f", "lavfi", "-i", "testsrc2=s=352x288:r=25:d=2")
    ffmpeg(*film, "-f", "lavfi", "-i", "sine=d=4", "-target", "pal-vcd", path)
    assert b"\0" * 20 + b"\0\0\1" in path.read_bytes()
    assert warnings(path) == []
    path.write_bytes(path.read_bytes() + b"# notes " * 400)
    assert len(warnings(path)) == 1
