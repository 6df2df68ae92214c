"""Kinds of pictures that cameras, scanners and telephones write, and that decoders get wrong."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from siglip_pipeline.errors import VideoError
from siglip_pipeline.video.chromaticity import SRGB
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.stills import scan_picture
from siglip_pipeline.video.tone import TO_BT709, Primaries, ToneMapper, Transfer
from siglip_pipeline_tests.png_chunks import png_of
from siglip_pipeline_tests.video.test_still_conformance import (
    REPORTS,
    STILLS,
    Pixels,
    difference,
    only,
    read,
)

Tags = dict[int, list[int]]

GREY: Pixels = np.linspace(0, 255, 61 * 47).reshape(47, 61).astype(np.uint8)
COLOURS: Pixels = np.dstack([GREY, GREY[::-1], 255 - GREY])
FILM = b"\0\0\0\x18ftypmp42" + bytes(40)


P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)


TRUE_COLOUR = (b"IHDR", struct.pack(">IIBBBBB", 61, 47, 8, 2, 0, 0, 0))
DEEP_GREY = (b"IHDR", struct.pack(">IIBBBBB", 61, 47, 16, 0, 0, 0, 0))


def srgb(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Code values of light, both in [0, 1], by IEC 61966-2-1."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def rows_of(pixels: NDArray[Any]) -> bytes:
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))


def chromaticities(values: tuple[float, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(100_000 * value) for value in values))


def gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(100_000 * value))


def animated(
    *chunks: tuple[bytes, bytes],
    after: tuple[tuple[bytes, bytes], ...] = (),
    header: tuple[bytes, bytes] = TRUE_COLOUR,
    pixels: NDArray[Any] = COLOURS,
) -> bytes:
    """Two equal frames with chunks before and after them."""
    rows = rows_of(pixels)
    return png_of(
        header,
        *chunks,
        (b"acTL", struct.pack(">II", 2, 0)),
        (b"fcTL", struct.pack(">5I2H2B", 0, 61, 47, 0, 0, 1, 2, 0, 0)),
        (b"IDAT", rows),
        (b"fcTL", struct.pack(">5I2H2B", 1, 61, 47, 0, 0, 1, 2, 0, 0)),
        (b"fdAT", struct.pack(">I", 2) + rows),
        *after,
        (b"IEND", b""),
    )


def still(*chunks: tuple[bytes, bytes]) -> bytes:
    return png_of(TRUE_COLOUR, *chunks, (b"IDAT", rows_of(COLOURS)), (b"IEND", b""))


def tiff(*pages: tuple[Tags, bytes]) -> bytes:
    """A TIFF of uncompressed pages, each with its tags (all LONG) and its data."""
    data = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for tags, samples in pages:
        entries = {**tags, 273: [len(data)], 279: [len(samples)]}
        data += samples
        rows = []
        for tag, values in sorted(entries.items()):
            raw = struct.pack(f"<{len(values)}I", *values)
            if len(raw) > 4:
                raw, at = struct.pack("<I", len(data)), raw
                data += at
            rows.append(struct.pack("<HHI", tag, 4, len(values)) + raw)
        data[link : link + 4] = struct.pack("<I", len(data))
        data += struct.pack("<H", len(rows)) + b"".join(rows)
        link = len(data)
        data += bytes(4)
    return bytes(data)


def page(pixels: Pixels, **more: list[int]) -> tuple[Tags, bytes]:
    """A page of eight bits a sample; ``more`` are tags by their numbers, such as ``_254``."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else 3
    kind = {258: [8] * samples, 259: [1], 262: [1 if samples == 1 else 2], 277: [samples]}
    own: Tags = {int(name[1:]): values for name, values in more.items()}
    return {256: [width], 257: [height], 278: [height], **kind, **own}, pixels.tobytes()


def test_deep_grey_of_which_white_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    tags, _ = page(GREY, _258=[16], _262=[0])
    path.write_bytes(tiff((tags, (65535 - GREY.astype("<u2") * 257).tobytes())))
    assert difference(only(path)[..., 0], GREY) == 0


