"""Orientation, pixel shape, range, matrix and HDR of decoded pictures."""

import itertools
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from siglip_pipeline.video.decode import decode_frames
from siglip_pipeline.video.geometry import DisplayGeometry, usable_sample_aspect_ratio
from siglip_pipeline.video.picture import PictureMaker, encode_jpeg, hash_distance, perceptual_hash
from siglip_pipeline.video.plan import plan_decode
from siglip_pipeline.video.scan import scan
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.video.probing import probe
from siglip_pipeline_tests.video.rendering import numbered_picture, render

CORNERS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (90,) * 3}


def corner_picture(width: int = 160, height: int = 96) -> NDArray[np.uint8]:
    """Red, green, blue, grey in the corners: left to right, top to bottom."""
    picture = np.zeros((height, width, 3), np.uint8)
    red, green, blue, grey = CORNERS.values()
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = red, green
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = blue, grey
    return picture


def corners(pixels_HWC: NDArray[np.uint8]) -> list[str]:
    height, width = pixels_HWC.shape[:2]
    places = itertools.product((height // 4, height * 3 // 4), (width // 4, width * 3 // 4))
    return [
        min(CORNERS, key=lambda name: int(np.abs(pixels_HWC[y, x] - np.array(CORNERS[name])).sum()))
        for y, x in places
    ]


def first_picture(path: Path, longest_side: int | None = None) -> NDArray[np.uint8]:
    source = MediaSource(path.name, path=path)
    scanned = scan(source)
    plan = plan_decode(scanned.packets, np.array([0]))
    (decoded,) = decode_frames(source, scanned, plan)
    maker = PictureMaker(longest_side=longest_side)
    return maker.rgb(decoded.frame, scanned.geometry(decoded.frame))


R, G, B, W = "red", "green", "blue", "grey"


@pytest.mark.parametrize(
    ("rotation", "expected", "clockwise"),
    [
        ((0, False, False), [R, G, B, W], 0),
        ((-90, False, False), [B, R, W, G], 90),
        ((180, False, False), [W, B, G, R], 180),
        ((90, False, False), [G, W, R, B], 270),
        ((0, True, False), [G, R, W, B], None),
        ((0, False, True), [B, W, R, G], None),
        ((90, True, False), None, None),
        ((-90, False, True), None, None),
    ],
)
def test_rotation_and_mirroring(
    tmp_path: Path,
    rotation: tuple[int, bool, bool],
    expected: list[str] | None,
    clockwise: int | None,
) -> None:
    path = render(tmp_path / "turned.mp4", pictures=[corner_picture()] * 2, rotation=rotation)
    pixels = first_picture(path)
    turned_sideways = rotation[0] in (90, -90)
    assert pixels.shape[:2] == ((160, 96) if turned_sideways else (96, 160))
    info = probe(path)
    assert (info.height, info.width) == pixels.shape[:2]
    if clockwise is not None:
        assert info.rotation_degrees == clockwise
    if expected is not None:
        assert corners(pixels) == expected
    assert corners(pixels) == corners(turned_by_the_matrix(path))


def turned_by_the_matrix(path: Path) -> NDArray[np.uint8]:
    """What the display matrix says, pixel by pixel (libavutil/display.h), without angles."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    identity = struct.pack("<9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    matrix = struct.unpack("<9i", identity if side_data is None else bytes(side_data))
    pixels = frame.to_ndarray(format="rgb24")
    # Send every pixel where the matrix says, and shift the result into view.
    a, b, c, d = (matrix[i] // 65536 for i in (0, 1, 3, 4))
    y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]]
    new_x, new_y = a * x + c * y, b * x + d * y
    new_x, new_y = new_x - new_x.min(), new_y - new_y.min()
    turned = np.zeros((new_y.max() + 1, new_x.max() + 1, 3), np.uint8)
    turned[new_y, new_x] = pixels
    return turned


def test_pixels_that_are_not_square_become_so(tmp_path: Path) -> None:
    path = render(
        tmp_path / "dvd.mpg",
        codec="mpeg2video",
        pictures=[corner_picture(704, 576)] * 3,
        width=704,
        height=576,
        sample_aspect_ratio=Fraction(16, 11),
    )
    assert (probe(path).width, probe(path).height) == (1024, 576)
    assert first_picture(path).shape == (576, 1024, 3)
    assert first_picture(path, longest_side=512).shape == (288, 512, 3)


@pytest.mark.parametrize(
    ("ratio", "usable"),
    [(None, 1), (Fraction(0), 1), (Fraction(-1), 1), (Fraction(10**6), 1), (Fraction(4, 3), None)],
)
def test_absurd_sample_aspect_ratios_are_not_applied(
    ratio: Fraction | None, usable: int | None
) -> None:
    assert usable_sample_aspect_ratio(ratio) == (ratio if usable is None else usable)


def test_narrow_pixels_gain_height() -> None:
    geometry = DisplayGeometry(
        coded_width=100, coded_height=50, sample_aspect_ratio=Fraction(1, 2), rotation_degrees=90
    )
    assert geometry.upright_size == (100, 100)
    assert geometry.fitted_size(10) == (10, 10)
    assert geometry.fitted_size(1000) == (100, 100)


def flat_frame(pixel_format: str, yuv: tuple[int, int, int]) -> VideoFrame:
    """One colour; ``yuv`` are 8-bit code values, scaled up for 10 bits."""
    frame = VideoFrame(32, 32, pixel_format)
    deep = "10" in pixel_format
    for plane, value in zip(frame.planes, yuv, strict=True):
        code = np.full(plane.buffer_size // (1 + deep), value << 2 * deep)
        plane.update(code.astype(np.uint16 if deep else np.uint8).tobytes())
    return frame


# H.273 table 4: (AVCOL_SPC, K_R, K_B); unspecified is BT.601.
MATRICES = [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (6, 0.299, 0.114), (2, 0.299, 0.114)]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(("matrix", "k_r", "k_b"), [*MATRICES, (9, 0.2627, 0.0593)])
def test_range_and_matrix_by_the_formula(
    pixel_format: str, full_range: bool, matrix: int, k_r: float, k_b: float
) -> None:
    """H.273 equations 8.3: within two of 255 for every colour."""
    geometry = DisplayGeometry(coded_width=32, coded_height=32)
    for yuv in itertools.product((70, 128, 180), (90, 128, 160), (90, 128, 160)):
        frame = flat_frame(pixel_format, yuv)
        frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
        pixel = PictureMaker(longest_side=None).rgb(frame, geometry)[16, 16]
        y, u, v = yuv
        luma = y / 255 if full_range else (y - 16) / 219
        blue_change, red_change = ((c - 128) / (255 if full_range else 224) for c in (u, v))
        red = luma + 2 * (1 - k_r) * red_change
        blue = luma + 2 * (1 - k_b) * blue_change
        green = (luma - k_r * red - k_b * blue) / (1 - k_r - k_b)
        truth = 255 * np.clip([red, green, blue], 0, 1)
        assert np.abs(pixel - truth).max() <= 2, (yuv, pixel, truth)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020"])
@pytest.mark.parametrize(
    ("codec", "pixel_format", "chroma_location"),
    [
        ("libvpx-vp9", "yuv420p", "auto"),
        ("libx264", "yuv420p", "left"),
        ("libx264", "yuv444p", "auto"),
        ("libx265", "yuv420p10le", "left"),
    ],
)
def test_colours_agree_with_ffmpegs_own_rgb(
    tmp_path: Path,
    full_range: bool,
    matrix: str,
    codec: str,
    pixel_format: str,
    chroma_location: str,
) -> None:
    """Equal to FFmpeg's scale filter with the stream's properties, within one of 255 everywhere."""
    path = render(
        tmp_path / "colours.mkv",
        codec=codec,
        frames=2,
        width=320,
        height=192,
        pixel_format=pixel_format,
        options={"x265-params": "log-level=none"} if codec == "libx265" else {},
        colorspace={"bt709": 1, "smpte170m": 6, "bt2020": 9}[matrix],
        color_range=2 if full_range else 1,
    )
    ours = first_picture(path).astype(int)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert frame.color_range == (2 if full_range else 1)
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream)
        scale = graph.add(
            "scale",
            f"in_color_matrix={matrix}:in_range={'pc' if full_range else 'tv'}:out_range=pc:"
            f"in_chroma_loc={chroma_location}:"
            "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp",
        )
        form, sink = graph.add("format", "gbrp"), graph.add("buffersink")
        graph.link_nodes(source, scale, form, sink).configure()
        graph.push(frame)
        pulled = graph.pull()
        assert isinstance(pulled, VideoFrame)
        theirs = np.asarray(pulled.to_ndarray(format="gbrp")).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_damaged_colour_descriptions_are_survived() -> None:
    geometry = DisplayGeometry(coded_width=32, coded_height=32)
    for matrix, full_range, transfer, primaries in itertools.product(
        (0, 3, 8, 13, 15, 200), (0, 1, 3, 77), (0, 3, 200), (0, 3, 200)
    ):
        frame = flat_frame("yuv420p", (128, 128, 128))
        frame.colorspace, frame.color_range = matrix, full_range
        frame.color_trc, frame.color_primaries = transfer, primaries
        pixel = PictureMaker(longest_side=None).rgb(frame, geometry)[0, 0]
        assert np.abs(pixel.astype(int) - 128).max() <= 3


def test_perceptual_hashes_tell_pictures_apart() -> None:
    picture = numbered_picture(3)
    same = np.clip(picture.astype(int) + 6, 0, 255).astype(np.uint8)
    other = numbered_picture(3)[::-1, ::-1]
    assert 0 <= perceptual_hash(picture) < 2**64
    assert hash_distance(perceptual_hash(picture), perceptual_hash(same)) <= 4
    assert hash_distance(perceptual_hash(picture), perceptual_hash(other)) >= 16


def test_jpeg_quality_has_an_effect() -> None:
    picture = numbered_picture(3)
    assert len(encode_jpeg(picture, quality=40)) < len(encode_jpeg(picture, quality=95))
