"""Clips have the sound of their section, in step with the frames, as ffmpeg finds them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.clips import cut_clip
from siglip_pipeline.video.cut_report import CutReport
from siglip_pipeline_tests.video import ffmpeg_reference  # noqa: F401  skips without ffmpeg

TONE = "aevalsrc=0.5*sin(2*PI*440*t)*between(t\\,5\\,5.5):d=10"
"""Ten seconds of silence but for a tone from 5 to 5.5 s."""
FILM = ("-f", "lavfi", "-i", "testsrc=d=10:s=64x48:r=25")
RATE = 48_000

FILES = {
    "a.mp4": ("libx264", "aac"),
    "b.avi": ("mpeg4", "libmp3lame"),
    "c.mkv": ("libx265", "libopus"),
    "d.mpg": ("mpeg2video", "mp2"),
    "e.mov": ("libx264", "pcm_s16le"),
    "f.ts": ("mpeg2video", "ac3"),
}


def made(path: Path, *arguments: str) -> Path:
    command = ["ffmpeg", "-v", "error", "-nostdin", *FILM, *arguments, str(path)]
    subprocess.run(command, check=True, timeout=60, stderr=subprocess.DEVNULL)
    return path


def with_tone(path: Path, *codecs: str) -> Path:
    picture, sound = codecs
    return made(path, "-f", "lavfi", "-i", TONE, "-c:v", picture, "-c:a", sound)


def clip_of(path: Path, begin: float, end: float) -> tuple[CutReport, Path]:
    clip = path.with_name("clip.mp4")
    return cut_clip(UploadStore(path.parent, settle_seconds=0), path.name, begin, end, clip), clip


def streams_of(path: Path) -> dict[str, dict[str, Any]]:
    """What ffprobe says of each stream."""
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True)
    return {stream["codec_type"]: stream for stream in json.loads(done.stdout)["streams"]}


def tones(path: Path) -> list[tuple[float, float]]:
    """Begin and end of what can be heard, as ffmpeg decodes it from the time zero on."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vn", "-ac", "1", "-ar", str(RATE)]
    command += ["-af", "aresample=async=1:first_pts=0", "-f", "f32le", "-"]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True)
    samples = np.abs(np.frombuffer(done.stdout, np.float32))
    loud = np.flatnonzero(samples > 0.1)
    if not loud.size:
        return []
    pauses = np.flatnonzero(np.diff(loud) > RATE / 50)
    begins = loud[np.append(0, pauses + 1)]
    ends = loud[np.append(pauses, loud.size - 1)]
    return [(float(a) / RATE, float(b) / RATE) for a, b in zip(begins, ends, strict=True)]


@pytest.mark.parametrize("name", FILES)
def test_a_clip_has_the_sound_of_its_moment(tmp_path: Path, name: str) -> None:
    report, clip = clip_of(with_tone(tmp_path / name, *FILES[name]), 3.0, 7.0)
    assert report == CutReport(frames=100, silent_because=None)
    streams = streams_of(clip)
    assert (streams["video"]["codec_name"], streams["audio"]["codec_name"]) == ("h264", "aac")
    for stream in streams.values():
        assert float(stream["start_time"]) == pytest.approx(0, abs=0.001)
        assert float(stream["duration"]) == pytest.approx(4, abs=0.05)
    # Encoders of sound begin up to 25 ms late in files that do not say so, such as AVI.
    assert tones(clip) == [pytest.approx((2.0, 2.5), abs=0.03)]


def test_sound_that_begins_late_or_pauses_stays_in_step(tmp_path: Path) -> None:
    late = made(tmp_path / "late.mp4", "-itsoffset", "4", "-f", "lavfi", "-i", TONE, "-shortest")
    assert tones(clip_of(late, 3.0, 10.0)[1]) == [pytest.approx((6.0, 6.5), abs=0.03)]
    pausing = "[1]aselect=not(between(t\\,3.5\\,4.5))[a]"
    paused = made(
        *(tmp_path / "paused.mkv", "-f", "lavfi", "-i", TONE, "-filter_complex", pausing),
        *("-map", "0", "-map", "[a]"),
    )
    assert tones(clip_of(paused, 3.0, 7.0)[1]) == [pytest.approx((2.0, 2.5), abs=0.03)]


def test_sound_follows_a_clock_that_restarts(tmp_path: Path) -> None:
    once = with_tone(tmp_path / "once.ts", "mpeg2video", "mp2")
    (tmp_path / "twice.ts").write_bytes(2 * once.read_bytes())
    _, clip = clip_of(tmp_path / "twice.ts", 13.0, 17.0)
    assert tones(clip) == [pytest.approx((2.0, 2.5), abs=0.05)]


def test_sound_that_cannot_be_decoded_is_left_out_and_said(tmp_path: Path) -> None:
    path = with_tone(tmp_path / "damaged.mp4", "libx264", "aac")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.audio[0]):
            if packet.pos is not None:
                content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(content)
    report, clip = clip_of(path, 3.0, 7.0)
    assert report == CutReport(frames=100, silent_because="its sound (aac) cannot be decoded")
    assert list(streams_of(clip)) == ["video"]


def test_sound_that_ends_just_before_the_moment_is_not_called_unreadable(tmp_path: Path) -> None:
    sound = ("-f", "lavfi", "-t", "4", "-i", TONE, "-c:v", "libx264", "-c:a", "aac")
    report, _ = clip_of(made(tmp_path / "short.mp4", *sound), 5.0, 7.0)
    assert report.silent_because is None


def test_a_codec_that_nobody_knows_is_left_out_and_said(tmp_path: Path) -> None:
    path = with_tone(tmp_path / "unknown.mkv", "libx264", "libopus")
    path.write_bytes(path.read_bytes().replace(b"A_OPUS", b"A_ZZZZ"))
    report, _ = clip_of(path, 3.0, 7.0)
    assert report.silent_because == "its sound (an unknown codec) cannot be decoded"


def test_a_film_without_sound_needs_no_word(tmp_path: Path) -> None:
    report, clip = clip_of(made(tmp_path / "silent.mp4"), 3.0, 7.0)
    assert report == CutReport(frames=100, silent_because=None)
    assert list(streams_of(clip)) == ["video"]
