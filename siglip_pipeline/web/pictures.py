"""Pictures that clients send: looked at before they are decoded."""

import base64
import io
from typing import Final

from PIL import Image

from siglip_pipeline.errors import QueryError
from siglip_pipeline.search.query_pictures import PictureTooLargeError, read_picture
from siglip_pipeline.web.errors import HttpError

THUMBNAIL_WIDTHS: Final = (160, 320, 640)
_PREVIEW_SIDE: Final = 200


def check_picture(data: bytes, *, max_megapixels: float) -> Image.Image:
    """Read the header, then the whole picture, as upright RGB.

    Args:
        data: an encoded picture.
        max_megapixels: a larger one is refused by its header: a small file may hold a huge one.

    Raises:
        HttpError: 415 when it is no picture that can be read, 413 when it is too large.
    """
    try:
        picture: Image.Image = read_picture(data, max_pixels=max_megapixels * 1e6)
    except PictureTooLargeError as error:
        raise HttpError(413, f"{error} (SIGLIP_HTTP_MAX_PICTURE_MEGAPIXELS)") from error
    except QueryError as error:
        raise HttpError(415, str(error)) from error
    return picture


def shrink_jpeg(jpeg: bytes, width: int) -> bytes:
    """The picture at most ``width`` pixels wide; as it is where it is no wider."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        if picture.width <= width:
            return jpeg
        height = max(1, round(picture.height * width / picture.width))
        # Decodes at a half, a quarter or an eighth of the size, which is most of the work saved.
        picture.draft("RGB", (width, height))
        small = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return _jpeg(small)


def preview_url(picture: Image.Image) -> str:
    """A small copy as a ``data:`` URL, to show what was asked for."""
    small = picture.copy()
    small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    return "data:image/jpeg;base64," + base64.b64encode(_jpeg(small)).decode("ascii")


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
