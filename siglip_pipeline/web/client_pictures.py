"""Pictures that clients send, and thumbnails."""

import base64
import io
from collections.abc import Callable
from typing import Final, TypeVar

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from siglip_pipeline.errors import PictureTimeoutError, PictureTooLargeError, QueryError
from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.picture_formats import picture_format
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.services import Services

Result = TypeVar("Result")

MAX_FORM_FIELDS: Final = 80
THUMBNAIL_WIDTHS: Final = (160, 320, 640)
_PREVIEW_SIDE: Final = 200


FormFields = list[tuple[str, str]]
"""The texts of a form, in its order; none beside a raw picture."""


async def on_picture(
    request: Request, services: Services, work: Callable[[RgbArray, FormFields], Result]
) -> Result:
    """Call ``work`` with the picture of a request, raw or from a form, when its turn comes.

    A child process decodes it, and no lock is held meanwhile.

    Args:
        request: its body has not been read.
        services: the decoder, the turns and the limits.
        work: gets the picture, upright RGB, and the other fields of the form, on a thread.

    Raises:
        HttpError: 415 when there is no picture that can be read, 413 when it is too large, 422 when
            decoding it takes too long, 503 when too many wait.
    """
    data, fields = await _picture_in(request)
    try:
        picture_format(data, f"the file ({len(data):,} bytes)")
    except QueryError as error:
        raise HttpError(415, str(error)) from error
    async with services.turns.turn():
        return await run_in_threadpool(lambda: work(_decoded(services, data), fields))


def content_type_of(request: Request) -> str:
    """Return the type of a request's body, in lower case, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _decoded(services: Services, data: bytes) -> RgbArray:
    settings = services.settings
    try:
        return services.decoder.decode(
            data,
            max_pixels=settings.http_max_picture_megapixels * 1e6,
            seconds=settings.picture_seconds,
        )
    except PictureTooLargeError as error:
        raise HttpError(413, f"{error} (SIGLIP_HTTP_MAX_PICTURE_MEGAPIXELS)") from error
    except PictureTimeoutError as error:
        raise HttpError(422, f"{error} (SIGLIP_PICTURE_SECONDS)") from error
    except QueryError as error:
        raise HttpError(415, str(error)) from error


async def _picture_in(request: Request) -> tuple[bytes, FormFields]:
    """Return the picture of a request, raw or from a form.

    Raises:
        HttpError: 415, neither a picture nor a form with one.
    """
    content_type = content_type_of(request)
    if content_type.startswith("image/") or content_type == "application/octet-stream":
        return await request.body(), []
    if content_type == "multipart/form-data":
        return await _picture_of_form(request)
    raise HttpError(
        415,
        f"content type {content_type[:80]!r}: send a picture as image/…, or a form "
        "(multipart/form-data) with the file in its field 'image'",
    )


async def _picture_of_form(request: Request) -> tuple[bytes, FormFields]:
    async with request.form(max_files=1, max_fields=MAX_FORM_FIELDS) as form:
        file = form.get("image")
        if isinstance(file, UploadFile):
            items = form.multi_items()
            return await file.read(), [(n, v) for n, v in items if isinstance(v, str)]
    raise HttpError(415, "the form has no file in its field 'image'")


def shrink_jpeg(jpeg: bytes, width: int) -> bytes:
    """Return a stored frame at most ``width`` pixels wide; unchanged if it is no wider.

    Only for JPEGs that this package has encoded.
    """
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        if picture.width <= width:
            return jpeg
        height = max(1, round(picture.height * width / picture.width))
        # Decodes at a half, a quarter or an eighth of the size, which saves most of the work.
        picture.draft("RGB", (width, height))
        small = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return _jpeg(small)


def preview_url(pixels_HWC: RgbArray) -> str:
    """Return a small copy as a ``data:`` URL, to show the query."""
    small = Image.fromarray(pixels_HWC)
    small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    return "data:image/jpeg;base64," + base64.b64encode(_jpeg(small)).decode("ascii")


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
