"""Index pictures as uploads: a still is a video of one frame, an animation a short video.

Pillow and libheif read them instead of FFmpeg, because they handle orientation, colour profiles,
tiles and the composition of animations, and because FFmpeg does not decode animated WebP.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from av.error import FFmpegError
from PIL import UnidentifiedImageError

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import IntArray, RgbArray, VideoInfo
from siglip_pipeline.video.cut_off import MIN_SHARE, padded, reading_truncated, rows_read
from siglip_pipeline.video.ffmpeg_picture import UnknownKindError
from siglip_pipeline.video.picture_file import PictureFile, open_picture
from siglip_pipeline.video.picture_formats import HEAD_BYTES, format_of
from siglip_pipeline.video.scan import check_dimensions
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.still_pixels import upright_rgb, upright_size

TIME_BASE: Final = Fraction(1, 1000)
STILL_MS: Final = 40
"""Duration of a still: one frame at FFmpeg's 25 frames per second."""
SHORTEST_MS: Final = 20
UNSAID_MS: Final = 100
"""Duration of frames that declare less than 20 ms, as in browsers."""

MOST_SHARE: Final = 0.99
"""Share of a truncated picture, at most, that is told to be read."""

MAX_ANIMATION_PIXELS: Final = 100 * 10**9
"""Total pixels of an animation's pictures: about half a day of full HD at two per second. Each
picture is drawn in full, so without a limit a small file could occupy a core for days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StillScan:
    """A picture file, and the times of its frames."""

    info: VideoInfo
    pts_N: IntArray
    """Milliseconds."""
    end_pts: int
    expected: int
    """Frames that the header declares; more than there are if the file was cut off."""
    lost_share: float
    """Lost share of the frames, or of a still's rows, 0 to 1."""
    warnings: tuple[str, ...]


def is_picture(source: MediaSource) -> bool:
    """Return whether the first bytes are those of a picture format that this module reads."""
    return _format(source) is not None


def scan_picture(
    source: MediaSource, *, on_progress: Callable[[int], None] = lambda frames: None
) -> StillScan:
    """Return size and timing of a picture, and decode it once to find damage.

    Raises:
        VideoError: the picture cannot be read, or is too large.
    """
    try:
        with _open(source) as picture:
            return _scan_of(source, picture, on_progress)
    except VideoError as error:
        with reading_truncated():
            return _scan_of_damaged(source, error)


def _scan_of(
    source: MediaSource, picture: PictureFile, on_progress: Callable[[int], None]
) -> StillScan:
    durations: list[int] = []
    warnings = [picture.left_out] if picture.left_out else []
    try:
        with _reading(source):
            for duration in picture.durations_ms():
                durations.append(duration)
                on_progress(len(durations))
    except VideoError:
        if not durations:
            raise
    with _reading(source):
        size = upright_size(next(picture.frames(0)))
    lost = picture.expected - len(durations)
    if lost:
        warnings.append(
            f"{lost} of its {picture.expected} pictures {'is' if lost == 1 else 'are'} missing or "
            "damaged"
        )
    return _still_scan(source, picture, size, durations, lost / picture.expected, warnings)


def _scan_of_damaged(source: MediaSource, error: VideoError) -> StillScan:
    """Scan the readable part of the first picture; raise ``error`` again if it is too small."""
    try:
        with _open(source, pad=True) as picture, _reading(source):
            image = next(picture.frames(0))
            image.load()
            rows = rows_read(image) / image.height
            size = upright_size(image)
            share = min(rows, picture.share, MOST_SHARE)
            if share < MIN_SHARE:
                raise error
            warning = f"the picture is damaged or cut off: {share:.0%} of it could be read"
            lost = picture.expected - share
            return _still_scan(source, picture, size, [0], lost / picture.expected, [warning])
    except VideoError:
        raise error from None


