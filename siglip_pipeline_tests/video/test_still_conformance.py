"""Pictures of many kinds decode to what a reference decoder shows.

data/stills holds one picture in many formats, with the commands that made them; data/reports holds
inputs of public bug reports. Both are small and in the repository, so no other program is needed.
"""

import io
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from siglip_pipeline.errors import QueryError, VideoError
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.extract import DecodeOptions, extract_frames
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline.video.picture_decoder import PictureDecoder
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.stills import StillScan, is_picture, picture_frames, scan_picture
from siglip_pipeline_tests.png_chunks import png_chunk, png_of
from siglip_pipeline_tests.video.heif_boxes import clap, imir, irot, with_property

DATA = Path(__file__).parents[1] / "data"
STILLS = DATA / "stills"
REPORTS = DATA / "reports"
RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 220, 40)
Pixels = NDArray[np.uint8]


def read(path: Path) -> tuple[StillScan, list[Pixels]]:
    source = MediaSource(path.name, path=path)
    assert is_picture(source)
    scanned = scan_picture(source)
    wanted = np.arange(scanned.pts_N.size)
    frames = [pixels for _, pixels in picture_frames(source, wanted, longest_side=None)]
    assert len(frames) == scanned.info.frame_count
    return scanned, frames


def only(path: Path) -> Pixels:
    scanned, (pixels,) = read(path)
    assert scanned.warnings == ()
    assert pixels.shape[:2] == (scanned.info.height, scanned.info.width)
    return pixels


def difference(one: Pixels, other: Pixels) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other).mean())


def corners(pixels: Pixels) -> list[tuple[int, ...]]:
    return [tuple(pixels[y, x].tolist()) for y in (10, -10) for x in (10, -10)]


def close(found: list[tuple[int, ...]], wanted: list[tuple[int, ...]], within: int = 3) -> bool:
    return bool(np.abs(np.array(found) - np.array(wanted)).max() <= within)


@pytest.fixture(scope="module")
def picture() -> Pixels:
    with Image.open(STILLS / "picture.png") as image:
        return np.array(image.convert("RGB"))


@pytest.fixture(scope="module")
def queries() -> PictureDecoder:
    return PictureDecoder(children=1)


def on_white(pixels: Pixels) -> Pixels:
    return np.asarray(np.rint(pixels * (128 / 255) + 127), np.uint8)


MADE = sorted(path.name for path in STILLS.iterdir() if path.suffix not in (".md", ".sh"))
LOSSY = {".heic": 2.5, ".jp2": 2.5}
BOUNDS = {
    "lab.tif": 10.0,  # ImageMagick's white point is D65, that of ICC and of cameras D50
    "fields-565.bmp": 4.0,
    "half-fields-4444.bmp": 6.0,
}


@pytest.mark.parametrize("name", MADE)
def test_each_format_shows_the_same_picture(
    picture: Pixels, queries: PictureDecoder, name: str
) -> None:
    if "grey" in name:
        picture = np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))
    wanted = on_white(picture) if name.startswith("half") else picture
    if name.startswith("turned"):
        wanted = np.rot90(wanted, -1)
    path = STILLS / name
    indexed = only(path)
    assert difference(indexed, wanted) <= BOUNDS.get(name, LOSSY.get(path.suffix, 1.0))
    # A child, which can import and open nothing any more, gives the same pixels.
    assert difference(queries.decode(path.read_bytes()), indexed) == 0


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("heic-grid-of-4-tiles.heic", [RED, GREEN, BLUE, YELLOW]),
        ("heic-grid-with-exif.heic", [RED, GREEN, BLUE, YELLOW]),
        ("avif-exif-major-brand-mif1.avif", [BLUE, RED, YELLOW, GREEN]),
        ("tiff.tif", [RED, GREEN, BLUE, YELLOW]),
        ("png-rgba-display-p3.png", [(240, 0, 1), (0, 204, 0), (30, 30, 229), (232, 220, 0)]),
    ],
)
def test_the_inputs_of_bug_reports(
    queries: PictureDecoder, name: str, wanted: list[tuple[int, ...]]
) -> None:
    pixels = only(REPORTS / name)
    sizes = {"heic": (512, 512), "avif": (320, 240)}
    assert pixels.shape[:2] == sizes.get(name.rpartition(".")[2], (240, 320))
    assert close(corners(pixels), wanted)
    assert difference(queries.decode((REPORTS / name).read_bytes()), pixels) == 0


