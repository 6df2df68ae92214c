"""Renders captioned scenes: coloured shapes that stand or move before a background.

A :class:`Scene` is a description; :func:`render_frame` draws it at one moment and
:func:`render_video` films a row of scenes. Everything is a function of the scene and a seed, so
that a caption's truth is known and a film can be made again. Only numpy and Pillow are needed;
PyAV is imported when a film is written.

A model that sees single frames cannot see motion. A moving object therefore drags a fading trail
behind it, which shows the direction in every frame; an object that stands still has none.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]
"""Pixels HWC, RGB, 0 to 255."""

Size = Literal["small", "medium", "large"]
Motion = Literal["still", "left", "right", "up", "down"]
Texture = Literal["plain", "striped", "checkered", "dotted", "noisy"]
Light = Literal["normal", "dim"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 28),
    "green": (28, 186, 50),
    "blue": (28, 64, 226),
    "yellow": (248, 226, 30),
    "orange": (250, 134, 14),
    "purple": (136, 32, 176),
    "pink": (255, 132, 196),
    "cyan": (36, 214, 226),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
"""Colours of objects, sRGB."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (26, 26, 28),
    "white": (224, 224, 220),
    "gray": (124, 124, 124),
    "blue": (42, 66, 128),
    "green": (48, 104, 58),
    "brown": (106, 70, 40),
    "purple": (84, 48, 104),
    "yellow": (190, 172, 84),
}
"""Colours of backgrounds, sRGB: duller than the objects before them."""

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "diamond",
    "cross",
    "ring",
    "heart",
    "crescent",
    "hourglass",
)
SIZES: tuple[Size, ...] = get_args(Size)
MOTIONS: tuple[Motion, ...] = get_args(Motion)
TEXTURES: tuple[Texture, ...] = get_args(Texture)
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "hourglass"),
        ("red", "diamond"),
        ("green", "star"),
        ("green", "crescent"),
        ("blue", "heart"),
        ("blue", "triangle"),
        ("yellow", "square"),
        ("yellow", "ring"),
        ("orange", "cross"),
        ("purple", "circle"),
        ("pink", "star"),
        ("cyan", "hourglass"),
        ("white", "heart"),
        ("black", "triangle"),
        ("black", "crescent"),
    }
)
"""Pairs of colour and shape that no training picture shows: 15 of 100."""

