"""Large pictures: threads and memory are bounded by their size, and long decodes are named."""

import dataclasses
import logging
from pathlib import Path

import pytest

from siglip_pipeline.video import extract
from siglip_pipeline.video.decoder_pass import Pass, PassCounts
from siglip_pipeline.video.frame_index import index_frames
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.video.ffmpeg_reference import ffmpeg, indexed
from siglip_pipeline_tests.video.rendering import render

pytestmark = pytest.mark.usefixtures("own_decoders")  # the peak of a child is of all its jobs


@pytest.fixture(scope="module")
def av1_4k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "4k.mp4"
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=3840x2160:r=25:d=0.8"),
        *("-c:v", "libsvtav1", "-preset", "12", "-crf", "55", "-pix_fmt", "yuv420p10le", path),
    )
    return path


def test_threads_of_4k_av1_hold_no_frames_of_their_own(av1_4k: Path, tmp_path: Path) -> None:
    peaks = []
    for threads in (1, 8):
        out = indexed(av1_4k, tmp_path, sampling="every:10", threads=threads)
        assert out.report.frames == out.report.planned_frames == 2
        peaks.append(out.report.peak_memory_bytes)
    assert peaks[1] < 1.25 * peaks[0]


def test_frames_are_freed_once_they_are_stored(av1_4k: Path, tmp_path: Path) -> None:
    peaks = {}
    for stride, frames in ((10, 2), (1, 20)):
        report = indexed(av1_4k, tmp_path, sampling=f"every:{stride}", threads=1).report
        assert report.frames == frames
        peaks[frames] = report.peak_memory_bytes
    frame_bytes = 3840 * 2160 * 3  # ten bits
    assert peaks[20] < peaks[2] + 6 * frame_bytes


@pytest.mark.parametrize(("width", "threads"), [(160, 8), (3840, 8), (7680, 2), (16384, 1)])
def test_threads_are_bounded_by_the_size(width: int, threads: int, tmp_path: Path) -> None:
    path = render(tmp_path / "wide.mkv", codec="mjpeg", pixel_format="yuvj420p", frames=1)
    source = MediaSource(path.name, path=path)
    scan = index_frames(source)
    scan = dataclasses.replace(scan, coded_width=width, coded_height=width * 9 // 16)
    decoding = Pass(source, scan, PassCounts(), 8, lambda packets: None)
    assert decoding.threads == threads


def test_a_long_decode_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "PROGRESS_LOG_SECONDS", 0.0)
    path = tmp_path / "long.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=640x480:r=25:d=12", "-preset", "ultrafast", path)
    with caplog.at_level(logging.INFO, logger=extract.__name__):
        indexed(path, tmp_path)
    assert any("long.mp4: decoding for" in record.getMessage() for record in caplog.records)
