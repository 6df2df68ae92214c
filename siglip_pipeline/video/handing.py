"""Open an upload for a decoding child, which receives it as a descriptor."""

import contextlib
import io
from typing import BinaryIO

from siglip_pipeline.errors import (
    UploadError,
    UploadNotFoundError,
    VideoError,
    VideoInterruptedError,
)
from siglip_pipeline.records import Upload
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.feed import Feed


class Handed:
    """An upload that is open for a child.

    Attributes:
        descriptor: the file, or a socket over which this process reads for the child.
        fed_bytes: the file's size if the descriptor is a socket; None for a file.
    """

    def __init__(self, file: BinaryIO, url: SecretUrl) -> None:
        self._file: BinaryIO | Feed = file
        self.fed_bytes: int | None = None
        try:
            self.descriptor = file.fileno()
        except io.UnsupportedOperation:  # remote
            feed = Feed(file, reason_of=url.masked)
            self._file, self.fed_bytes = feed, feed.size_bytes
            self.descriptor = feed.fileno()

    @property
    def has_failed(self) -> bool:
        """Whether the storage refused a read, whatever the child made of it."""
        return isinstance(self._file, Feed) and self._file.has_failed

    def close(self) -> None:
        """Close the upload in this process."""
        self._file.close()


def hand(uploads: UploadStore, upload: Upload, options: DecodeOptions) -> Handed:
    """Open an upload for a child.

    Raises:
        VideoError: the upload is too large or gone, with the reason.
        VideoInterruptedError: the upload cannot be opened, with the reason.
    """
    video, gib = upload.path, upload.size_bytes / 2**30
    if gib > options.max_upload_gib:
        raise VideoError(
            video,
            f"it has {gib:,.0f} GiB, and at most {options.max_upload_gib:g} are read "
            "(SIGLIP_MAX_UPLOAD_GIB)",
        )
    try:
        file = uploads.open(video)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(file.close)
            handed = Handed(file, uploads.url)
            on_failure.pop_all()
        return handed
    except UploadNotFoundError as error:
        raise VideoError(video, str(error)) from error
    except UploadError as error:
        raise VideoInterruptedError(video, str(error)) from error
    except Exception as error:  # each storage raises its own exceptions
        raise VideoInterruptedError(
            video, f"the storage failed: {uploads.url.masked(error)}"
        ) from uploads.url.masked_error(error)