@pytest.mark.parametrize(
    ("boxes", "turned"),
    [
        ([irot(1)], lambda pixels: np.rot90(pixels, 1)),
        ([irot(2)], lambda pixels: np.rot90(pixels, 2)),
        ([irot(3)], lambda pixels: np.rot90(pixels, 3)),
        ([imir(0)], np.flipud),
        ([imir(1)], np.fliplr),
        ([irot(1), imir(1)], lambda pixels: np.fliplr(np.rot90(pixels, 1))),
        ([clap(31, 21)], lambda pixels: pixels[13:34, 15:46]),
    ],
)
def test_heif_is_turned_mirrored_and_cropped_by_its_properties(
    tmp_path: Path, picture: Pixels, boxes: list[bytes], turned: object
) -> None:
    assert callable(turned)
    heic = (STILLS / "cropped.heic").read_bytes()
    for box in boxes:
        heic = with_property(heic, box)
    path = tmp_path / "a.heic"
    path.write_bytes(heic)
    assert difference(only(path), turned(picture)) < 4


@pytest.mark.parametrize(
    ("boxes", "turned"),
    [
        ([clap(30, 20)], lambda pixels: pixels[10:30, 15:45]),
        ([clap(30, 20), irot(1)], lambda pixels: np.rot90(pixels[10:30, 15:45])),
        # As libheif rounds halves, and cuts off what lies outside.
        ([clap(31, 21)], lambda pixels: pixels[10:31, 14:45]),
        ([clap("61/2", "41/2")], lambda pixels: pixels[10:31, 14:45]),
        ([clap(30, 20, "1/2", "1/2")], lambda pixels: pixels[11:31, 15:45]),
        ([clap(29, 19, "1/3", "2/3")], lambda pixels: pixels[11:30, 15:44]),
        ([clap(30, 20, 16, -11)], lambda pixels: pixels[:20, 31:]),
        ([clap(31, 20, "-15")], lambda pixels: pixels[10:30, :31]),
    ],
)
def test_avif_is_cropped_by_its_property(
    tmp_path: Path, picture: Pixels, boxes: list[bytes], turned: object
) -> None:
    assert callable(turned)
    even = np.array(picture[:40, :60])
    buffer = io.BytesIO()
    Image.fromarray(even).save(buffer, "AVIF", quality=100, subsampling="4:4:4")
    avif = buffer.getvalue()
    for box in boxes:
        avif = with_property(avif, box)
    path = tmp_path / "a.avif"
    path.write_bytes(avif)
    assert difference(only(path), turned(even)) < 3


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_monochrome_avif(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.avif"
    shade = Image.linear_gradient("L").resize((64, 64))
    picture = Image.merge("LA", (shade, Image.new("L", (64, 64), 128))) if mode == "LA" else shade
    picture.save(path, quality=95, subsampling="4:0:0")
    assert b"pixi\0\0\0\0\1\x08" in path.read_bytes(), "one channel"
    wanted = np.asarray(shade.convert("RGB"))
    assert difference(only(path), on_white(wanted) if mode == "LA" else wanted) < 1.5


@pytest.mark.parametrize("name", ["grey.heic", "half-grey.heic"])
def test_the_monochrome_heic_has_one_channel(name: str) -> None:
    heic = (STILLS / name).read_bytes()
    assert heic[heic.index(b"hvcC") + 20] & 3 == 0, "4:0:0"


def test_a_child_indexes_every_format_and_reports_warnings(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    for name in MADE:
        shutil.copy(STILLS / name, folder)
    (folder / "cut.heic").write_bytes((STILLS / "cropped.heic").read_bytes()[:-8])
    uploads = UploadStore(folder, settle_seconds=0)
    store = FrameStore(tmp_path / "frames")
    reports = {
        name: extract_frames(
            uploads.get(name), uploads, store, sampling="fps:1", options=DecodeOptions()
        )
        for name in [*MADE, "cut.heic"]
    }
    assert {name: report.frames for name, report in reports.items()} == dict.fromkeys(reports, 1)
    warned = [name for name, report in reports.items() if report.warnings]
    assert warned == ["cut.heic"]


def rgba_rows(colour: tuple[int, int, int, int], size: int) -> bytes:
    return zlib.compress((b"\0" + bytes(colour) * size) * size)


def frame_control(number: int, size: int, at: int, *, disposal: int = 0, blend: int = 1) -> bytes:
    return struct.pack(">5I2H2B", number, size, size, at, at, 1, 2, disposal, blend)


def test_the_default_image_of_an_animated_png_is_no_frame(tmp_path: Path) -> None:
    """Its frames begin on an empty canvas, independent of the default image."""
    path = tmp_path / "a.png"
    clear, green, red = (0, 0, 0, 0), (0, 255, 0, 255), (255, 0, 0, 255)
    path.write_bytes(
        png_of(
            (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 6, 0, 0, 0)),
            (b"acTL", struct.pack(">II", 3, 0)),
            (b"IDAT", rgba_rows(red, 8)),
            (b"fcTL", frame_control(0, 8, 0)),
            (b"fdAT", struct.pack(">I", 1) + rgba_rows(clear, 8)),
            (b"fcTL", frame_control(2, 4, 2, disposal=1)),
            (b"fdAT", struct.pack(">I", 3) + rgba_rows(green, 4)),
            (b"fcTL", frame_control(4, 2, 0)),
            (b"fdAT", struct.pack(">I", 5) + rgba_rows(red, 2)),
            (b"IEND", b""),
        )
    )
    scanned, (first, second, third) = read(path)
    assert scanned.pts_N.tolist() == [0, 500, 1000]
    assert (first == 255).all()
    assert (second[2:6, 2:6] == (0, 255, 0)).all()
    assert (second[:2] == 255).all()
    assert (third[:2, :2] == (255, 0, 0)).all()
    assert (third[2:] == 255).all(), "disposed to the background: nothing is there"


def gif(*frames: tuple[int, int, int, int], screen: int = 8) -> bytes:
    """Patches of a square screen: offset, size, colour and disposal of each."""
    parts = [b"GIF89a", struct.pack("<HHBBB", screen, screen, 0x81, 0, 0)]
    palette = bytes((0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255))
    parts.append(palette)
    for at, size, colour, disposal in frames:
        pixels = Image.new("P", (size, size), colour)
        pixels.putpalette(palette)
        buffer = io.BytesIO()
        pixels.save(buffer, "GIF", optimize=False)
        raw = buffer.getvalue()
        image = raw.index(b",", 13 + 3 * 2 ** (1 + (raw[10] & 7)))
        parts.append(b"!\xf9\4" + struct.pack("<BHB", disposal << 2, 50, 0) + b"\0")
        parts.append(b"," + struct.pack("<HHHHB", at, at, size, size, 0) + raw[image + 10 : -1])
    return b"".join([*parts, b";"])


@pytest.mark.parametrize("screen", [0, 1, 8])
def test_a_gif_is_as_large_as_its_first_picture_needs(screen: int, tmp_path: Path) -> None:
    """As in browsers, which crop the others."""
    path = tmp_path / "a.gif"
    path.write_bytes(gif((2, 8, 1, 1), (4, 8, 2, 1), screen=screen))
    scanned, (first, second) = read(path)
    assert (scanned.info.width, scanned.info.height) == (10, 10)
    assert (first[2:, 2:] == (255, 0, 0)).all()
    assert (first[:2] == 255).all()
    assert (second[4:, 4:] == (0, 255, 0)).all()


def test_what_a_gif_clears_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(gif((0, 8, 1, 1), (2, 4, 2, 2), (0, 2, 3, 3), (6, 2, 3, 1)))
    scanned, frames = read(path)
    assert scanned.pts_N.tolist() == [0, 500, 1000, 1500]
    assert (frames[0] == (255, 0, 0)).all()
    assert (frames[1][2:6, 2:6] == (0, 255, 0)).all()
    assert (frames[2][2:6, 2:6] == 255).all(), "cleared: no black box"
    assert (frames[2][:2, :2] == (0, 0, 255)).all()
    assert (frames[3][:2, :2] == (255, 0, 0)).all(), "what was there before"
    assert (frames[3][6:, 6:] == (0, 0, 255)).all()


def test_every_page_of_a_tiff_is_a_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    first, *others = (Image.new("RGB", (20 + n, 10), (50 * n, 0, 0)) for n in range(4))
    first.save(path, save_all=True, append_images=others)
    scanned, frames = read(path)
    assert scanned.pts_N.tolist() == [0, 1000, 2000, 3000]
    assert [pixels[5, 5, 0] for pixels in frames] == [0, 50, 100, 150]
    assert [pixels.shape[1] for pixels in frames] == [20, 21, 22, 23]


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("RGB", suffix) for suffix in ("png", "tif", "webp", "avif", "jpg")),
        *(("RGBA", suffix) for suffix in ("png", "tif", "webp", "avif")),
        *(("P", suffix) for suffix in ("png", "tif")),
        ("PA", "png"),
    ],
)
def test_profiles_are_applied_in_every_mode(tmp_path: Path, mode: str, suffix: str) -> None:
    with Image.open(REPORTS / "png-rgba-display-p3.png") as image:
        profile = image.info["icc_profile"]
    path = tmp_path / f"a.{suffix}"
    colour = Image.new("RGB", (16, 16), RED)
    more: dict[str, Any] = {"transparency": 5} if mode == "PA" else {}
    picture = colour.quantize(4) if mode.startswith("P") else colour.convert(mode)
    picture.save(path, icc_profile=profile, lossless=True, quality=100, **more)
    assert close([tuple(only(path)[8, 8].tolist())], [(240, 0, 1)], within=4)


