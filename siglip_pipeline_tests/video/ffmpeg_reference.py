"""What the ffmpeg program shows of a file, and what the pipeline stores of it."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from siglip_pipeline.errors import VideoError
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.extract import DecodeOptions, FrameReport, extract_many
from siglip_pipeline.video.frame_store import FrameStore

REPORTS = Path(__file__).parent.parent / "data" / "reports"

if shutil.which("ffmpeg") is None and "CI" not in os.environ:
    pytest.skip("needs the ffmpeg program (apt-get install ffmpeg)", allow_module_level=True)


EXACTLY = ("-threads", "1")
"""How the ffmpeg program is to decode: with more threads, 7 of 100 short films of Theora come out
wrong beside other work (FFmpeg 5.1)."""


@dataclass(frozen=True)
class Indexed:
    """What the pipeline stores of a video, decoded in the sandboxed child."""

    report: FrameReport
    seconds_N: NDArray[np.float64]
    pictures: list[NDArray[np.uint8]]


def indexed(path: Path, folder: Path, *, sampling: str = "every:1", threads: int = 0) -> Indexed:
    """Extract a video as the pipeline does.

    Raises:
        VideoError: it cannot be decoded.
    """
    (out,) = indexed_many([path], folder, sampling=sampling, threads=threads).values()
    if isinstance(out, VideoError):
        raise out
    return out


def indexed_many(
    paths: Sequence[Path], folder: Path, *, sampling: str = "every:1", threads: int = 0
) -> dict[str, Indexed | VideoError]:
    """Extract videos in one child, one after the other; the outcomes by their names."""
    (folder / "uploads").mkdir(exist_ok=True)
    for path in paths:
        shutil.copyfile(path, folder / "uploads" / path.name)
    uploads = UploadStore(folder / "uploads", settle_seconds=0)
    frames = FrameStore(folder / "frames")
    options = DecodeOptions(stall_seconds=60, jpeg_quality=95, threads=threads)
    batch = [uploads.get(path.name) for path in paths]
    outcomes: dict[str, Indexed | VideoError] = {}
    for upload, report in extract_many(
        batch, uploads, frames, sampling=sampling, options=options, workers=1
    ):
        if isinstance(report, VideoError):
            outcomes[upload.path] = report
            continue
        batches = list(frames.read(upload.path))
        outcomes[upload.path] = Indexed(
            report,
            np.concatenate([batch.time_seconds_N for batch in batches]),
            [picture(jpeg) for batch in batches for jpeg in batch.jpegs],
        )
    return outcomes


def picture(jpeg: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(jpeg)))


def ffmpeg(*arguments: str | Path) -> None:
    """Run the ffmpeg program; it must succeed."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


def shown(path: Path, *options: str, filters: str = "null", size: str) -> NDArray[np.uint8]:
    """All frames [N, H, W, C] that the ffmpeg program shows of a file."""
    arguments = [
        *EXACTLY,
        "-i",
        path,
        "-map",
        "0:v:0",
        "-vf",
        filters,
        "-fps_mode",
        "passthrough",
        *options,
    ]
    raw = subprocess.run(
        ["ffmpeg", "-v", "quiet", *map(str, arguments), "-pix_fmt", "rgb24", "-f", "rawvideo", "-"],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    width, height = map(int, size.split("x"))
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Mean absolute difference of two pictures, 0 to 255, by means of blocks of eight by eight:
    JPEG and the interpolation of colours differ in single pixels.
    """
    assert first.shape == second.shape
    return float(np.abs(_block_sums(first) - _block_sums(second)).mean()) / 64


def _block_sums(picture: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Of whole blocks; by slices, as numpy's own mean over two axes takes eight times as long."""
    height, width = (side // 8 for side in picture.shape[:2])
    rows = np.zeros((height, width * 8, 3), np.int32)
    sums = np.zeros((height, width, 3), np.int32)
    for n in range(8):
        rows += picture[n : height * 8 : 8, : width * 8]
    for n in range(8):
        sums += rows[:, n::8]
    return sums
