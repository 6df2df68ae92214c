"""Pictures as uploads: JPEG, PNG, WebP and AVIF, and animated GIF, WebP and PNG as short videos.

Pillow reads these rather than FFmpeg: it knows EXIF orientation, colour profiles and how animation
frames are laid over each other, and FFmpeg does not decode animated WebP.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import IntArray, RgbArray, VideoInfo
from siglip_pipeline.video.scan import MAX_PACKETS, check_dimensions
from siglip_pipeline.video.source import MediaSource

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
ANIMATED_FORMATS: Final = frozenset({"PNG", "WEBP", "GIF", "AVIF"})
"""Not JPEG: the further pictures of a camera's multi-picture file are previews."""

TIME_BASE: Final = Fraction(1, 1000)
STILL_MS: Final = 40
"""How long a still picture lasts: one frame at FFmpeg's 25 a second."""
SHORTEST_MS: Final = 20
UNSAID_MS: Final = 100
"""Browsers show a frame that claims less than 20 ms for 100 ms, and so do we."""

MAX_ANIMATION_PIXELS: Final = 100 * 10**9
"""Of all pictures of an animation: half a day of full HD at two a second. Each is drawn whole, so a
file of a megabyte could otherwise keep a core busy for days."""

BACKGROUND: Final = (255, 255, 255)
"""Behind transparent pixels, as on a web page."""

Image.MAX_IMAGE_PIXELS = None  # check_dimensions decides, with a reason of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class StillScan:
    """A picture file and when each of its frames is shown."""

    info: VideoInfo
    pts_N: IntArray
    """Milliseconds."""
    end_pts: int
    expected: int
    """Frames that the header promises; more than there are when the file was cut off."""


def is_picture(source: MediaSource) -> bool:
    """Whether the first bytes are those of a picture file."""
    if source.video.lower().endswith((".mjpeg", ".mjpg")):
        return False  # a stream of JPEGs, which begins like one
    try:
        with source.open() as file:
            head = file.read(16)
    except OSError:
        return False
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:12] in (b"ftypavif", b"ftypavis")
    )


def scan_picture(
    source: MediaSource, *, on_progress: Callable[[int], None] = lambda frames: None
) -> StillScan:
    """Find size and timing; of an animation every frame is visited once.

    Raises:
        VideoError: the file is no picture that can be read, or absurdly large.
    """
    image, size_bytes = _open(source)
    with image:
        with _reading(source):
            expected = _frame_count(image, source.video)
        durations: list[int] = []
        try:
            for _ in range(expected):
                with _reading(source):
                    image.seek(len(durations))
                    image.load()
                    durations.append(_duration_ms(image) if expected > 1 else STILL_MS)
                on_progress(len(durations))
        except VideoError:
            if not durations:
                raise
        with _reading(source):
            image.seek(0)
            width, height = ImageOps.exif_transpose(image).size if expected == 1 else image.size
        container = (image.format or "").lower()
    starts = np.concatenate([[0], np.cumsum(durations)])
    return StillScan(
        info=VideoInfo(
            video=source.video,
            container=container,
            codec=container,
            width=width,
            height=height,
            rotation_degrees=0,
            time_base=TIME_BASE,
            start_pts=0,
            duration_seconds=float(starts[-1]) / 1000,
            frame_count=len(durations),
            frame_rate=1000 * len(durations) / float(starts[-1]) if expected > 1 else None,
            size_bytes=size_bytes,
        ),
        pts_N=starts[:-1].astype(np.int64),
        end_pts=int(starts[-1]),
        expected=expected,
    )


def picture_frames(
    source: MediaSource, target_N: IntArray, *, longest_side: int | None
) -> Iterator[tuple[int, RgbArray]]:
    """The wanted frames as upright sRGB pixels [H, W, C], with their positions.

    Raises:
        VideoError: a frame that could be read before no longer can.
    """
    wanted = set(target_N.tolist())
    image, _ = _open(source)
    with image:
        for position in range(max(wanted) + 1):
            with _reading(source):
                image.seek(position)
                pixels_HWC = _upright_rgb(image, longest_side) if position in wanted else None
            if pixels_HWC is not None:
                yield position, pixels_HWC


def _open(source: MediaSource) -> tuple[Image.Image, int]:
    file = source.open()
    try:
        with _reading(source):
            size_bytes = file.seek(0, 2)
            file.seek(0)
            image = Image.open(file, formats=FORMATS)
            check_dimensions(source.video, *image.size)
    except VideoError:
        file.close()
        raise
    return image, size_bytes


@contextlib.contextmanager
def _reading(source: MediaSource) -> Iterator[None]:
    """Turn what Pillow raises on a damaged file into a reason."""
    try:
        yield
    except (MemoryError, VideoError):
        raise
    except Exception as error:  # its plugins raise anything: IndexError, struct.error, TypeError …
        # Pillow's own words for this one are the file object, with a path of this machine in it.
        unidentified = isinstance(error, UnidentifiedImageError)
        what = "no picture follows its first bytes" if unidentified else error
        raise VideoError(
            source.video, f"the picture is damaged or cut off ({what}); upload it again"
        ) from error


def _frame_count(image: Image.Image, video: str) -> int:
    frames = getattr(image, "n_frames", 1) if image.format in ANIMATED_FORMATS else 1
    count = min(max(1, int(frames)), MAX_PACKETS)
    if count > 1 and count * image.width * image.height > MAX_ANIMATION_PIXELS:
        raise VideoError(
            video,
            f"its {count} pictures of {image.width}x{image.height} make more than "
            f"{MAX_ANIMATION_PIXELS // 10**9} thousand million pixels; make a video of it",
        )
    return count


def _duration_ms(image: Image.Image) -> int:
    duration = round(float(image.info.get("duration") or 0))
    return duration if duration >= SHORTEST_MS else UNSAID_MS


def _upright_rgb(frame: Image.Image, longest_side: int | None) -> RgbArray:
    if frame.format in ("JPEG", "MPO") and longest_side is not None:
        frame.draft("RGB", (longest_side, longest_side))  # shrink while decoding: 8 times faster
    picture = ImageOps.exif_transpose(frame)
    profile = frame.info.get("icc_profile")
    if picture.mode.startswith(("I", "F")):
        # 16-bit grey: Pillow's own conversion cuts everything above 255 off.
        grey = np.asarray(picture, np.float64)
        picture = Image.fromarray(np.clip(grey / 257, 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.new("RGB", rgba.size, BACKGROUND)
        picture.paste(rgba, mask=rgba.getchannel("A"))
    elif profile and picture.mode in ("RGB", "CMYK"):
        picture = _to_srgb(picture, profile)
    picture = picture.convert("RGB")
    if longest_side is not None and max(picture.size) > longest_side:
        picture.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.uint8)


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Apply an embedded colour profile, such as the Display P3 of telephones."""
    try:
        converted = ImageCms.profileToProfile(
            picture,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError):  # a damaged profile: the colours as they are
        return picture
    return converted or picture