def test_grey_with_a_profile_of_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("LA", (8, 8), (100, 255)).save(path, icc_profile=srgb)
    assert close([tuple(only(path)[4, 4].tolist())], [(100, 100, 100)], within=1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_cannot_be_parsed_is_passed_over(tmp_path: Path, picture: Pixels) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    raw = buffer.getvalue()
    text = b"Raw profile type exif\0\nexif\n      20\nno hexadecimal number\n"
    path = tmp_path / "a.png"
    path.write_bytes(raw[:33] + png_chunk(b"tEXt", text) + raw[33:])
    assert difference(only(path), picture) == 0
    jpeg = tmp_path / "a.jpg"
    Image.fromarray(picture).save(jpeg, exif=b"Exif\0\0II*\0\xff\xff\xff\xff rubbish")
    assert only(jpeg).shape == picture.shape


ENDINGS: dict[str, dict[str, Any]] = {
    "a.jpg": {"quality": 90},
    "progressive.jpg": {"quality": 90, "progressive": True},
    "a.png": {},
    "a.gif": {},
    "a.webp": {"quality": 80},
    "lossless.webp": {"lossless": True},
    "a.bmp": {},
    "a.jp2": {},
    "a.j2k": {},
    "a.avif": {},
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_picture_that_is_cut_short_is_taken_with_a_warning(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(1).normal(0, 12, (96, 160, 3))
    picture = np.clip(np.linspace(60, 190, 160)[None, :, None] + noise, 1, 255).astype(np.uint8)
    path = tmp_path / name
    Image.fromarray(picture).save(path, **ENDINGS[name])
    whole = only(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: -len(raw) // 12])
    scanned, (pixels,) = read(path)
    assert "damaged or cut off" in scanned.warnings[0]
    assert 0 <= scanned.lost_share < 0.3
    assert difference(pixels[20:70], whole[20:70]) < 4
    path.write_bytes(raw[:40])
    with pytest.raises(VideoError, match="damaged or cut off"):
        scan_picture(MediaSource(name, path=path))


def test_a_heic_that_is_cut_short(tmp_path: Path, picture: Pixels) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes((STILLS / "cropped.heic").read_bytes()[:-8])
    scanned, (pixels,) = read(path)
    assert "cut off" in scanned.warnings[0]
    assert difference(pixels[:30], picture[:30]) < 4


def test_a_query_that_is_cut_off_is_refused(queries: PictureDecoder) -> None:
    with pytest.raises(QueryError, match="cut off HEIF picture"):
        queries.decode((STILLS / "cropped.heic").read_bytes()[:-8])


def test_a_tiff_that_is_not_read_is_not_called_damaged(
    tmp_path: Path, queries: PictureDecoder
) -> None:
    """Three whole numbers of 32 bits a pixel: FFmpeg would take them for floats."""
    tags = [
        *((256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 24)),
    ]
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    data += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path = tmp_path / "a.tif"
    path.write_bytes(data.ljust(134, b"\0") + struct.pack("<3H", 32, 32, 32) + bytes(24))
    told = "a TIFF of 32 bits a sample in colour space RGB, which is not read here: save it as RGB"
    with pytest.raises(VideoError, match=told) as raised:
        scan_picture(MediaSource(path.name, path=path))
    assert "damaged" not in raised.value.reason
    with pytest.raises(QueryError, match=told):
        queries.decode(path.read_bytes())


def test_a_patch_may_not_be_larger_than_a_picture(tmp_path: Path) -> None:
    """Its screen is small: the patch alone would take four gigabytes."""
    path = tmp_path / "a.gif"
    raw = bytearray(gif((0, 8, 1, 1), (0, 8, 2, 1)))
    at = raw.index(b",", raw.index(b",") + 1)
    raw[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    with pytest.raises(VideoError, match="65535x65535"):
        scan_picture(MediaSource(path.name, path=path))
