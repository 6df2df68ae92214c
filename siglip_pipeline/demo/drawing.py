"""Draw a scene at one moment.

A model that sees single frames cannot see motion. A moving object therefore drags a fading trail
behind it, which shows the direction in every frame; an object that stands still has none. Only
numpy and Pillow are needed.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from siglip_pipeline.demo.scenes import BACKGROUNDS, COLOURS, SHAPES, Motion, Object, Scene

Pixels = NDArray[np.uint8]
"""Pixels HWC, RGB, 0 to 255."""

_MASK_SIZE = 96
_CENTRE_X = {"left": 0.2, "center": 0.5, "right": 0.8}
_CENTRE_Y = {"top": 0.24, "middle": 0.5, "bottom": 0.76}
_STEP: dict[Motion, tuple[float, float]] = {
    "still": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
# Distance that an object moves during its scene, as a share of the picture's height: short
# enough that "on the left" stays true from the first frame to the last.
_TRAVEL = 0.16
_TRAIL_GHOSTS = 7


def _polygon(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points of the unit square ``[-1, 1]`` in pixels of the mask."""
    half = _MASK_SIZE / 2
    return [(half + x * half, half + y * half) for x, y in points]


def _star_points() -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius = 1.0 if corner % 2 == 0 else 0.42
        angle = math.pi * corner / 5 - math.pi / 2
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart_points() -> list[tuple[float, float]]:
    # The usual parametric heart, scaled to the unit square.
    points = []
    for step in range(48):
        t = 2 * math.pi * step / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -(y + 2.5) / 15.5))
    return points


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0, -0.95), (0.98, 0.8), (-0.98, 0.8)],
    "star": _star_points(),
    "diamond": [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)],
    "cross": [
        *((-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3)),
        *((0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)),
    ],
    "heart": _heart_points(),
    "hourglass": [(-0.8, -0.95), (0.8, -0.95), (0.1, 0), (0.8, 0.95), (-0.8, 0.95), (-0.1, 0)],
}


@lru_cache(maxsize=len(SHAPES))
def _shape_mask(shape: str) -> Image.Image:
    """Return the shape in white on black, ``_MASK_SIZE`` pixels on a side."""
    mask = Image.new("L", (_MASK_SIZE, _MASK_SIZE))
    draw = ImageDraw.Draw(mask)
    box = _polygon([(-0.94, -0.94), (0.94, 0.94)])
    if shape in _POLYGONS:
        draw.polygon(_polygon(_POLYGONS[shape]), fill=255)
    elif shape == "circle":
        draw.ellipse(box, fill=255)
    elif shape == "ring":
        draw.ellipse(box, fill=255)
        draw.ellipse(_polygon([(-0.52, -0.52), (0.52, 0.52)]), fill=0)
    elif shape == "crescent":
        draw.ellipse(box, fill=255)
        draw.ellipse(_polygon([(-0.35, -0.95), (1.2, 0.6)]), fill=0)
    else:
        raise ValueError(f"shape {shape!r} is not one of {', '.join(SHAPES)}")
    return mask


