"""Open a file of one or more pictures with the reader for its format.

Pillow reads most formats. libheif reads HEIF (docs/decisions/0018). Parsers of this package read
animated PNG and GIF, and Pillow decodes their frames.
"""

import contextlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

import pi_heif
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from siglip_pipeline.video import jpeg2000
from siglip_pipeline.video.aperture import clean_aperture
from siglip_pipeline.video.apng import colour_code_points, read_apng
from siglip_pipeline.video.bitmap import open_bitmap
from siglip_pipeline.video.boxes import boxes
from siglip_pipeline.video.ffmpeg_picture import (
    decode_still,
    decode_tiff,
    tiff_tags,
)
from siglip_pipeline.video.gif import read_gif
from siglip_pipeline.video.patches import PatchedAnimation
from siglip_pipeline.video.png_stream import tolerate_damaged_metadata
from siglip_pipeline.video.scan import MAX_PACKETS
from siglip_pipeline.video.transparent_colour import with_transparent_colour

logger = logging.getLogger(__name__)

_TIMED: Final = frozenset({"WEBP", "AVIF"})
"""Animations that Pillow reads. Further pictures of JPEG and HEIF are previews and parts."""

PAGE_MS: Final = 1000
"""Duration of a page of a TIFF, so that every sampling policy selects it."""

_HEAD_BYTES: Final = 2**20
_SUBFILE_TYPE: Final = 254
_MP_ENTRIES: Final = 0xB002
_REDUCED_OR_MASK: Final = 0b101

_MOTION: Final = re.compile(rb"\0\0\0[\x10-\x40]ftyp(mp4|iso|qt|avc|hvc|hev|3gp|M4V)")
"""Matches the begin of a film. Telephones append it to a picture, each with its own metadata."""
_BLOCK_BYTES: Final = 2**20
_OWN_HEAD_BYTES: Final = 8
"""A HEIF begins like a film."""

Image.MAX_IMAGE_PIXELS = None  # callers check the size, with their own reason
pi_heif.register_heif_opener(decode_threads=1)
tolerate_damaged_metadata()

CheckSize = Callable[[int, int], None]
"""Raises if a picture of this width and height is too large to decode."""


class PictureFile(ABC):
    """The pictures of a file, in order."""

    size: tuple[int, int]
    """Width and height of the first picture, as coded."""
    expected: int
    """Number of pictures, according to the header."""
    share: float = 1.0
    """Share of the file that exists, 0 to 1."""
    size_bytes: int = 0

    @abstractmethod
    def durations_ms(self) -> Iterator[int]:
        """Yield each picture's duration; 0 if the file gives none. Raises an error at damage."""

    @abstractmethod
    def frames(self, last: int) -> Iterator[Image.Image]:
        """Yield the pictures from the first to ``last``; each is invalid after the next one."""

    @property
    def pixels(self) -> int:
        """Number of pixels that are decoded for all frames."""
        width, height = self.size
        return self.expected * width * height

    @property
    def left_out(self) -> str | None:
        """A warning about content of the file that is not indexed; None if there is none."""
        return None


def open_picture(file: BinaryIO, format: str, check_size: CheckSize) -> PictureFile:
    """Open a picture as ``format``, one of ``picture_formats.FORMATS``, and as no other.

    Decoders document no exceptions for damaged files: treat every exception as damage.
    """
    file.seek(0)
    if format == "GIF" or format == "PNG":
        animation = read_gif(file) if format == "GIF" else read_apng(file)
        if animation is not None:
            for size in (animation.size, *(patch.size for patch in animation.patches)):
                check_size(*size)
            return _Patched(file, animation)
    if format == "BMP" and (bitmap := open_bitmap(file)):
        check_size(*bitmap.size)
        return _Still(bitmap.size, lambda: bitmap.image(file))
    tags = tiff_tags(file) if format == "TIFF" else None
    file.seek(0)
    try:
        image = Image.open(file, formats=(format,))
    except UnidentifiedImageError:
        if tags is None and format != "JPEG":
            raise
        picture = decode_tiff(file, tags) if tags else decode_still(file, "mjpeg")  # lossless JPEG
        check_size(*picture.size)
        left_out = "its further pages are not indexed" if tags and tags.next else None
        return _Still(picture.size, lambda: picture, left_out)
    check_size(*image.size)
    if format == "JPEG2000":
        profile = image.info["icc_profile"] = jpeg2000.profile(file)
    if format == "JPEG2000" and jpeg2000.is_deep(file):
        return _Still(image.size, lambda: _with_profile(decode_still(file, "jpeg2000"), profile))
    if format == "AVIF":
        return _Avif(image, file)
    if format == "PNG":
        image.info["nclx_profile"] = colour_code_points(file)
        if (decoded := with_transparent_colour(image, file)) is not image:
            return _Still(image.size, lambda: decoded)
    return _ByPillow(image, file)


def _with_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    image.info["icc_profile"] = profile
    return image


class _Patched(PictureFile):
    def __init__(self, file: BinaryIO, animation: PatchedAnimation) -> None:
        self._file = file
        self._animation = animation
        self.size = animation.size
        self.expected = animation.expected

    @property
    def pixels(self) -> int:
        return self._animation.pixels

    def durations_ms(self) -> Iterator[int]:
        next(self._animation.frames(self._file, 0))
        for patch in self._animation.patches:
            yield patch.duration_ms

    def frames(self, last: int) -> Iterator[Image.Image]:
        return self._animation.frames(self._file, last)


