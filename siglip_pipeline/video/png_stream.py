"""Read the chunks of a PNG as browsers do: damaged metadata does not cost the picture.

Pillow refuses a picture for text that it cannot parse or that is long, and takes text for settings.
"""

import struct
from typing import Final

from PIL import ImageFile, PngImagePlugin
from PIL.PngImagePlugin import PngStream

_ANCILLARY: Final = 0x20
"""Bit of a chunk kind's first byte: the picture can be shown without (section 5.4)."""
_TEXTS: Final = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_ORIENTATION_TEXTS: Final = ("Raw profile type exif", "xmp")
"""Texts in which programs without `eXIf` store the orientation, by Pillow's names."""


class TolerantStream(PngStream):
    """Pillow's reader of chunks, which ignores optional ones that are damaged."""

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        """Take a chunk, and return its data.

        Raises:
            EOFError: it holds pixels, or is the last one.
            AttributeError: Pillow does not know it.
            OSError: the file ends before the chunk.
        """
        if not cid[0] & _ANCILLARY:
            return super().call(cid, pos, length)
        info = self.im_info
        if cid in _TEXTS:
            self.im_info = {}
        try:
            return super().call(cid, pos, length)
        except (IndexError, SyntaxError, ValueError, struct.error):
            assert self.fp is not None
            self.fp.seek(pos)
            return ImageFile._safe_read(self.fp, length)
        finally:
            if cid in _TEXTS:
                texts, self.im_info = self.im_info, info
                info.update({name: texts[name] for name in _ORIENTATION_TEXTS if name in texts})

    def crc(self, cid: bytes, data: bytes) -> None:
        """Check the checksum of a chunk that the picture needs."""
        if cid[0] & _ANCILLARY:
            self.crc_skip(cid, data)
        else:
            super().crc(cid, data)


def tolerate_damaged_metadata() -> None:
    """Let Pillow open every PNG with :class:`TolerantStream`."""
    PngImagePlugin.PngStream = TolerantStream  # type: ignore[misc]