@lru_cache(maxsize=2)
def _background(scene: Scene, width: int, height: int) -> NDArray[np.float32]:
    """Return the background with texture and a gradient of light, float HWC, read-only."""
    rng = np.random.default_rng(scene.seed)
    base = np.array(BACKGROUNDS[scene.background], np.float32)
    phase, slope_x, slope_y = rng.random(3)
    # Both tones keep the colour's name: the texture only shifts its lightness.
    contrast = float(rng.uniform(0.75, 1.0)) * (34.0 if base.max() < 200 else -40.0)
    period = height * float(rng.uniform(0.13, 0.2))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if scene.texture == "striped":
        across = x * float(rng.choice([1.0, -1.0])) + y
        tone = (((across / 1.41 + phase * period) / period) % 1.0 < 0.5).astype(np.float32)
    elif scene.texture == "checkered":
        tone = ((x // period + y // period) % 2).astype(np.float32)
    elif scene.texture == "dotted":
        dx = (x + phase * period) % period - period / 2
        dy = y % period - period / 2
        tone = (dx * dx + dy * dy < (0.3 * period) ** 2).astype(np.float32)
    elif scene.texture == "noisy":
        cells = (max(2, round(height / 5)), max(2, round(width / 5)))
        speckle = Image.fromarray((rng.random(cells) * 255).astype(np.uint8))
        tone = np.asarray(speckle.resize((width, height), Image.Resampling.NEAREST), np.float32)
        tone = tone / 127.5 - 0.5
    else:
        tone = np.zeros((height, width), np.float32)
    light = 1.0 + 0.16 * (
        (slope_x - 0.5) * (x / width - 0.5) + (slope_y - 0.5) * (y / height - 0.5)
    )
    picture: NDArray[np.float32] = (base + contrast * tone[..., None]) * light[..., None]
    return picture


def _cover(
    clear: NDArray[np.float32], mask: NDArray[np.float32], centre: tuple[float, float]
) -> tuple[slice, slice]:
    """Multiply a mask into the transmission so far, in place; clip it at the edge.

    Returns:
        The rows and columns that were touched, perhaps none.
    """
    height, width = clear.shape
    side = mask.shape[0]
    left, top = round(centre[0] - side / 2), round(centre[1] - side / 2)
    x0, y0 = min(max(left, 0), width), min(max(top, 0), height)
    x1, y1 = max(min(left + side, width), x0), max(min(top + side, height), y0)
    clear[y0:y1, x0:x1] *= 1 - mask[y0 - top : y1 - top, x0 - left : x1 - left]
    return slice(y0, y1), slice(x0, x1)


def object_centre(item: Object, *, moment: float, aspect: float) -> tuple[float, float]:
    """Return the object's centre, in shares of width and height; ``aspect`` is their ratio."""
    step_x, step_y = _STEP[item.motion]
    along = (moment - 0.5) * _TRAVEL
    x = _CENTRE_X[item.column] + item.offset[0] + step_x * along / aspect
    y = _CENTRE_Y[item.row] + item.offset[1] + step_y * along
    return x, y


def _draw_object(picture: NDArray[np.float32], item: Object, moment: float) -> None:
    """Draw the object, and its trail if it moves, at ``moment`` of its path."""
    height, width = picture.shape[:2]
    step_x, step_y = _STEP[item.motion]
    share_x, share_y = object_centre(item, moment=moment, aspect=width / height)
    x, y = share_x * width, share_y * height
    side = max(5, round(2 * item.radius * height))
    turned = _shape_mask(item.shape).rotate(item.tilt_degrees, Image.Resampling.BILINEAR)
    mask = np.asarray(turned.resize((side, side), Image.Resampling.BOX), np.float32)
    mask = mask * np.float32(1 / 255)
    # Object and trail have one colour, so their transmissions can be multiplied first.
    clear = np.ones((height, width), np.float32)
    touched = [_cover(clear, mask, (x, y))]
    if item.motion != "still":
        reach = (1.1 * item.radius + 0.12) * height
        for ghost in range(1, _TRAIL_GHOSTS + 1):
            share = ghost / _TRAIL_GHOSTS
            faint = mask * np.float32(0.34 * (1.08 - share))
            centre = (x - step_x * reach * share, y - step_y * reach * share)
            touched.append(_cover(clear, faint, centre))
    rows = slice(min(r.start for r, _ in touched), max(r.stop for r, _ in touched))
    columns = slice(min(c.start for _, c in touched), max(c.stop for _, c in touched))
    patch = picture[rows, columns]
    colour = np.array(COLOURS[item.colour], np.float32)
    picture[rows, columns] = colour + (patch - colour) * clear[rows, columns, None]


def render_frame(
    scene: Scene, *, moment: float = 0.5, size: tuple[int, int] = (320, 240), frame: int = 0
) -> Pixels:
    """Draw one frame of the scene.

    Args:
        scene: what to draw.
        moment: 0 at the scene's start, 1 at its end; moves the objects along their way.
        size: width and height in pixels.
        frame: number of the frame, which alone changes the grain from frame to frame.

    Returns:
        Pixels HWC, uint8 RGB. Equal arguments give equal pixels.

    Raises:
        ValueError: an object has a shape that is not in :data:`SHAPES`.
    """
    width, height = size
    picture = _background(scene, width, height).copy()
    for item in scene.objects:
        _draw_object(picture, item, moment)
    rng = np.random.default_rng((scene.seed, frame))
    if scene.light == "dim":
        picture *= 0.5
    if scene.blur > 0:
        sharp = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        picture = np.asarray(
            sharp.filter(ImageFilter.BoxBlur(1.5 * scene.blur * height)), np.float32
        ).copy()
    if scene.grain > 0:
        # One value for all three channels: cheap, and looks like film grain.
        noise = rng.standard_normal((height, width), np.float32) * np.float32(scene.grain)
        picture = picture + noise[..., None]
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def render_picture(scene: Scene, *, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Render a still of the scene, e.g. as a query. Raises as :func:`render_frame` does."""
    return Image.fromarray(render_frame(scene, size=size))