class _Still(PictureFile):
    """One picture that Pillow does not read."""

    expected = 1

    def __init__(
        self,
        size: tuple[int, int],
        decode: Callable[[], Image.Image],
        left_out: str | None = None,
    ) -> None:
        self.size = size
        self._decode = decode
        self._left_out = left_out

    def durations_ms(self) -> Iterator[int]:
        self._decode()
        yield 0

    def frames(self, last: int) -> Iterator[Image.Image]:
        yield self._decode()

    @property
    def left_out(self) -> str | None:
        return self._left_out


class _ByPillow(PictureFile):
    def __init__(self, image: Image.Image, file: BinaryIO) -> None:
        self._image = image
        self._file = file
        self._numbers = _numbers(image)
        self.size = image.size
        self.expected = len(self._numbers)

    def durations_ms(self) -> Iterator[int]:
        for image in self.frames(self.expected - 1):
            image.load()
            is_page = isinstance(image, TiffImageFile)
            yield PAGE_MS if is_page else round(float(image.info.get("duration") or 0))

    def frames(self, last: int) -> Iterator[Image.Image]:
        for number in self._numbers[: last + 1]:
            if number != self._image.tell():
                self._image.seek(number)
            yield self._image

    @property
    def left_out(self) -> str | None:
        image = self._image
        if isinstance(image, TiffImageFile) and _is_part(image):
            return (
                "the main picture of this raw photo is not indexed: its preview of "
                f"{image.width}x{image.height} alone is"
            )
        others = int(getattr(image, "n_frames", 1)) - 1 if image.format == "HEIF" else 0
        if others > 0:
            pictures = "picture of the file is" if others == 1 else "pictures of the file are"
            return f"{others} further {pictures} not indexed: its primary one alone is"
        entries = (getattr(image, "mpinfo", None) or {}).get(_MP_ENTRIES, [])
        others = sum(map(_is_view, entries[1:]))
        if others > 0:
            views = "view of this picture is" if others == 1 else "views of this picture are"
            return f"{others} further {views} not indexed"
        if image.format in ("HEIF", "JPEG", "MPO") and (film := _film_in(self._file)):
            return f"the {film} is not indexed: its picture alone is"
        return None


class _Avif(_ByPillow):
    """An AVIF, with the colour code points (`nclx`) and the crop that Pillow does not apply."""

    def __init__(self, image: Image.Image, file: BinaryIO) -> None:
        super().__init__(image, file)
        image.info.pop("xmp", None)  # only `irot` and `imir` apply, which Pillow puts into EXIF
        self._crop: tuple[int, int, int, int] | None = None
        with contextlib.suppress(Exception):  # optional; damaged files raise any exception
            file.seek(0)
            primary = pi_heif.open_heif(file)
            image.info["nclx_profile"] = primary.info.get("nclx_profile")
            if sorted(primary.size) != sorted(image.size):
                file.seek(0)
                self._crop = clean_aperture(file.read(_HEAD_BYTES), image.size)

    def frames(self, last: int) -> Iterator[Image.Image]:
        for image in super().frames(last):
            yield image if self._crop is None else image.crop(self._crop)


def _numbers(image: Image.Image) -> list[int]:
    """Return the numbers of Pillow's frames that are shown."""
    if isinstance(image, TiffImageFile):
        return _pages(image)
    if image.format in _TIMED:
        return list(range(min(int(getattr(image, "n_frames", 1)), MAX_PACKETS)))
    return [image.tell()]


def _pages(image: TiffImageFile) -> list[int]:
    """Return the numbers of a TIFF's pages, also of those that Pillow does not read."""
    pages: list[int] = []
    for number in range(MAX_PACKETS):
        try:
            image.seek(number)
        except EOFError:
            break
        except Exception:  # its tags are known nevertheless
            if image.tell() != number:
                break
            logger.debug("page %d of a TIFF is not read", number)
        if not _is_part(image):
            pages.append(number)
    pages = pages or [0]
    image.seek(pages[0])
    return pages


def _is_view(entry: dict[str, Any]) -> bool:
    """Return whether a picture in a JPEG shows another view, as of a stereo camera or a panorama.

    Others are previews of the first one, and maps of its light or depth.
    """
    return str(entry["Attribute"]["MPType"]).startswith("Multi-Frame")


def _is_part(image: TiffImageFile) -> bool:
    """Return whether the current page is a preview or the mask of another one."""
    return bool(image.tag_v2.get(_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK)


def _film_in(file: BinaryIO) -> str | None:
    """Return what kind of film a file holds beside its picture; None if it holds none."""
    file.seek(_OWN_HEAD_BYTES)
    before = b""
    while block := file.read(_BLOCK_BYTES):
        if _MOTION.search(before + block):
            return "video of this motion photo"
        before = block[-16:]
    is_sequence = any(kind == b"moov" for kind, _, _ in boxes(file, 0, file.seek(0, 2)))
    return "image sequence of this file" if is_sequence else None
