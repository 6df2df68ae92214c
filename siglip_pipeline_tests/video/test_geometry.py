"""Sizes and orientation, against the definitions: of FFmpeg's matrix, and of square pixels."""

import math
import struct
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from siglip_pipeline.video.geometry import (
    DisplayGeometry,
    orientation_of,
    usable_sample_aspect_ratio,
)

WIDTH, HEIGHT = 3, 2


def matrix_of(a: float, b: float, c: float, d: float) -> bytes:
    """A display matrix as FFmpeg stores it: 16.16 numbers, the last column 2.30."""
    rows = [round(value * 65536) for value in (a, b, 0, c, d, 0, 7, 9)]
    return struct.pack("<9i", *rows, 1 << 30)


def turned(degrees: float, *, mirrored: bool = False) -> tuple[float, float, float, float]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    flip = -1 if mirrored else 1
    return flip * cosine, flip * sine, -sine, cosine


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_picture_is_shown_where_the_matrix_puts_its_pixels(degrees: int, mirrored: bool) -> None:
    a, b, c, d = turned(degrees, mirrored=mirrored)
    pixels_HWC = np.arange(WIDTH * HEIGHT * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
    places = {
        (round(a * x + c * y), round(b * x + d * y)): pixels_HWC[y, x].tolist()
        for x in range(WIDTH)
        for y in range(HEIGHT)
    }
    columns, rows = (sorted({place[axis] for place in places}) for axis in (0, 1))
    expected = [[places[column, row] for column in columns] for row in rows]

    assert orientation_of(matrix_of(a, b, c, d)) == (degrees, mirrored)
    geometry = DisplayGeometry(
        coded_width=WIDTH, coded_height=HEIGHT, rotation_degrees=degrees, mirrored=mirrored
    )
    shown_HWC = geometry.orient(pixels_HWC)
    assert shown_HWC.tolist() == expected
    assert geometry.display_size == (shown_HWC.shape[1], shown_HWC.shape[0])


def test_a_picture_is_upright_with_square_pixels_unless_more_is_known() -> None:
    assert DisplayGeometry(coded_width=WIDTH, coded_height=HEIGHT) == DisplayGeometry(
        coded_width=WIDTH,
        coded_height=HEIGHT,
        sample_aspect_ratio=Fraction(1),
        rotation_degrees=0,
        mirrored=False,
    )


@pytest.mark.parametrize(
    ("degrees", "found"), [(44, 44), (-46, 314), (89.6, 90), (-0.4, 0), (359, 359), (180.4, 180)]
)
def test_angles_are_rounded_to_degrees(degrees: float, found: int) -> None:
    assert orientation_of(matrix_of(*turned(degrees))) == (found, False)
    is_tilted = found % 90 > 0
    mirrored = orientation_of(matrix_of(*turned(degrees, mirrored=True)))
    assert mirrored == (((found + 180) % 360, False) if is_tilted else (found, True))


@pytest.mark.parametrize("degrees", [0.6, 1, 1.4])
def test_a_tilt_of_a_degree_is_left_as_it_is(degrees: float) -> None:
    assert orientation_of(matrix_of(*turned(degrees))) == (0, False)
    assert orientation_of(matrix_of(*turned(-degrees))) == (359, False)
    assert orientation_of(matrix_of(*turned(180 + degrees, mirrored=True))) == (0, False)


def test_a_tilted_picture_keeps_its_size_on_black() -> None:
    white_HWC = np.full((40, 80, 3), 255, np.uint8)
    geometry = DisplayGeometry(coded_width=80, coded_height=40, rotation_degrees=45)
    tilted_HWC = geometry.orient(white_HWC)
    assert geometry.display_size == (80, 40)
    assert tilted_HWC.shape == white_HWC.shape
    assert (tilted_HWC[:, 34:46] == 255).all()
    assert not tilted_HWC[[0, 0, -1, -1], [0, -1, 0, -1]].any()


@pytest.mark.parametrize("ratio", [Fraction(2), Fraction(1, 2)])
def test_a_picture_is_tilted_by_its_stored_pixels(ratio: Fraction) -> None:
    row, column = np.mgrid[:60, :60]
    stored_HWC = np.stack([row * 4, column * 4, 120 + row - column], axis=-1).astype(np.uint8)
    coded = DisplayGeometry(coded_width=60, coded_height=60, rotation_degrees=30)
    geometry = replace(coded, sample_aspect_ratio=ratio)

    def squared(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.array(Image.fromarray(pixels_HWC).resize(geometry.upright_size))

    expected_HWC, tilted_HWC = (
        squared(coded.orient(stored_HWC)),
        geometry.orient(squared(stored_HWC)),
    )
    middle = tuple(slice(size // 4, -size // 4) for size in tilted_HWC.shape[:2])
    difference = np.abs(tilted_HWC.astype(int) - expected_HWC)[middle]
    assert difference.size
    assert difference.max() <= 3


@pytest.mark.parametrize(
    "matrix", [None, b"", matrix_of(*turned(90))[:35], matrix_of(0, 0, 0, 0), matrix_of(1, 0, 1, 0)]
)
def test_a_matrix_that_means_nothing_turns_nothing(matrix: bytes | None) -> None:
    assert orientation_of(matrix) == (0, False)


@pytest.mark.parametrize(
    ("coded", "ratio", "upright"),
    [
        ((720, 576), Fraction(16, 15), (768, 576)),
        ((720, 576), Fraction(64, 45), (1024, 576)),
        ((720, 480), Fraction(8, 9), (720, 540)),
        ((720, 480), Fraction(1), (720, 480)),
        ((3, 100), Fraction(1, 2), (3, 200)),
    ],
)
def test_one_side_is_enlarged_until_pixels_are_square(
    coded: tuple[int, int], ratio: Fraction, upright: tuple[int, int]
) -> None:
    width, height = coded
    geometry = DisplayGeometry(coded_width=width, coded_height=height, sample_aspect_ratio=ratio)
    assert geometry.upright_size == geometry.fitted_size(None) == geometry.display_size == upright


@pytest.mark.parametrize(
    ("coded", "longest", "fitted"),
    [
        ((1920, 1080), 768, (768, 432)),
        ((1080, 1920), 768, (432, 768)),
        ((1920, 1080), 1920, (1920, 1080)),
        ((1920, 1080), 1919, (1919, 1079)),
        ((640, 360), 768, (640, 360)),
        ((4000, 1), 100, (100, 1)),
        ((1, 4000), 100, (1, 100)),
    ],
)
def test_the_longest_side_is_limited(
    coded: tuple[int, int], longest: int, fitted: tuple[int, int]
) -> None:
    width, height = coded
    assert DisplayGeometry(coded_width=width, coded_height=height).fitted_size(longest) == fitted


@pytest.mark.parametrize(
    ("ratio", "used"),
    [
        (None, 1),
        (Fraction(0), 1),
        (Fraction(-4, 3), 1),
        (Fraction(4, 3), Fraction(4, 3)),
        (Fraction(16), 16),
        (Fraction(161, 10), 1),
        (Fraction(1, 16), Fraction(1, 16)),
        (Fraction(10, 161), 1),
    ],
)
def test_a_shape_of_pixels_that_no_camera_has_is_not_applied(
    ratio: Fraction | None, used: Fraction
) -> None:
    assert usable_sample_aspect_ratio(ratio) == used
