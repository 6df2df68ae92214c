"""In a decoding child: a picture that somebody searches by."""

from typing import BinaryIO

from PIL import UnidentifiedImageError

from siglip_pipeline.errors import PictureTooLargeError, QueryError
from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.ffmpeg_picture import UnknownTiffError
from siglip_pipeline.video.picture_file import open_picture
from siglip_pipeline.video.still_pixels import upright_rgb


def decode_picture(file: BinaryIO, *, name: str, format: str, max_pixels: float) -> RgbArray:
    """The picture, of an animation the first, as uploads are decoded: upright RGB [H, W, 3].

    Args:
        file: an encoded picture.
        name: what messages call it.
        format: Pillow's name of what it is; no other reader looks at it.
        max_pixels: a larger one is refused by its header: a small file may hold a huge picture.

    Raises:
        PictureTooLargeError: it has more pixels.
        QueryError: it is damaged, or a TIFF of a kind that is not read. One that is cut off is
            refused, too: unlike an upload, it is at hand.
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
    except UnknownTiffError as error:
        raise QueryError(f"{name} is {error}") from error
    except Exception as error:  # what damaged files make decoders raise is not documented
        # Pillow's own words for this one are an object of Python.
        what = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise QueryError(
            f"{name} is a damaged or cut off {format} picture{what}: give the whole file"
        ) from error
