"""Convert a picture that Pillow has opened to upright sRGB on a white background.

Uploads and query pictures use the same function.
"""

import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import ExifTags, Image, ImageCms
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.chromaticity import in_srgb
from siglip_pipeline.video.tone import ToneMapper

BACKGROUND: Final = (255, 255, 255)
"""Colour behind transparent pixels, as on a web page."""

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition by EXIF orientation."""

_MODES: Final = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
"""Pillow's modes by the colour space of a profile."""
_ACCEPTED: Final = {"L": ("L", "RGB"), "RGB": ("RGB",), "CMYK": ("CMYK",)}
"""Modes that the profile of a picture may be for. Editors leave the profile of a print in what they
save as RGB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourDescription:
    """The colour space of a picture."""

    icc_profile: bytes | None = None
    primaries: int = 2
    """Code of ITU-T H.273; 2 is unspecified."""
    transfer: int = 2
    gamma: float | None = None
    """The exponent of light by which a PNG is coded, if nothing else tells its colours."""
    chromaticities: tuple[float, ...] | None = None
    """Of a PNG: x and y of white, red, green and blue."""

    @classmethod
    def of(cls, image: Image.Image) -> "ColourDescription":
        """Return the description in a picture's metadata."""
        coded: dict[str, Any] = image.info.get("nclx_profile") or {}
        is_told = coded or image.info.get("icc_profile") or "srgb" in image.info
        return cls(
            icc_profile=image.info.get("icc_profile"),
            primaries=int(coded.get("color_primaries", 2)),
            transfer=int(coded.get("transfer_characteristics", 2)),
            gamma=None if is_told else image.info.get("gamma"),
            chromaticities=None if is_told else image.info.get("chromaticity"),
        )

    @property
    def tone_mapper(self) -> ToneMapper | None:
        """The conversion to sRGB; None if the picture is in sRGB."""
        return ToneMapper.for_codes(self.transfer, self.primaries)


def upright_rgb(image: Image.Image, longest_side: int | None = None) -> RgbArray:
    """Return a picture as upright RGB [H, W, 3].

    Args:
        image: an opened picture; a JPEG is scaled down while it is decoded.
        longest_side: larger pictures are scaled down to this; None keeps the size.
    """
    if image.format in ("JPEG", "MPO") and longest_side is not None:
        image.draft("RGB", (longest_side, longest_side))  # 8 times faster
    image.load()
    turn = _TURNS.get(orientation(image))
    colours = ColourDescription.of(image)
    picture = _plain_mode(image, colours)
    if longest_side is not None and max(picture.size) > longest_side:
        picture = picture.copy() if picture is image else picture
        picture.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    alpha = picture.getchannel("A") if picture.mode in ("LA", "RGBA") else None
    picture = _in_srgb(picture, colours)
    if alpha is not None:
        opaque = Image.new("RGB", picture.size, BACKGROUND)
        opaque.paste(picture, mask=alpha)
        picture = opaque
    if turn is not None:
        picture = picture.transpose(turn)
    return np.array(picture, np.uint8, order="C")


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded picture; 1 if it is missing or invalid."""
    if image.format == "HEIF":
        return 1  # libheif has applied `irot` and `imir`; EXIF does not apply to HEIF
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's parsers raise ValueError, struct.error, SyntaxError …
        return 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of a loaded picture after its rotation."""
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def _plain_mode(image: Image.Image, colours: ColourDescription) -> Image.Image:
    """Return L, LA, RGB, RGBA, CMYK with a profile, or LAB, with eight bits per sample."""
    mode = image.mode
    if mode.startswith(("I", "F")):
        return eight_bits(image)
    if mode == "LAB" or (mode == "CMYK" and colours.icc_profile):
        return image
    if image.has_transparency_data:
        return image.convert("LA" if mode in ("LA", "La") else "RGBA")
    return image if mode in ("L", "RGB") else image.convert("L" if mode == "1" else "RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Return deep grey as L or LA. Pillow's own conversion clips values above 255."""
    values = np.array(image, np.float32)  # changed in place, to save memory
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITSPERSAMPLE, (16,))[0]
    if image.mode == "F":  # light from 0 to 1, or to its largest value
        np.nan_to_num(values, copy=False)
        largest = max(1.0, float(values.max(initial=0.0)))
    elif image.mode == "I":
        largest = float(2**32 - 1 if bits == 32 else 2**16 - 1)
        if bits == 32:
            values[values < 0] += 2**32
    else:
        largest = float(2 ** min(bits, 16) - 1)
    values *= 255 / largest
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
        np.subtract(255, values, out=values)
    np.clip(values, 0, 255, out=values)
    picture = Image.fromarray(np.rint(values, out=values).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        opaque = np.asarray(image) != transparent
        picture.putalpha(Image.fromarray(opaque.astype(np.uint8) * np.uint8(255)))
    return picture


def _in_srgb(picture: Image.Image, colours: ColourDescription) -> Image.Image:
    """Convert to sRGB by the picture's colour profile or description; remove transparency."""
    if picture.mode == "LAB":
        return _converted(picture, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if colours.icc_profile:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(colours.icc_profile))
            mode = _MODES.get(str(profile.profile.xcolor_space).strip(), "")
            if mode in _ACCEPTED[picture.mode.removesuffix("A")]:
                return _converted(picture.convert(mode), profile)
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
        return picture.convert("RGB")  # a damaged profile, or one of another kind, is ignored
    rgb = picture.convert("RGB")
    if colours.gamma or colours.chromaticities:
        pixels_HWC = np.asarray(rgb, np.uint8)
        return Image.fromarray(in_srgb(pixels_HWC, colours.gamma, colours.chromaticities))
    if (mapper := colours.tone_mapper) is None:
        return rgb
    return Image.fromarray(mapper.apply(np.asarray(rgb, np.uint16) * 257))


def _converted(picture: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(
        picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    return converted or picture.convert("RGB")