def _still_scan(
    source: MediaSource,
    picture: PictureFile,
    size: tuple[int, int],
    said_ms: list[int],
    lost_share: float,
    warnings: list[str],
) -> StillScan:
    is_still = picture.expected == 1
    shown_ms = (
        [STILL_MS] if is_still else [ms if ms >= SHORTEST_MS else UNSAID_MS for ms in said_ms]
    )
    starts = np.concatenate([[0], np.cumsum(shown_ms)]).astype(np.int64)
    format = _format(source) or ""
    return StillScan(
        info=VideoInfo(
            video=source.video,
            container=format.lower(),
            codec=format.lower(),
            width=size[0],
            height=size[1],
            rotation_degrees=0,
            time_base=TIME_BASE,
            start_pts=0,
            duration_seconds=float(starts[-1]) / 1000,
            frame_count=len(shown_ms),
            frame_rate=None if is_still else 1000 * len(shown_ms) / float(starts[-1]),
            size_bytes=picture.size_bytes,
        ),
        pts_N=starts[:-1],
        end_pts=int(starts[-1]),
        expected=picture.expected,
        lost_share=lost_share,
        warnings=tuple(warnings),
    )


def picture_frames(
    source: MediaSource, target_N: IntArray, *, longest_side: int | None
) -> Iterator[tuple[int, RgbArray]]:
    """Yield the wanted frames as upright sRGB pixels [H, W, C], with their positions.

    Raises:
        VideoError: a frame that the scan has read cannot be read any more.
    """
    wanted = set(target_N.tolist())
    done = False
    try:
        for position, pixels_HWC in _frames(source, wanted, longest_side):
            done = True
            yield position, pixels_HWC
    except VideoError:
        if done or wanted != {0}:
            raise
        with reading_truncated():
            first = list(_frames(source, wanted, longest_side, pad=True))
        yield from first


def _frames(
    source: MediaSource, wanted: set[int], longest_side: int | None, *, pad: bool = False
) -> Iterator[tuple[int, RgbArray]]:
    with _open(source, pad=pad) as picture:
        frames = picture.frames(max(wanted))
        for position in range(max(wanted) + 1):
            with _reading(source):
                image = next(frames)
                pixels_HWC = upright_rgb(image, longest_side) if position in wanted else None
            if pixels_HWC is not None:
                yield position, pixels_HWC


@contextlib.contextmanager
def _open(source: MediaSource, *, pad: bool = False) -> Iterator[PictureFile]:
    with source.open() as file:
        with _reading(source):
            whole, share = padded(file) if pad else (file, 1.0)
            picture = open_picture(
                whole,
                _format(source) or "",
                lambda width, height: check_dimensions(source.video, width, height),
            )
            picture.share = share
            picture.size_bytes = file.seek(0, 2)
            _check_animation(source.video, picture)
        yield picture


@contextlib.contextmanager
def _reading(source: MediaSource) -> Iterator[None]:
    """Convert exceptions of readers to a VideoError with a reason."""
    try:
        yield
    except (MemoryError, VideoError):
        raise
    except UnknownKindError as error:
        raise VideoError(source.video, f"it is {error}") from error
    except Exception as error:  # Pillow raises IndexError, struct.error, TypeError …
        raise VideoError(
            source.video, f"the picture is damaged or cut off ({_in_words(error)}); upload it again"
        ) from error


def _in_words(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message has a path of this machine
        return "no picture follows its first bytes"
    said = error.strerror if isinstance(error, OSError | FFmpegError) else None
    return said or str(error) or f"its decoder fails with {type(error).__name__}"


def _check_animation(video: str, picture: PictureFile) -> None:
    count, (width, height) = picture.expected, picture.size
    if count > 1 and picture.pixels > MAX_ANIMATION_PIXELS:
        raise VideoError(
            video,
            f"its {count} pictures of {width}x{height} make more than "
            f"{MAX_ANIMATION_PIXELS // 10**9} thousand million pixels; make a video of it",
        )


def _format(source: MediaSource) -> str | None:
    if source.video.lower().endswith((".mjpeg", ".mjpg")):
        return None  # a stream of JPEGs begins like one JPEG
    try:
        with source.open() as file:
            return format_of(file.read(HEAD_BYTES))
    except OSError:
        return None
