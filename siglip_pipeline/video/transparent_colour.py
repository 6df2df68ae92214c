"""Find the one colour of a PNG that is transparent (`tRNS`), where Pillow does not."""

from typing import BinaryIO, Final

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from siglip_pipeline.video.ffmpeg_picture import decode_still

_LARGEST: Final = {"1": 1, "L;2": 3, "L;4": 15}
"""Largest grey of less than eight bits, by Pillow's name of their form."""
_DEEP: Final = "RGB;16B"


def with_transparent_colour(image: Image.Image, file: BinaryIO) -> Image.Image:
    """Return a PNG whose transparent colour is one of its pixel values, or as RGBA.

    Pillow compares grey as it is stored with grey of eight bits, and colours of 16 bits with those
    of eight.

    Args:
        image: opened, but not loaded.
        file: what it was opened from.

    Raises:
        ValueError: it cannot be decoded.
    """
    key = image.info.get("transparency")
    if not isinstance(image, PngImageFile) or key is None or not image.tile:
        return image
    form = str(image.tile[0].args)
    if form == _DEEP:
        decoded = decode_still(file, "png")
        decoded.info = {name: value for name, value in image.info.items() if name != "transparency"}
        return decoded
    if isinstance(key, int) and form in _LARGEST:
        image.info["transparency"] = key * 255 // _LARGEST[form]
    return image