# Radius as a share of the picture's height: the gaps keep the three words apart.
_RADIUS: dict[Size, tuple[float, float]] = {
    "small": (0.115, 0.135),
    "medium": (0.175, 0.205),
    "large": (0.27, 0.31),
}
_CENTRE_X = {"left": 0.2, "center": 0.5, "right": 0.8}
_CENTRE_Y = {"top": 0.24, "middle": 0.5, "bottom": 0.76}
_STEP: dict[Motion, tuple[float, float]] = {
    "still": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
# Way that a moving object makes during its scene, as a share of the picture's height: short
# enough that "on the left" stays true from the first frame to the last.
_TRAVEL = 0.16
_TRAIL_GHOSTS = 7
# Part of a film's tag: raise it when equal scenes come to look different.
_RENDERER_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One thing in a scene."""

    colour: str
    shape: str
    size: Size = "medium"
    row: str = "middle"
    column: str = "center"
    motion: Motion = "still"
    radius: float = 0.19
    """Share of the picture's height; within the range that ``size`` stands for."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Distance of the middle of the way from the named place, in shares of width and height."""
    tilt_degrees: float = 0.0

    @property
    def pair(self) -> tuple[str, str]:
        """Colour and shape, the unit that is held out from training."""
        return self.colour, self.shape

    def describe(self) -> str:
        """The object in words: size (unless medium), colour, shape, motion, place."""
        size = "" if self.size == "medium" else f"{self.size} "
        motion = "" if self.motion == "still" else f" moving {self.motion}"
        return f"{size}{self.colour} {self.shape}{motion} {place_in_words(self.row, self.column)}"


def place_in_words(row: str, column: str) -> str:
    """The place as a caption names it, e.g. ``at the top left``."""
    if (row, column) == ("middle", "center"):
        return "in the center"
    if row == "middle":
        return f"on the {column}"
    if column == "center":
        return f"at the {row}"
    return f"at the {row} {column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One to three objects before a background: everything a frame is drawn from."""

    objects: tuple[Object, ...]
    background: str = "gray"
    texture: Texture = "plain"
    light: Light = "normal"
    blur: float = 0.0
    """Strength of the blur: about its standard deviation as a share of the picture's height."""
    grain: float = 0.0
    """Standard deviation of sensor noise, in grey levels of 255."""
    seed: int = 0
    """Decides what no caption names: grain, phase and scale of the texture, slope of the light."""

    @property
    def caption(self) -> str:
        """The scene in words, with every property that a caption can name."""
        described = (item.describe() for item in self.objects)
        objects = " and ".join(f"{'an' if d[0] in 'aeiou' else 'a'} {d}" for d in described)
        texture = "" if self.texture == "plain" else f"{self.texture} "
        light = "" if self.light == "normal" else " in dim light"
        return f"{objects} on a {texture}{self.background} background{light}"

    def mirrored(self) -> "Scene":
        """The scene as a mirror shows it: left for right in every place and motion."""
        columns = {"left": "right", "right": "left"}
        motions: dict[Motion, Motion] = {"left": "right", "right": "left"}
        items = (
            replace(
                item,
                column=columns.get(item.column, item.column),
                motion=motions.get(item.motion, item.motion),
                offset=(-item.offset[0], item.offset[1]),
                tilt_degrees=-item.tilt_degrees,
            )
            for item in self.objects
        )
        return replace(self, objects=tuple(items))

    @property
    def has_held_out_pair(self) -> bool:
        """Whether an object's pair of colour and shape is one that training never shows."""
        return any(item.pair in HELD_OUT for item in self.objects)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoVideo:
    """A rendered film and what can be seen in it when."""

    path: Path
    timeline: tuple[tuple[float, float, Scene], ...]
    """``(start_seconds, end_seconds, scene)``, half-open, in order and without gaps."""


# ----------------------------------------------------------------------------------- choosing


def random_object(
    rng: np.random.Generator,
    *,
    pairs: Sequence[tuple[str, str]],
    sizes: Sequence[Size] = SIZES,
    row: str | None = None,
    column: str | None = None,
) -> Object:
    """An object whose colour and shape are one of ``pairs``; the rest is drawn evenly."""
    colour, shape = pairs[int(rng.integers(len(pairs)))]
    size = sizes[int(rng.integers(len(sizes)))]
    motion: Motion = "still" if rng.random() < 0.4 else MOTIONS[int(rng.integers(1, 5))]
    return Object(
        colour=colour,
        shape=shape,
        size=size,
        row=row or ROWS[int(rng.integers(3))],
        column=column or COLUMNS[int(rng.integers(3))],
        motion=motion,
        radius=float(rng.uniform(*_RADIUS[size])),
        offset=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.03, 0.03))),
        tilt_degrees=float(rng.uniform(-12, 12)),
    )


ALL_PAIRS: tuple[tuple[str, str], ...] = tuple((c, s) for c in COLOURS for s in SHAPES)
SEEN_PAIRS: tuple[tuple[str, str], ...] = tuple(p for p in ALL_PAIRS if p not in HELD_OUT)


def random_scene(
    rng: np.random.Generator,
    *,
    pairs: Sequence[tuple[str, str]] = ALL_PAIRS,
    objects: int | None = None,
) -> Scene:
    """A scene of one to three objects that do not hide each other.

    Args:
        rng: where all choices come from.
        pairs: the colour-shape pairs to draw from.
        objects: 1, 2 or 3; None draws 1 with chance 0.5, 2 with 0.35 and 3 with 0.15.
    """
    count = objects or int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    background = str(rng.choice(list(BACKGROUNDS)))
    # An object in the colour of its background could not be seen.
    visible = [pair for pair in pairs if pair[0] != background]
    columns = [str(c) for c in rng.permutation(list(COLUMNS))]
    items: list[Object] = []
    for number in range(count):
        # Several objects stand in columns of their own, and at most the first is large.
        sizes: tuple[Size, ...] = SIZES if number == 0 and count < 3 else ("small", "medium")
        free = [p for p in visible if all(p[0] != o.colour and p[1] != o.shape for o in items)]
        items.append(
            random_object(
                rng,
                pairs=free or visible,
                sizes=sizes,
                column=columns[number] if count > 1 else None,
            )
        )
    texture: Texture = "plain" if rng.random() < 0.4 else TEXTURES[int(rng.integers(1, 5))]
    return Scene(
        objects=tuple(items),
        background=background,
        texture=texture,
        light="dim" if rng.random() < 0.2 else "normal",
        blur=float(rng.choice([0.0, rng.uniform(0.002, 0.012)])),
        grain=float(rng.choice([0.0, rng.uniform(2.0, 9.0)])),
        seed=int(rng.integers(2**31)),
    )