def test_masks_and_previews_are_no_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    mask = ({256: [61], 257: [47], 258: [1], 259: [1], 262: [4], 254: [4]}, bytes(8 * 47))
    preview = page(COLOURS[::4, ::4].copy(), _254=[1])
    path.write_bytes(tiff(preview, page(COLOURS), mask, page(COLOURS[::-1].copy())))
    scanned, (first, second) = read(path)
    assert (scanned.info.width, scanned.info.height, scanned.warnings) == (61, 47, ())
    assert difference(first, COLOURS) == difference(second, COLOURS[::-1]) == 0


def test_a_page_of_a_kind_that_is_not_read_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(page(COLOURS), page(COLOURS, _258=[12, 12, 12])))
    scanned, (first,) = read(path)
    assert scanned.warnings == ("1 of its 2 pictures is missing or damaged",)
    assert difference(first, COLOURS) == 0


def test_of_a_raw_photo_the_preview_is_taken_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.dng"
    path.write_bytes(tiff(page(COLOURS, _254=[1], _274=[6], _50706=[0x401])))
    scanned, (pixels,) = read(path)
    [warning] = scanned.warnings
    assert warning.startswith("the main picture of this raw photo is not indexed: its preview of ")
    assert difference(pixels, np.rot90(COLOURS, -1)) == 0


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"_259": [50001]}, "it is a TIFF with compression 50001, which is not read here"),
        ({"_262": [32803]}, "a TIFF of 8 bits a sample in colour space raw, which is not read"),
        ({"_258": [16], "_339": [3]}, "a TIFF of 16 bits a sample, floating point in colour"),
        (
            {"_258": [8] * 3, "_277": [3], "_262": [2], "_339": [2] * 3},
            "8 bits a sample, signed in",
        ),
    ],
)
def test_a_tiff_that_is_not_read_fails_with_its_kind(
    tags: dict[str, list[int]], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(page(GREY, **tags)))
    with pytest.raises(VideoError, match=reason) as raised:
        scan_picture(MediaSource(path.name, path=path))
    assert "damaged" not in raised.value.reason


def test_a_big_tiff_in_big_endian_order_fails_with_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"MM\0+\0\x08\0\0" + struct.pack(">Q", 16) + bytes(64))
    with pytest.raises(VideoError, match="it is a BigTIFF in big-endian order"):
        scan_picture(MediaSource(path.name, path=path))


@pytest.mark.timeout(20)
def test_a_big_tiff_whose_next_page_lies_beyond_any_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(COLOURS).save(path, big_tiff=True)
    raw = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<Q", raw, 8)
    (tags,) = struct.unpack_from("<Q", raw, at)
    struct.pack_into("<Q", raw, at + 8 + 20 * tags, 2**63 + 5)
    path.write_bytes(raw)
    assert difference(only(path), COLOURS) < 1


def test_further_pages_that_only_pillow_would_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    deep = (COLOURS.astype("<f4") / 255).tobytes()
    tags, _ = page(COLOURS, _258=[32] * 3, _339=[3] * 3)
    path.write_bytes(tiff((tags, deep), (tags, deep)))
    scanned, (pixels,) = read(path)
    assert scanned.warnings == ("its further pages are not indexed",)
    assert difference(pixels, COLOURS) <= 1


