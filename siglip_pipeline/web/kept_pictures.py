"""Keep the pictures that people search by, so that a search has an address."""

import contextlib
import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from siglip_pipeline.files.replacing import replacing
from siglip_pipeline.files.size_limit import remove_oldest
from siglip_pipeline.records import RgbArray

logger = logging.getLogger(__name__)

_LONGEST_SIDE: Final = 768
"""More than any model reads of a picture."""


class QueryPictures:
    """Pictures of searches, shrunk, by an id that is derived from their content.

    Thread-safe; several processes may share the folder.

    Args:
        folder: created on first use.
        max_bytes: the least recently used are removed beyond this.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def put(self, pixels_HWC: RgbArray) -> str | None:
        """Keep a picture and return its id; None, with a warning, where nothing can be kept."""
        if not self._max_bytes:
            return None
        picture = Image.fromarray(pixels_HWC)
        picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=95)
        name = hashlib.sha256(buffer.getvalue()).hexdigest()[:32]
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(self._path(name)) as file:
                file.write(buffer.getvalue())
            remove_oldest(self._folder, "*.jpg", max_bytes=self._max_bytes, kept=self._path(name))
        except OSError as error:
            logger.warning("a picture cannot be kept, so its search has no address: %s", error)
            return None
        return name

    def jpeg(self, name: str) -> bytes | None:
        """Return a picture that is kept; None if it is not."""
        path = self._path(name)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def pixels(self, name: str) -> RgbArray | None:
        """Return the pixels of a picture that is kept; None if it is not."""
        content = self.jpeg(name)
        if content is None:
            return None
        # Only what this class has encoded itself is decoded here.
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
            return np.asarray(picture.convert("RGB"))

    def _path(self, name: str) -> Path:
        return self._folder / f"{int(name, 16):032x}.jpg"