# ------------------------------------------------------------------------------------ drawing

_MASK_SIZE = 96


def _polygon(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of the unit square ``[-1, 1]`` in pixels of the mask."""
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
    """The shape in white on black, ``_MASK_SIZE`` pixels on a side."""
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
    """The background with its texture and a slope of light, float HWC. Not to be written to."""
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
    """Lay a mask on what shines through so far, in place; what reaches beyond the edge is cut.

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
    """Where the object's middle is, in shares of width and height; ``aspect`` is their ratio."""
    step_x, step_y = _STEP[item.motion]
    along = (moment - 0.5) * _TRAVEL
    x = _CENTRE_X[item.column] + item.offset[0] + step_x * along / aspect
    y = _CENTRE_Y[item.row] + item.offset[1] + step_y * along
    return x, y


def _draw_object(picture: NDArray[np.float32], item: Object, moment: float) -> None:
    """Draw the object, and its trail if it moves, as it is at ``moment`` of its way."""
    height, width = picture.shape[:2]
    step_x, step_y = _STEP[item.motion]
    share_x, share_y = object_centre(item, moment=moment, aspect=width / height)
    x, y = share_x * width, share_y * height
    side = max(5, round(2 * item.radius * height))
    turned = _shape_mask(item.shape).rotate(item.tilt_degrees, Image.Resampling.BILINEAR)
    mask = np.asarray(turned.resize((side, side), Image.Resampling.BOX), np.float32)
    mask = mask * np.float32(1 / 255)
    # Object and ghosts have one colour, so what each lets through can be multiplied up first.
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
        # One value for all three channels: grain that is cheap and looks like film.
        noise = rng.standard_normal((height, width), np.float32) * np.float32(scene.grain)
        picture = picture + noise[..., None]
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def render_picture(scene: Scene, *, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A still of the scene, e.g. to search with. Raises as :func:`render_frame` does."""
    return Image.fromarray(render_frame(scene, size=size))


# ------------------------------------------------------------------------------------- filming


def render_video(
    path: str | Path,
    scenes: Sequence[Scene],
    *,
    seconds_per_scene: float | Sequence[float] = 3.0,
    fps: float = 25.0,
    size: tuple[int, int] = (320, 240),
    codec: str = "libx264",
    crf: int = 26,
    gop_seconds: float = 4.0,
    overwrite: bool = True,
) -> DemoVideo:
    """Film the scenes one after the other; the name's suffix chooses the container.

    The film is written under a temporary name in the same folder and renamed when complete, so
    that a watcher never sees half of one.

    Args:
        path: where to; an existing file is replaced.
        scenes: in order.
        seconds_per_scene: one length for all, or one for each scene; rounded to whole frames.
        fps: frames a second.
        size: width and height in pixels, even.
        codec: name of an FFmpeg encoder, e.g. ``libx264``, ``libvpx-vp9``, ``mpeg4``.
        crf: constant quality for the encoders that have it; higher is worse.
        gop_seconds: distance between key frames. Scene cuts get none of their own, as in a
            stream that was encoded live.
        overwrite: False keeps an existing file if it was rendered from equal arguments, which
            its ``comment`` tag tells.

    Raises:
        ValueError: no scenes, lengths that do not match them, or an odd width or height.
    """
    target = Path(path)
    lengths = _scene_lengths(scenes, seconds_per_scene)
    if size[0] % 2 or size[1] % 2:
        raise ValueError(f"size {size} must be even in both directions for 4:2:0 video")
    rate = Fraction(fps).limit_denominator(1001)
    counts = [max(1, round(length * rate)) for length in lengths]
    film = DemoVideo(path=target, timeline=_timeline(scenes, counts, rate))
    recipe = repr((_RENDERER_VERSION, scenes, counts, rate, size, codec, crf, gop_seconds))
    tag = f"siglip-pipeline demo {hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not overwrite and target.exists() and _comment(target) == tag:
        return film
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    options = _encoder_options(codec, crf=crf, gop=max(1, round(gop_seconds * rate)))
    try:
        _encode(part, _frames(scenes, counts, size), rate, size, codec, options, tag)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return film


def _scene_lengths(scenes: Sequence[Scene], seconds: float | Sequence[float]) -> list[float]:
    if not scenes:
        raise ValueError("scenes is empty; a film needs at least one")
    if isinstance(seconds, (int, float)):
        return [float(seconds)] * len(scenes)
    if len(seconds) != len(scenes):
        raise ValueError(
            f"seconds_per_scene has {len(seconds)} lengths for {len(scenes)} scenes; "
            "give one number, or one for each scene"
        )
    return [float(s) for s in seconds]


def _timeline(
    scenes: Sequence[Scene], counts: Sequence[int], rate: Fraction
) -> tuple[tuple[float, float, Scene], ...]:
    """Start and end of each scene as they lie in the file: on frame boundaries."""
    rows, done = [], 0
    for scene, count in zip(scenes, counts, strict=True):
        rows.append((float(done / rate), float((done + count) / rate), scene))
        done += count
    return tuple(rows)


def _frames(
    scenes: Sequence[Scene], counts: Sequence[int], size: tuple[int, int]
) -> Iterator[Pixels]:
    for scene, count in zip(scenes, counts, strict=True):
        for number in range(count):
            yield render_frame(scene, moment=(number + 0.5) / count, size=size, frame=number)


def _comment(path: Path) -> str | None:
    """The file's ``comment`` tag; None where there is none or the file is no film."""
    import av  # here, because rendering stills must not need FFmpeg

    try:
        with av.open(str(path)) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except (av.FFmpegError, OSError):
        return None
    return tags.get("comment")


def _encoder_options(codec: str, *, crf: int, gop: int) -> dict[str, str]:
    if codec in ("libx264", "libx265"):
        return {"g": str(gop), "crf": str(crf), "preset": "superfast", "sc_threshold": "0"}
    if codec == "libvpx-vp9":
        return {"g": str(gop), "crf": str(crf), "b": "0", "deadline": "realtime", "cpu-used": "8"}
    return {"g": str(gop), "b": "1500000"}


def _encode(
    path: Path,
    frames: Iterator[Pixels],
    rate: Fraction,
    size: tuple[int, int],
    codec: str,
    options: dict[str, str],
    comment: str,
) -> None:
    import av  # here, because rendering stills must not need FFmpeg

    # bitexact leaves out the date and the random ids that would make equal films differ.
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        container.metadata["comment"] = comment
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        # Threads would make some encoders' output depend on the number of cores.
        stream.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


# File, encoder, frames a second, size: what turns up in an uploads folder, in small.
_DEMO_FILMS: tuple[tuple[str, str, float, tuple[int, int]], ...] = (
    ("reel-1.mp4", "libx264", 12, (320, 240)),
    ("reel-2.mp4", "libx264", 15, (320, 180)),
    ("reel-3.mkv", "libx264", 12.5, (256, 256)),
    ("reel-4.webm", "libvpx-vp9", 8, (320, 240)),
    ("more/reel-5.mp4", "mpeg4", 10, (320, 240)),
)
_SCENES_PER_FILM = 8


def demo_scenes(*, seed: int = 0) -> tuple[Scene, ...]:
    """The scenes of the demo's films: no two of them share a pair of colour and shape.

    So each of their captions is true of one scene only.
    """
    rng = np.random.default_rng(seed)
    unused = [ALL_PAIRS[int(i)] for i in rng.permutation(len(ALL_PAIRS))]
    scenes: list[Scene] = []
    for number in range(len(_DEMO_FILMS) * _SCENES_PER_FILM):
        scene = random_scene(rng, pairs=unused, objects=1 if number % 3 else 2)
        scenes.append(scene)
        used = {item.pair for item in scene.objects}
        unused = [pair for pair in unused if pair not in used]
    return tuple(scenes)


def render_demo_videos(folder: str | Path, *, seed: int = 0) -> list[DemoVideo]:
    """Film the demo's sample videos: 5 files of 8 scenes, 2 to 4 seconds each.

    They differ in container, codec, frame rate and aspect ratio. A file that is there already and
    was rendered from the same scenes is kept as it is.

    Args:
        folder: where to; made if missing.
        seed: another seed gives other scenes.
    """
    rng = np.random.default_rng(seed + 1)
    scenes = demo_scenes(seed=seed)
    films = []
    for number, (name, codec, fps, size) in enumerate(_DEMO_FILMS):
        chosen = scenes[number * _SCENES_PER_FILM : (number + 1) * _SCENES_PER_FILM]
        seconds = [float(s) for s in rng.choice([2.0, 3.0, 4.0], size=len(chosen))]
        films.append(
            render_video(
                Path(folder) / name,
                chosen,
                seconds_per_scene=seconds,
                fps=fps,
                size=size,
                codec=codec,
                overwrite=False,
            )
        )
    return films