def test_a_tiff_that_is_cut_off_in_its_tags(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(COLOURS).quantize(250).save(path)
    (whole, raw) = only(path), path.read_bytes()
    path.write_bytes(raw[:-3])  # of the last colour
    scanned, (pixels,) = read(path)
    assert scanned.warnings == ("the picture is damaged or cut off: 99% of it could be read",)
    assert difference(pixels, whole) < 1
    Image.fromarray(COLOURS).save(path, compression="jpeg")
    path.write_bytes(path.read_bytes()[:-300])  # Pillow writes the tags last
    with pytest.raises(VideoError, match="the tags of its first page are incomplete"):
        scan_picture(MediaSource(path.name, path=path))


@pytest.mark.parametrize(
    ("name", "cut", "share"),
    [("fields-565.bmp", 400, 0.93), ("lossless.jpg", 300, 0.85), ("picture.png", 20, 0.99)],
)
def test_pictures_that_are_cut_short(name: str, cut: int, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    raw = (STILLS / name).read_bytes()
    if name.endswith("png"):  # in a text behind the picture
        raw = raw[:-12] + b"\0\0\0\x28tEXt" + b"date:create\0" + bytes(32)
    whole = only(STILLS / name)
    path.write_bytes(raw[:-cut])
    scanned, (pixels,) = read(path)
    [warning] = scanned.warnings
    assert warning.startswith("the picture is damaged or cut off: ")
    assert int(warning.split()[-6].rstrip("%")) == pytest.approx(100 * share, abs=4)
    assert difference(pixels[10:36], whole[10:36]) < 1


@pytest.mark.parametrize(("cut", "share", "row"), [(3, 0.99, 96), (9000, 0.72, 64)])
def test_tiles_that_are_missing(cut: int, share: float, row: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(1, 255, (96, 96, 3)).astype(np.uint8)
    path = tmp_path / "tiles.j2k"
    Image.fromarray(noise).save(path, tile_size=(32, 32))
    path.write_bytes(path.read_bytes()[:-cut])
    scanned, (pixels,) = read(path)
    assert scanned.lost_share == pytest.approx(1 - share, abs=0.03)
    assert (pixels[: row - 1] == noise[: row - 1]).mean() > 0.99


def test_a_tile_that_promises_more_than_there_can_be(tmp_path: Path) -> None:
    path = tmp_path / "a.j2k"
    Image.fromarray(COLOURS).save(path)
    data = bytearray(path.read_bytes())
    tile = data.index(b"\xff\x90")
    data[tile + 6 : tile + 10] = b"\x10\0\0\0"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(VideoError):
            scan_picture(MediaSource(path.name, path=path))
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def _jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "JPEG", **options)
    return buffer.getvalue()


_HEIC = (STILLS / "cropped.heic").read_bytes()
_SAYS = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf GCamera:MotionPhoto="1"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("name", "data", "left_out"),
    [
        ("appended.jpg", _jpeg() + FILM, "video of this motion photo"),
        ("trailer.jpg", _jpeg() + b"\0\0\x30\x0aMotionPhoto_Data" + FILM, "video of this motion"),
        ("box.heic", _HEIC + b"\0\0\0\x40mpvd" + FILM, "video of this motion photo"),
        ("sequence.heic", _HEIC + b"\0\0\0\x10moov" + bytes(8), "image sequence of this file"),
        ("lost.jpg", _jpeg(xmp=_SAYS), None),  # a messenger has cut the video off
        ("rubbish.jpg", _jpeg() + bytes(range(256)) * 9, None),
    ],
)
def test_films_in_pictures(name: str, data: bytes, left_out: str | None, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    scanned, _ = read(path)
    assert len(scanned.warnings) == (left_out is not None), scanned.warnings
    if left_out is not None:
        assert left_out in scanned.warnings[0]


@pytest.mark.parametrize("name", ["plain.jp2", "deep.jp2", "half.jp2"])
def test_the_profile_of_a_jpeg_2000(name: str, tmp_path: Path) -> None:
    with Image.open(REPORTS / "png-rgba-display-p3.png") as image:
        profile: bytes = image.info["icc_profile"]
    raw = (STILLS / name).read_bytes()
    head, colours = raw.index(b"jp2h") - 4, raw.index(b"colr") - 4
    size = int.from_bytes(raw[colours : colours + 4])
    box = struct.pack(">I4s3B", 11 + len(profile), b"colr", 2, 0, 0) + profile
    length = int.from_bytes(raw[head : head + 4]) + len(box) - size
    path = tmp_path / name
    path.write_bytes(
        raw[:head]
        + struct.pack(">I", length)
        + raw[head + 4 : colours]
        + box
        + raw[colours + size :]
    )
    picture = Image.fromarray(only(STILLS / name))
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    wanted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"))
    assert wanted is not None
    found = only(path)
    assert difference(found, np.asarray(wanted)) < (8 if name.startswith("half") else 1)
    assert difference(found, np.asarray(picture)) > 2


def test_an_animated_png_of_deep_grey(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(animated(header=DEEP_GREY, pixels=GREY.astype(">u2") * 257))
    _, frames = read(path)
    assert [difference(pixels[..., 0], GREY) for pixels in frames] == [0, 0]


@pytest.mark.parametrize(
    ("primaries", "transfer", "mapper"),
    [(9, 16, ("pq", "bt2020")), (11, 13, ("sdr", "p3")), (12, 13, ("sdr", "p3"))],
)
def test_a_png_with_code_points_of_other_colours(
    primaries: int, transfer: int, mapper: tuple[Transfer, Primaries], tmp_path: Path
) -> None:
    path = tmp_path / "screen.png"
    path.write_bytes(still((b"cICP", bytes([primaries, transfer, 0, 1]))))
    mapped = ToneMapper(*mapper).apply(COLOURS.astype(np.uint16) * 257)
    assert difference(only(path), mapped) == 0


@pytest.mark.parametrize("opacity", [0, 255])
def test_a_bitmap_whose_opacity_nobody_wrote(opacity: int, tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    codes = np.dstack([COLOURS[..., ::-1], np.full_like(GREY, opacity)])
    head = struct.pack("<IiiHHIIiiII", 124, 61, 47, 1, 32, 3, codes.size, 0, 0, 0, 0)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    start = struct.pack("<2sIII", b"BM", 138 + codes.size, 0, 138)
    path.write_bytes((start + head + masks).ljust(138, b"\0") + codes[::-1].tobytes())
    assert difference(only(path), COLOURS) == 0


@pytest.mark.parametrize("make", [still, animated])
def test_a_png_with_gamma_and_chromaticities(make: Callable[..., bytes], tmp_path: Path) -> None:
    """As the PNG specification has it: only where nothing else tells the colours."""
    path = tmp_path / "a.png"

    def pixels(*chunks: tuple[bytes, bytes]) -> Pixels:
        path.write_bytes(make(*chunks))
        _, frames = read(path)
        assert all((frame == frames[0]).all() for frame in frames)
        return frames[0]

    assert difference(pixels(gamma(1 / 2.2), chromaticities(SRGB)), COLOURS) == 0
    assert difference(pixels((b"sRGB", b"\0"), gamma(1.0)), COLOURS) == 0
    assert difference(pixels(gamma(0.0)), COLOURS) == 0
    light = COLOURS / 255
    assert np.abs(pixels(gamma(1.0)) - 255 * srgb(light)).max() < 0.51
    wide = np.clip(light**2.2 @ TO_BT709["p3"].T, 0, 1)
    told = pixels(gamma(1 / 2.2), chromaticities(P3))
    assert np.abs(told - 255 * srgb(wide)).max() < 1
    described = pixels(gamma(1.0), (b"cICP", bytes([12, 13, 0, 1])))
    assert difference(described, told) < 2


@pytest.mark.parametrize("values", [(0.0,) * 8, (0.3, 0.3) * 4, (0.3127, 0.3290, *(0.5, 0.0) * 3)])
def test_chromaticities_that_make_no_sense(values: tuple[float, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(still(gamma(1 / 2.2), chromaticities(values)))
    assert difference(only(path), COLOURS) == 0


LONG_TEXT = zlib.compress(bytes(2**21))
UNREADABLE = {
    "long text": (b"zTXt", b"Comment\0\0" + LONG_TEXT),
    "long international text": (b"iTXt", b"Comment\0\1\0\0\0" + LONG_TEXT),
    "text compressed otherwise": (b"zTXt", b"Comment\0x"),
    "a profile compressed otherwise": (b"iCCP", b"a\0x"),
    "a profile without a name": (b"iCCP", b""),
    "a long profile": (b"iCCP", b"a\0\0" + LONG_TEXT),
    "no gamma": (b"gAMA", b""),
    "half chromaticities": (b"cHRM", bytes(5)),
    "no resolution": (b"pHYs", b""),
    "a transparent colour cut short": (b"tRNS", b"\0"),
    "frames out of order": (b"fcTL", struct.pack(">5I2H2B", 5, 61, 47, 0, 0, 1, 2, 0, 0)),
    "text named like a gamma": (b"tEXt", b"gamma\x001.0"),
    "text named like a profile": (b"tEXt", b"icc_profile\0sRGB"),
    "text named like transparency": (b"tEXt", b"transparency\0none"),
    "text named like EXIF": (b"tEXt", b"exif\0none"),
}


@pytest.mark.parametrize("make", [still, animated])
@pytest.mark.parametrize("what", UNREADABLE)
def test_damaged_metadata_of_a_png_is_ignored(
    what: str, make: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(make(UNREADABLE[what]))
    scanned, frames = read(path)
    assert scanned.warnings == ()
    assert scanned.lost_share == 0
    assert [difference(frame, COLOURS) for frame in frames] == [0] * len(frames)


@pytest.mark.parametrize("text", [(b"tEXt", b"Comment\0of a cat"), gamma(1 / 2.2)])
def test_a_wrong_checksum_of_metadata_is_no_damage(
    text: tuple[bytes, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    data = bytearray(still(text))
    data[data.index(text[0]) + 4 + len(text[1])] ^= 1
    path.write_bytes(data)
    scanned, [pixels] = read(path)
    assert scanned.warnings == ()
    assert difference(pixels, COLOURS) < 1


def test_an_orientation_in_the_text_of_a_png(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    path = tmp_path / "a.png"
    path.write_bytes(still((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)))
    assert difference(only(path), np.rot90(COLOURS, -1)) == 0


@pytest.mark.parametrize("after", [False, True])
def test_an_animated_png_is_turned_by_its_exif(after: bool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    chunk = (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    path = tmp_path / "a.png"
    path.write_bytes(animated(after=(chunk,)) if after else animated(chunk))
    scanned, frames = read(path)
    assert (scanned.info.width, scanned.info.height) == (47, 61)
    assert [difference(frame, np.rot90(COLOURS, -1)) for frame in frames] == [0, 0]


@pytest.mark.parametrize("kind", ["still", "animated"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 48])
def test_one_transparent_colour_of_a_png(bits: int, kind: str, tmp_path: Path) -> None:
    """Grey, or colours of 16 bits: the first two rows have it, the others the next one."""
    deep = bits == 48
    if deep:
        keyed, other = struct.pack(">3H", 0x1234, 0x5678, 0), struct.pack(">3H", 0x1234, 0x5678, 1)
        rows, key = [keyed * 8, other * 8], keyed
    else:
        size = max(1, bits // 8)
        codes = [code << 8 - bits if bits < 8 else code for code in (0, 1)]
        rows = [
            sum(code >> n * bits for n in range(8 // bits)).to_bytes(1) * bits
            if bits < 8
            else code.to_bytes(size) * 8
            for code in codes
        ]
        key = struct.pack(">H", 0)
    if 1 < bits < 16:  # zero is the same in every form
        rows, key = rows[::-1], struct.pack(">H", 1)
    data = zlib.compress(b"".join(b"\0" + rows[n // 2] for n in range(4)))
    header = struct.pack(">IIBBBBB", 8, 4, 16 if deep else bits, 2 if deep else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", data), (b"IEND", b"")]
    if kind == "animated":
        chunks[2:2] = [
            (b"acTL", struct.pack(">II", 1, 0)),
            (b"fcTL", struct.pack(">5I2H2B", 0, 8, 4, 0, 0, 1, 2, 0, 0)),
        ]
    path = tmp_path / "a.png"
    path.write_bytes(png_of(*chunks))
    pixels = only(path)
    assert (pixels[:2] == 255).all()
    assert bits == 1 or (pixels[2:] < 255).any(axis=2).all()


def test_further_views_of_a_stereo_camera_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    left, right = Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1].copy())
    left.save(path, "MPO", save_all=True, append_images=[right])
    content = path.read_bytes()
    assert read(path)[0].warnings == (), "a preview, or a map of light"
    at = content.index(b"\x02\xb0\x07\0")  # the tag of the entries, with the offset of their values
    entries = content.index(b"MPF\0") + 4 + int.from_bytes(content[at + 8 : at + 12], "little")
    second = entries + 16
    path.write_bytes(content[:second] + struct.pack("<I", 0x020002) + content[second + 4 :])
    scanned, _ = read(path)
    assert scanned.warnings == ("1 further view of this picture is not indexed",)
