"""The inputs of public bug reports (data/reports) have their right answers, all of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from siglip_pipeline.errors import VideoError
from siglip_pipeline_tests.video.ffmpeg_reference import REPORTS, indexed_many

RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 220, 40)
WHITE = (255, 255, 255)
QUARTERS = (RED, GREEN, BLUE, YELLOW)
"""At the corners: top left, top right, bottom left, bottom right."""
JOINED = "timestamps begin again 1 time"


@dataclass(frozen=True, kw_only=True)
class Right:
    """What is right for a file."""

    frames: int
    seconds: float
    """Of the last frame."""
    sizes: tuple[tuple[int, int], ...]
    corners: tuple[tuple[int, int, int], ...] | None = QUARTERS
    media_seconds: float = 0.0
    """What a player shows at the first frame."""
    warning: str | None = None


STILL = Right(frames=1, seconds=0.0, sizes=((512, 512),))
MJPEG = Right(frames=30, seconds=2.9, sizes=((160, 120),))
FILM = Right(frames=100, seconds=3.96, sizes=((640, 360),))
TWO = Right(frames=200, seconds=7.96, sizes=((320, 240),), warning=JOINED)
ANSWERS = {
    "avif-exif-major-brand-mif1.avif": Right(
        frames=1, seconds=0.0, sizes=((240, 320),), corners=(BLUE, RED, YELLOW, GREEN)
    ),
    "dolby-vision-profile-5.mp4": Right(
        frames=30, seconds=1.16, sizes=((160, 128),), corners=None, warning="Dolby Vision"
    ),
    "h264-interlaced-moving-bar.mp4": Right(
        frames=50, seconds=1.96, sizes=((320, 240),), corners=None
    ),
    "h264-paff-2997-a-pes-per-field.mts": Right(frames=240, seconds=7.975, sizes=((128, 64),)),
    "h264-ycgco.mp4": Right(frames=25, seconds=0.96, sizes=((160, 120),)),
    "heic-grid-of-4-tiles.heic": STILL,
    "heic-grid-with-exif.heic": STILL,
    "mjpeg-frames-with-exif.avi": MJPEG,
    "mjpeg-frames-with-exif.mov": MJPEG,
    "mkv-cover-as-first-video-track.mkv": Right(
        frames=100, seconds=3.96, sizes=((640, 360),), media_seconds=0.08
    ),
    "mp4-cover-as-second-video-track.mp4": FILM,
    "mp4-video-begins-2s-after-sound.mp4": Right(
        frames=100, seconds=3.96, sizes=((640, 360),), media_seconds=2.0
    ),
    "mpeg2-aspect-4x3-then-16x9.ts": Right(
        frames=150, seconds=7.32, sizes=((384, 288), (512, 288))
    ),
    "png-rgba-display-p3.png": Right(
        frames=1,
        seconds=0.0,
        sizes=((320, 240),),
        corners=((240, 0, 1), (1, 204, 0), (31, 30, 228), (233, 220, 1)),
    ),
    "qtrle-alpha-top-half-transparent.mov": Right(
        frames=25, seconds=0.96, sizes=((160, 120),), corners=(WHITE, WHITE, BLUE, YELLOW)
    ),
    "tiff.tif": Right(frames=1, seconds=0.0, sizes=((320, 240),)),
    "ts-one-frame-without-pts-and-a-gap.ts": Right(frames=200, seconds=67.96, sizes=((160, 128),)),
    "ts-second-part-overlaps-half-a-frame.ts": TWO,
    "ts-two-recordings-same-timestamps.ts": TWO,
    "vob-timestamps-begin-anew.vob": TWO,
}


def test_all_inputs_have_their_right_answers(tmp_path: Path) -> None:
    found = indexed_many([REPORTS / name for name in ANSWERS], tmp_path)
    assert found.keys() == {path.name for path in REPORTS.iterdir()}
    for name, right in ANSWERS.items():
        out = found[name]
        assert not isinstance(out, VideoError), out
        assert len(out.pictures) == right.frames, name
        assert out.seconds_N[-1] == pytest.approx(right.seconds, abs=0.01), name
        sizes = dict.fromkeys((picture.shape[1], picture.shape[0]) for picture in out.pictures)
        assert (*sizes,) == right.sizes, name
        assert out.report.info.media_time_seconds == pytest.approx(right.media_seconds), name
        warnings = " ".join(out.report.warnings)
        assert right.warning in warnings if right.warning else not warnings, name
        if right.corners is not None:
            first = out.pictures[0].astype(int)
            corners = np.array([first[y, x] for y in (6, -6) for x in (6, -6)])
            assert np.abs(corners - right.corners).max() <= 4, name
