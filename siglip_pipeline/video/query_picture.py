"""Decode a query picture. Runs in a decoding child."""

from typing import BinaryIO

from PIL import UnidentifiedImageError

from siglip_pipeline.errors import PictureTooLargeError, QueryError
from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.ffmpeg_picture import UnknownKindError
from siglip_pipeline.video.picture_file import open_picture
from siglip_pipeline.video.still_pixels import upright_rgb


def decode_picture(file: BinaryIO, *, name: str, format: str, max_pixels: float) -> RgbArray:
    """Return a picture, or the first of an animation, decoded like uploads: upright RGB [H, W, 3].

    Args:
        file: an encoded picture.
        name: name of the picture in messages.
        format: Pillow's name of its format; no other format is tried.
        max_pixels: a picture with more pixels, according to its header, is refused.

    Raises:
        PictureTooLargeError: it has more pixels.
        QueryError: it is damaged, truncated, or a TIFF of an unsupported kind. Unlike truncated
            uploads, truncated queries are refused, because people can send them again.
    """

    def check_size(width: int, height: int) -> None:
        if width * height > max_pixels:
            raise PictureTooLargeError(
                f"the picture has {width} x {height} pixels; at most {max_pixels / 1e6:g} "
                "million are allowed: send a smaller one"
            )

    try:
        return upright_rgb(next(open_picture(file, format, check_size).frames(0)))
    except (QueryError, MemoryError):
        raise
    except UnknownKindError as error:
        raise QueryError(f"{name} is {error}") from error
    except Exception as error:  # decoders document no exceptions for damaged files
        # Pillow's message of this error is the repr of a Python object.
        what = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise QueryError(
            f"{name} is a damaged or cut off {format} picture{what}: give the whole file"
        ) from error
