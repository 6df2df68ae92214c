"""Files of kinds that people report trouble with, held to what the ffmpeg program shows of them."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.extract import DecodeOptions, FrameReport, extract_frames
from siglip_pipeline.video.frame_store import FrameStore

REPORTS = Path(__file__).parent.parent / "data" / "reports"

if shutil.which("ffmpeg") is None and "CI" not in os.environ:
    pytest.skip("needs the ffmpeg program (apt-get install ffmpeg)", allow_module_level=True)


@dataclass(frozen=True)
class Indexed:
    """What the pipeline stores of a video, decoded in the sandboxed child."""

    report: FrameReport
    seconds_N: NDArray[np.float64]
    pictures: list[NDArray[np.uint8]]


def indexed(path: Path, folder: Path, *, sampling: str = "every:1") -> Indexed:
    """Extract a video as the pipeline does."""
    (folder / "uploads").mkdir(exist_ok=True)
    shutil.copyfile(path, folder / "uploads" / path.name)
    uploads = UploadStore(folder / "uploads", settle_seconds=0)
    frames = FrameStore(folder / "frames")
    options = DecodeOptions(stall_seconds=60, jpeg_quality=95)
    upload = uploads.get(path.name)
    report = extract_frames(upload, uploads, frames, sampling=sampling, options=options)
    batches = list(frames.read(path.name))
    jpegs = [jpeg for batch in batches for jpeg in batch.jpegs]
    return Indexed(
        report,
        np.concatenate([batch.time_seconds_N for batch in batches]),
        [picture(jpeg) for jpeg in jpegs],
    )


def picture(jpeg: bytes) -> NDArray[np.uint8]:
    from io import BytesIO

    return np.asarray(Image.open(BytesIO(jpeg)))


def ffmpeg(*arguments: str | Path) -> None:
    """Run the ffmpeg program; it must succeed."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


def test_optional_metadata_is_never_fatal(tmp_path: Path) -> None:
    out = indexed(REPORTS / "mjpeg-frames-with-exif.avi", tmp_path)
    assert out.seconds_N == pytest.approx(np.arange(30) / 10)
    assert out.report.warnings == ()


@pytest.mark.parametrize(
    "name", ["mkv-cover-as-first-video-track.mkv", "mp4-cover-as-second-video-track.mp4"]
)
def test_a_cover_in_a_track_of_its_own_is_not_the_film(name: str, tmp_path: Path) -> None:
    out = indexed(REPORTS / name, tmp_path)
    assert (out.report.info.width, out.report.info.height) == (640, 360)
    assert out.seconds_N == pytest.approx(np.arange(100) / 25)
    assert out.report.warnings == ()


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_films_the_default_one_is_indexed_and_the_others_are_named(
    default: int, tmp_path: Path
) -> None:
    path = tmp_path / "dashcam.mkv"
    dispositions = [f"-disposition:v:{n}" for n in (0, 1)]
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=160x120:r=10:d=2"),
        *("-f", "lavfi", "-i", "testsrc2=s=320x240:r=10:d=2"),
        *("-map", "0", "-map", "1", "-c:v", "mpeg4"),
        *(dispositions[default], "default", dispositions[1 - default], "0", path),
    )
    out = indexed(path, tmp_path)
    assert out.report.info.width == (160, 320)[default]
    other = ("track 2 (mpeg4 320x240)", "track 1 (mpeg4 160x120)")[default]
    assert out.report.warnings == (f"a second video track is left out: {other}",)


def test_the_players_second_of_the_first_frame_is_known(tmp_path: Path) -> None:
    out = indexed(REPORTS / "mp4-video-begins-2s-after-sound.mp4", tmp_path)
    assert out.report.info.media_time_seconds == pytest.approx(2.0)
    assert out.seconds_N == pytest.approx(np.arange(100) / 25)
