"""Decode stills that Pillow does not decode correctly, with FFmpeg's decoders, not its demuxers."""

import struct
from typing import BinaryIO, Final

import av
import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    ICCPROFILE,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    ImageFileDirectory_v2,
)

from siglip_pipeline.video.scan import MAX_PIXELS

_LAST_BASELINE: Final = 347
"""Of the tags for the picture; those for other purposes have higher numbers."""
_TYPE_BYTES: Final = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_END_OF_JPEG: Final = b"\xff\xd9"
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
"""Formats of samples (TIFF 6.0, page 80). FFmpeg takes all of 8 and 16 bits for unsigned."""
_COMPRESSIONS: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946, 34925, 50000})
_SPACES: Final = {
    0: "grey",
    1: "grey",
    2: "RGB",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELAB",
    32803: "raw",
    34892: "raw",
}


class UnknownKindError(Exception):
    """A picture that neither Pillow nor FFmpeg reads; the message gives its kind and the remedy."""


def decode_still(file: BinaryIO, codec: str) -> Image.Image:
    """Return a picture as RGB or RGBA, eight bits per sample.

    Raises:
        ValueError: the decoder gives no picture.
    """
    decoder = av.CodecContext.create(codec, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.options = {"max_pixels": str(MAX_PIXELS)}
    decoder.thread_count = 1
    file.seek(0)
    data = file.read()
    if codec == "mjpeg" and _END_OF_JPEG not in data and not ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError("its end is missing")
    frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
    if not frames:
        raise ValueError("no picture comes out of it")
    frame = frames[0]
    samples_HWC = np.ascontiguousarray(frame.reformat(format="rgba64le").to_ndarray())
    pixels_HWC = samples_HWC.view(np.uint8)[:, :, 1::2]  # the upper byte of each
    has_alpha = any(component.is_alpha for component in frame.format.components)
    return Image.fromarray(np.ascontiguousarray(pixels_HWC[:, :, : 4 if has_alpha else 3]))


def tiff_tags(file: BinaryIO) -> ImageFileDirectory_v2:
    """Return the tags of a TIFF's first page; its ``next`` is the offset of the second one, or 0.

    Raises:
        ValueError: the file ends before tags that determine the picture.
        UnknownKindError: it is a kind that Pillow, or the libtiff that it brings, does not read.
    """
    file.seek(0)
    head = file.read(16)
    if head.startswith(b"MM\0+"):  # Pillow takes its header for that of an ordinary TIFF
        raise UnknownKindError(
            "a BigTIFF in big-endian order, which is not read here: save it in little-endian "
            "order, or as an ordinary TIFF"
        )
    tags = ImageFileDirectory_v2(head[:8] if b"*" in head[2:4] else head)
    _check_tags(file, tags.next, head)
    file.seek(tags.next)
    tags.load(file)
    if (compression := tags.get(COMPRESSION, 1)) not in _COMPRESSIONS:
        raise UnknownKindError(
            f"a TIFF with compression {compression}, which is not read here: save it with LZW or "
            "without compression"
        )
    return tags


def _check_tags(file: BinaryIO, at: int, head: bytes) -> None:
    """Check that a page's tags, and the values of those for its picture, are in the file.

    Values may be missing while truncated pictures are read.

    Raises:
        ValueError: they are not.
    """
    order, is_big = "<" if head[:2] == b"II" else ">", b"+" in head[2:4]
    size = file.seek(0, 2)
    count, entry, inline = ("Q", "HHQQ", 8) if is_big else ("H", "HHII", 4)
    file.seek(at)
    counted = file.read(struct.calcsize(order + count))
    wanted = struct.calcsize(order + entry) * int.from_bytes(
        counted, "little" if order == "<" else "big"
    )
    entries = file.read(min(wanted, size))
    whole = len(entries) == wanted > 0
    for tag, kind, number, offset in struct.iter_unpack(order + entry, entries) if whole else ():
        values = number * _TYPE_BYTES.get(kind, 1)
        is_beyond = values > inline and offset + values > size
        is_needed = tag <= _LAST_BASELINE or tag == ICCPROFILE
        if tag == 0 or (is_beyond and is_needed and not ImageFile.LOAD_TRUNCATED_IMAGES):
            whole = False
    if not whole:
        raise ValueError("the tags of its first page are incomplete")


def decode_tiff(file: BinaryIO, tags: ImageFileDirectory_v2) -> Image.Image:
    """Return the first page of a TIFF that Pillow does not read.

    Raises:
        UnknownKindError: FFmpeg does not read it correctly; for example, it reads 32-bit integers
            as floats.
    """
    bits = tags.get(BITSPERSAMPLE, (1,))[0]
    colours = tags.get(PHOTOMETRIC_INTERPRETATION, 1)
    form = tags.get(SAMPLEFORMAT, (_UNSIGNED,))[0]
    known = {_UNSIGNED: (8, 16), _FLOAT: (32,), _UNDEFINED: (8, 16)}.get(form, ())
    if colours not in (0, 1, 2) or bits not in known:
        kind = {_SIGNED: ", signed", _FLOAT: ", floating point"}.get(form, "")
        raise UnknownKindError(
            f"a TIFF of {bits} bits a sample{kind} in colour space "
            f"{_SPACES.get(colours, colours)}, which is not read here: save it as RGB with 8 bits "
            "a sample"
        )
    picture = decode_still(file, "tiff")
    picture.info["icc_profile"] = tags.get(ICCPROFILE)
    picture.getexif()[ExifTags.Base.Orientation] = tags.get(ExifTags.Base.Orientation, 1)
    return picture
