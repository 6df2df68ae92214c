"""Frames that are lost: counted, never stored as rubbish, replaced by a neighbour that is near."""

from pathlib import Path

import av
import numpy as np
import pytest

from siglip_pipeline.errors import VideoError
from siglip_pipeline_tests.video.ffmpeg_reference import (
    Indexed,
    difference,
    ffmpeg,
    indexed,
    shown,
)

SIZE = "160x128"


def intra(folder: Path) -> Path:
    """Two seconds of 25 frames that stand alone."""
    path = folder / "intra.mkv"
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=25:d=4", "-c:v", "mjpeg", "-q:v", "2", path)
    return path


def spoil(path: Path, ordinals: range, *, from_byte: int = 0) -> None:
    """Write zeros over packets."""
    raw = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for ordinal in ordinals:
        at = raw.index(packets[ordinal]) + from_byte
        raw[at : raw.index(packets[ordinal]) + len(packets[ordinal])] = bytes(
            len(packets[ordinal]) - from_byte
        )
    path.write_bytes(raw)


def assert_frames_of(out: Indexed, path: Path, numbers: list[int]) -> None:
    """The stored frames are those of the undamaged file, by their number, each at its own time."""
    assert out.seconds_N == pytest.approx(np.array(numbers) / 25)
    expected = shown(path, size=SIZE)
    for ours, number in zip(out.pictures, numbers, strict=True):
        near = [difference(ours, expected[n]) for n in range(number - 1, number + 2) if n >= 0]
        assert near[1 if number else 0] == min(near) < 3


@pytest.mark.parametrize(
    ("lost", "stored"),
    [
        (range(50, 51), [0, 25, 49, 75]),
        (range(49, 55), [0, 25, 48, 75]),
        (range(46, 54), [0, 25, 54, 75]),
        (range(30, 70), [0, 25, 75]),
        (range(3), [3, 25, 50, 75]),
        (range(75, 100), [0, 25, 50, 74]),
    ],
)
def test_a_lost_target_is_replaced_by_its_nearest_neighbour_within_half_the_interval(
    lost: range, stored: list[int], tmp_path: Path
) -> None:
    path = intra(tmp_path)
    whole = tmp_path / "whole.mkv"
    whole.write_bytes(path.read_bytes())
    spoil(path, lost)
    out = indexed(path, tmp_path, sampling="fps:1")
    assert_frames_of(out, whole, stored)
    assert out.report.planned_frames == 4
    assert any("cannot be decoded" in warning for warning in out.report.warnings)
    holes = 1 - len(stored) / 4
    said = [warning for warning in out.report.warnings if "not indexed" in warning]
    assert said == ([f"{holes:.0%} of the footage is not indexed"] if holes else [])


@pytest.mark.parametrize("sampling", ["every:1", "fps:5"])
@pytest.mark.parametrize("lost", [20, 45, 60])
def test_the_damaged_share_is_that_of_the_frames(lost: int, sampling: str, tmp_path: Path) -> None:
    path = intra(tmp_path)
    spoil(path, range(20, 20 + lost))
    if lost > 50:
        with pytest.raises(VideoError, match=r"only 4\d% of it can be decoded"):
            indexed(path, tmp_path, sampling=sampling)
        return
    report = indexed(path, tmp_path, sampling=sampling).report
    assert report.damaged_share == pytest.approx(lost / 100, abs=0.02)
    assert report.warnings[0] == f"{lost}% of it cannot be decoded"


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "mpeg4"])
def test_frames_that_the_decoder_conceals_are_damage(codec: str, tmp_path: Path) -> None:
    """The decoder fills what is missing from what it has, and marks the frame as corrupt."""
    path = tmp_path / "concealed.mkv"
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=25:d=4", "-c:v", codec, "-g", "10", path)
    whole = shown(path, size=SIZE)
    spoil(path, range(50, 60), from_byte=200)
    with av.open(str(path)) as container:
        marked = sum(frame.is_corrupt for frame in container.decode(video=0))
    assert marked >= 3
    # With frame threads libavcodec 62 may hand a frame out before it marks it.
    out = indexed(path, tmp_path, threads=1)
    assert out.report.damaged_share == pytest.approx(marked / 100, abs=0.03)
    numbers = np.rint(out.seconds_N * 25).astype(int)
    assert len(numbers) <= 100 - marked
    assert max(difference(p, whole[n]) for n, p in zip(numbers, out.pictures, strict=True)) < 8


@pytest.mark.parametrize("sampling", ["fps:1/60", "fps:1", "keyframes", "scenes", "every:1"])
def test_a_recording_that_is_joined_late_is_lost_in_part(sampling: str, tmp_path: Path) -> None:
    """Pictures are refreshed in columns: the first one is shown that is whole, without an error."""
    whole = tmp_path / "whole.mp4"
    refreshed = ("-c:v", "libx264", "-x264opts", "intra-refresh=1:keyint=25:bframes=0")
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=25:d=4", *refreshed, whole)
    path = tmp_path / "cut.mkv"
    ffmpeg("-ss", "1.3", "-i", whole, "-c", "copy", path)
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    lost = 1 - len(shown(path, size=SIZE)) / packets
    assert 0.05 < lost < 0.2
    report = indexed(path, tmp_path, sampling=sampling).report
    assert report.damaged_share == pytest.approx(lost)
    assert report.warnings[0] == f"{lost:.0%} of it cannot be decoded"
